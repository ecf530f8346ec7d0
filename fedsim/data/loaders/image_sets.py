"""Known image sets: their cards, and the layouts of their files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedsim.data.dataset import Card
from fedsim.data.loaders.folders import (
    TEST,
    TRAIN,
    VALIDATION,
    ListedImage,
    Listing,
    Lists,
    canonical,
    scan,
    scan_lists,
)
from fedsim.data.loaders.lists import read_lines
from fedsim.errors import InputError, check

_LISTS = {"train": TRAIN, "val": VALIDATION, "test": TEST}

# Of the training images of ImageNet, as networks trained on them expect.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_OFFICE_CALTECH = """
back_pack bike calculator headphones keyboard laptop_computer monitor mouse mug projector
"""

_OFFICE_HOME = """
Alarm_Clock Backpack Batteries Bed Bike Bottle Bucket Calculator Calendar Candles Chair Clipboards
Computer Couch Curtains Desk_Lamp Drill Eraser Exit_Sign Fan File_Cabinet Flipflops Flowers Folder
Fork Glasses Hammer Helmet Kettle Keyboard Knives Lamp_Shade Laptop Marker Monitor Mop Mouse Mug
Notebook Oven Pan Paper_Clip Pen Pencil Postit_Notes Printer Push_Pin Radio Refrigerator Ruler
Scissors Screwdriver Shelf Sink Sneakers Soda Speaker Spoon TV Table Telephone ToothBrush Toys
Trash_Can Webcam
"""


Reader = Callable[[Path, tuple[str, ...]], Listing]
"""A function that lists the images below a folder, of the named domains at least."""


@dataclass(frozen=True)
class ImageSet:
    """A set: its card, the reader of its files, whether its classes have fixed names."""

    card: Card
    read: Reader
    fixed_classes: bool = False


def any_folder(root: Path) -> Listing:
    """List any folder: by ``train.txt``, ``val.txt`` and ``test.txt`` if there, else by its names.

    Raises:
        InputError: what `scan_lists` and `scan` refuse.
    """
    lists: Lists = {
        (None, split): root / f"{name}.txt"
        for name, split in _LISTS.items()
        if (root / f"{name}.txt").is_file()
    }
    return scan_lists(root, lists) if (None, TRAIN) in lists else scan(root)


def _image_set(
    read: Reader,
    title: str,
    source: str,
    licence: str,
    classes: str | int,
    description: str,
    domains: tuple[str, ...] = (),
    stats: tuple[tuple[float, ...], tuple[float, ...]] = _IMAGENET,
) -> ImageSet:
    """Return a set of `classes` by name, separated by spaces, or of so many of any names."""
    names = classes.split() if isinstance(classes, str) else map(str, range(classes))
    # 64 pixels is the default size of `image_folder`.
    card = Card(
        title, source, licence, tuple(names), (3, 64, 64), *stats, description, domains=domains
    )
    return ImageSet(card, read, isinstance(classes, str))


def _by_domain(train: str, test: str, num_classes: int, first: int = 0) -> Reader:
    """Return a reader of list files `train` and `test` for each domain; of folders without them."""

    def read(root: Path, domains: tuple[str, ...]) -> Listing:
        images = _holding(root, domains)
        places = [root, *(root / p for p in (images, "splits", "pacs_label", "image_list") if p)]
        lists: Lists = {}
        missing = []
        for domain in domains:
            for split, pattern in ((TRAIN, train), (TEST, test)):
                name = pattern.format(domain)
                file = next((p / name for p in places if (p / name).is_file()), None)
                if file is None:
                    missing.append(name)
                else:
                    lists[domain, split] = file
        if not lists:
            return scan(root / images)
        if missing:
            raise InputError(
                f"{root} has list files, but not {', '.join(missing)}: put them there too, or "
                "remove all to have the images divided by dataset.test_share"
            )
        return scan_lists(root, lists, num_classes, first, images)

    return read


def _by_name(root: Path, domains: tuple[str, ...]) -> Listing:
    return scan(root / _holding(root, domains))


def _holding(root: Path, domains: tuple[str, ...]) -> str:
    """Return the folder below `root` that has the domains' folders, an empty string for itself."""
    names = {canonical(domain) for domain in domains}
    for folder in (root, *sorted(p for p in root.iterdir() if p.is_dir())):
        if names & {canonical(p.name) for p in folder.iterdir() if p.is_dir()}:
            return "" if folder == root else folder.name
    return ""


def _by_lists(files: dict[str, int], num_classes: int) -> Reader:
    """Return a reader of list files of all splits."""

    def read(root: Path, domains: tuple[str, ...]) -> Listing:
        missing = [name for name in files if not (root / name).is_file()]
        if missing:
            raise InputError(
                f"{root} lacks {', '.join(missing)}: put the official list files there, beside "
                "the folders of images that they name"
            )
        lists: Lists = {(None, split): root / name for name, split in files.items()}
        return scan_lists(root, lists, num_classes)

    return read


def _tiny_imagenet(root: Path, domains: tuple[str, ...]) -> Listing:
    """List train/CLASS/images/*.JPEG, and as the test split what val/val_annotations.txt names."""
    wnids = [line.strip() for line in read_lines(root / "wnids.txt") if line.strip()]
    number = {wnid: i for i, wnid in enumerate(sorted(wnids))}
    words = dict(line.split("\t", 1) for line in read_lines(root / "words.txt") if "\t" in line)
    rows: list[ListedImage] = []
    for wnid, label in number.items():
        folder = root / "train" / wnid / "images"
        if not folder.is_dir():
            raise InputError(f"{folder} is missing; unpack tiny-imagenet-200.zip again")
        names = sorted(p.name for p in folder.iterdir() if p.suffix == ".JPEG")
        rows += [ListedImage(f"train/{wnid}/images/{name}", label, TRAIN) for name in names]
    annotations = root / "val" / "val_annotations.txt"
    for i, line in enumerate(read_lines(annotations), start=1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in number:
            raise InputError(
                f"line {i} of {annotations} must be an image and its class of wnids.txt, got "
                f"{line[:80]!r}"
            )
        rows.append(ListedImage(f"val/images/{name}", number[wnid], TEST))
    names = [words.get(wnid, wnid).partition(",")[0].strip() for wnid in number]
    # Two classes share a first name, such as a bird and a machine called crane.
    twice = {name for name in names if names.count(name) > 1}
    classes = [
        f"{name} ({wnid})" if name in twice else name
        for name, wnid in zip(names, number, strict=True)
    ]
    return Listing.of(root, rows, classes)


IMAGE_SETS = {
    "pacs": _image_set(
        _by_domain("{}_train_kfold.txt", "{}_crossval_kfold.txt", 7, first=1),
        "PACS",
        "Li et al. 2017, arXiv:1710.03077; dali-dl.github.io/project_iccv2017.html",
        "none stated; see source",
        "dog elephant giraffe guitar horse house person",
        "9,991 pictures in 4 styles. With the lists *_train_kfold.txt and "
        "*_crossval_kfold.txt the second are the test split.",
        ("art_painting", "cartoon", "photo", "sketch"),
    ),
    "office-caltech10": _image_set(
        _by_name,
        "Office-Caltech10",
        "Gong et al. 2012, CVPR; as in github.com/med-air/FedBN",
        "none stated; see source",
        _OFFICE_CALTECH,
        "2,533 photographs of 10 objects by 4 cameras or sources.",
        ("amazon", "caltech", "dslr", "webcam"),
    ),
    "office-home": _image_set(
        _by_name,
        "Office-Home",
        "Venkateswara et al. 2017, arXiv:1706.07522; hemanthdv.github.io/officehome-dataset",
        "for non-commercial research; see source",
        _OFFICE_HOME,
        "15,588 pictures of 65 objects in 4 styles.",
        ("Art", "Clipart", "Product", "Real World"),
    ),
    "domainnet": _image_set(
        _by_domain("{}_train.txt", "{}_test.txt", 345),
        "DomainNet",
        "Peng et al. 2019, arXiv:1812.01754; ai.bu.edu/M3SDA",
        "for non-commercial research; see source",
        345,
        "586,575 pictures of 345 things in 6 styles, with lists of training and test images.",
        ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
    ),
    "tiny-imagenet": _image_set(
        _tiny_imagenet,
        "Tiny ImageNet",
        "Stanford CS231n; cs231n.stanford.edu/tiny-imagenet-200.zip",
        "for non-commercial research, as ImageNet; see source",
        200,
        "100,000 training photographs, 500 a class; the 10,000 for validation are the test "
        "split, as the labels of the test images are not public.",
        stats=((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
    ),
    "imagenet-lt": _image_set(
        _by_lists({f"ImageNet_LT_{name}.txt": split for name, split in _LISTS.items()}, 1000),
        "ImageNet-LT",
        "Liu et al. 2019, arXiv:1904.05160; lists at github.com/zhmiao/OpenLongTailRecognition-"
        "OLTR, images at image-net.org",
        "for non-commercial research; see source",
        1000,
        "115,846 training photographs, 1,280 to 5 a class; 20,000 for validation, 50,000 for "
        "testing, as many of each class.",
    ),
    "inaturalist": _image_set(
        _by_lists({"iNaturalist18_train.txt": TRAIN, "iNaturalist18_val.txt": TEST}, 8142),
        "iNaturalist 2018",
        "Van Horn et al. 2018, arXiv:1707.06642; github.com/visipedia/inat_comp",
        "each photograph its own; see source",
        8142,
        "437,513 training photographs of 8,142 species, a natural long tail; the 24,426 for "
        "validation are the test split.",
        stats=((0.466, 0.471, 0.380), (0.195, 0.194, 0.192)),
    ),
}


def list_images(name: str | None, root: Path, domains: tuple[str, ...] | None) -> Listing:
    """Return the images of the set `name` (None: of any folder) in `root`, with its known names.

    The files of a known set need to have the named domains only.

    Raises:
        InputError: files that are missing or not those of the set, an unknown domain.
    """
    if name is None:
        return any_folder(root)
    card = IMAGE_SETS[name].card
    for domain in domains or ():
        known = ", ".join(card.domains) or "(none)"
        check(domain in card.domains, f"dataset.domains of {name} must be of {known}", domain)
    names = domains or card.domains
    listing = IMAGE_SETS[name].read(root, names)
    if names:
        listing = listing.named("domains", names, card.domains)
    if IMAGE_SETS[name].fixed_classes:
        return listing.named("classes", card.classes, card.classes)
    if len(listing.classes) != len(card.classes):
        raise InputError(
            f"{root} must hold the {len(card.classes)} classes of {card.title}, got "
            f"{len(listing.classes)}; leave "
            "dataset.set out to read any folder"
        )
    return listing
