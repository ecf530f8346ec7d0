import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsim.data.dataset import Split
from fedsim.data.datasets.image_folder import SETS, image_folder
from fedsim.errors import InputError

pytestmark = pytest.mark.usefixtures("no_files")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def write(path: Path, red: int, size: tuple[int, int] = (6, 4)) -> None:
    """An image of one colour, known by its red."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (red, 100, 200)).save(path, lossless=True)


def fill(folder: Path, names: str, first: int = 0) -> None:
    """Images ``class/name.png`` of the reds first, first + 1, ..."""
    for red, name in enumerate(names.split(), start=first):
        write(folder / name, red)


def reds(split: Split | None) -> list[int]:
    assert split is not None
    return [int(v) for v in split.x[:, 0, 0, 0]]


def test_classes_are_folders(root: Path) -> None:
    fill(root / "train", "cat/1.png cat/2.webp dog/1.PNG")
    fill(root / "test", "dog/9.png", 50)
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    dataset = image_folder(root=str(root), size=5)
    assert dataset.card.classes == ("cat", "dog")
    assert reds(dataset.train) == [0, 1, 2]
    assert dataset.train.y.tolist() == [0, 0, 1]
    assert dataset.train.x.shape == (3, 5, 5, 3)
    assert dataset.train.x[2].reshape(-1, 3).tolist() == [[2, 100, 200]] * 25
    assert (reds(dataset.test), dataset.test.y.tolist()) == ([50], [1])
    assert dataset.validation is None
    assert dataset.train.extra == {}
    assert isinstance(dataset.train.x, np.memmap)
    # Of the reds 0, 1, 2: mean 1, variance 2/3; green and blue do not vary.
    assert dataset.card.mean == pytest.approx((1 / 255, 100 / 255, 200 / 255))
    assert dataset.card.std == pytest.approx(((2 / 3) ** 0.5 / 255, 1, 1))


def test_domains_are_folders_and_validation_stays(root: Path) -> None:
    fill(root / "training", "photo/cat/1.png sketch/cat/1.png sketch/dog/1.png")
    fill(root / "val", "photo/cat/2.png", 20)
    fill(root / "test", "sketch/dog/images/3.png", 30)
    dataset = image_folder(root=str(root), size=4)
    assert dataset.card.domains == ("photo", "sketch")
    assert dataset.train.extra["domain"].tolist() == [0, 1, 1]
    assert dataset.train.y.tolist() == [0, 0, 1]
    assert reds(dataset.validation) == [20]
    assert (reds(dataset.test), dataset.test.extra["domain"].tolist()) == ([30], [1])


def test_parts_may_be_below_domains(root: Path) -> None:
    fill(root, "a/train/cat/1.png a/val/cat/2.png b/train/cat/3.png b/val/cat/4.png")
    dataset = image_folder(root=str(root), size=4)
    assert dataset.card.domains == ("a", "b")
    assert (reds(dataset.train), reds(dataset.test)) == ([0, 2], [1, 3])


def test_undivided_images_are_split_by_class_and_domain(root: Path) -> None:
    for domain, count in (("a", 10), ("b", 5)):
        for label in ("cat", "dog"):
            fill(root / domain / label, " ".join(f"{i:02}.png" for i in range(count)))
    one = image_folder(root=str(root), size=4)
    groups = 2 * one.test.extra["domain"] + one.test.y
    assert np.bincount(groups).tolist() == [2, 2, 1, 1]
    assert (len(one.train), len(one.test)) == (24, 6)
    assert reds(image_folder(root=str(root), size=5).test) == reds(one.test)
    other = image_folder(root=str(root), size=4, split_seed=1)
    assert reds(other.test) != reds(one.test)
    more = image_folder(root=str(root), size=4, test_share=0.5)
    groups = 2 * more.test.extra["domain"] + more.test.y
    assert np.bincount(groups).tolist() == [5, 5, 3, 3]
    for share in (0.0, 1.0, 0.01):
        with pytest.raises(InputError, match=r"dataset\.test_share must"):
            image_folder(root=str(root), test_share=share)


def test_own_list_files(root: Path) -> None:
    fill(root, "x/cat/a.png x/dog/b.png x/cat/c.png x/dog/d.png")
    (root / "train.txt").write_text("x/dog/b.png 1\nx/cat/a.png 0\n\n")
    (root / "val.txt").write_text("x/cat/c.png 0\n")
    (root / "test.txt").write_text("x/dog/d.png 1")
    dataset = image_folder(root=str(root), size=4)
    assert dataset.card.classes == ("cat", "dog")
    assert (reds(dataset.train), dataset.train.y.tolist()) == ([1, 0], [1, 0])
    assert (reds(dataset.validation), reds(dataset.test)) == ([2], [3])


def test_some_classes_and_domains_in_the_order_named(root: Path) -> None:
    fill(root / "train", "a/x/1.png a/y/1.png b/x/1.png b/z/1.png c/z/1.png")
    fill(root / "test", "a/z/1.png b/z/1.png b/x/1.png", 20)
    dataset = image_folder(root=str(root), size=4, domains=("b", "a"), classes=("z", "x"))
    assert dataset.card.domains == ("b", "a")
    assert dataset.card.classes == ("z", "x")
    assert reds(dataset.train) == [0, 2, 3]
    assert dataset.train.y.tolist() == [1, 1, 0]
    assert dataset.train.extra["domain"].tolist() == [1, 0, 0]
    assert dataset.test.y.tolist() == [0, 1, 0]
    for options, message in (
        ({"domains": ("d",)}, r"dataset\.domains must be of a, b, c, got 'd'"),
        ({"classes": ("x", "x")}, r"dataset\.classes must name at least one, none twice"),
        ({"classes": ("zz",)}, r"dataset\.classes must be of x, y, z, got 'zz'.*Did you mean 'z'"),
        ({"domains": ("c",)}, r"has no test images of the classes and domains asked for"),
        ({"classes": ("y",)}, r"has no test images of the classes and domains asked for"),
    ):
        with pytest.raises(InputError, match=message):
            image_folder(root=str(root), **options)


def test_fit_size_and_channels(root: Path) -> None:
    image = Image.new("RGB", (8, 4), (0, 0, 0))
    image.paste((255, 255, 255), (2, 0, 6, 4))  # the middle square is white
    for part in ("train", "test"):
        (root / part / "a").mkdir(parents=True)
        image.save(root / part / "a" / "1.png")
    assert image_folder(root=str(root), size=4, fit="crop").train.x.min() == 255
    squashed = image_folder(root=str(root), size=4, channels=1)
    assert squashed.train.x.shape == (1, 4, 4, 1)
    assert squashed.train.x.min() < 50
    assert squashed.card.input_shape == (1, 4, 4)


def test_new_and_renamed_files_are_noticed(root: Path) -> None:
    fill(root / "train", "a/1.png")
    fill(root / "test", "a/1.png")
    assert len(image_folder(root=str(root)).train) == 1
    write(root / "train" / "b" / "2.png", 7)
    dataset = image_folder(root=str(root))
    assert reds(dataset.train) == [0, 7]
    (root / "train" / "b" / "2.png").rename(root / "train" / "a" / "0.png")
    assert reds(image_folder(root=str(root)).train) == [7, 0]


# --- known sets ---

PACS = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


def pacs(root: Path, lists: bool = True) -> Path:
    """An image of each class in each domain, and one more dog; 1-based lists."""
    for number, domain in enumerate(("art_painting", "cartoon", "photo", "sketch")):
        train: list[str] = []
        held: list[str] = []
        for label, name in enumerate((*PACS, "dog")):
            path = f"{domain}/{name}/pic_{label}.png"
            write(root / "kfold" / path, 10 * number + label)
            line = f"{path} {label % 7 + 1}\n"
            (held if label == 7 else train).append(line)
        if lists:
            (root / "splits").mkdir(exist_ok=True)
            (root / "splits" / f"{domain}_train_kfold.txt").write_text("".join(train))
            (root / "splits" / f"{domain}_crossval_kfold.txt").write_text("".join(held))
            (root / "splits" / f"{domain}_test_kfold.txt").write_text("".join(train + held))
    return root


def test_pacs_by_its_lists(root: Path) -> None:
    dataset = image_folder(set="pacs", root=str(pacs(root)), size=4)
    assert dataset.card.classes == PACS
    assert dataset.card.domains == ("art_painting", "cartoon", "photo", "sketch")
    assert dataset.train.y.tolist() == [*range(7)] * 4
    assert dataset.train.extra["domain"].tolist() == [0] * 7 + [1] * 7 + [2] * 7 + [3] * 7
    assert reds(dataset.test) == [7, 17, 27, 37]
    assert dataset.test.y.tolist() == [0] * 4
    assert dataset.card.mean == (0.485, 0.456, 0.406)
    some = image_folder(set="pacs", root=str(root), size=4, domains=("sketch", "photo"))
    assert some.card.domains == ("sketch", "photo")
    assert reds(some.test) == [37, 27]
    assert some.test.extra["domain"].tolist() == [0, 1]


def test_pacs_by_its_folders(root: Path) -> None:
    dataset = image_folder(set="pacs", root=str(pacs(root, lists=False)), size=4, test_share=0.5)
    # Two dogs a domain, one of them held out; of the single others none.
    assert dataset.test.y.tolist() == [0] * 4
    assert dataset.test.extra["domain"].tolist() == [0, 1, 2, 3]
    assert len(dataset.train) == 28


def test_a_set_that_lacks_lists_domains_or_classes(root: Path) -> None:
    pacs(root)
    (root / "splits" / "photo_train_kfold.txt").unlink()
    with pytest.raises(InputError, match=r"has list files, but not photo_train_kfold\.txt"):
        image_folder(set="pacs", root=str(root))
    for file in (root / "splits").iterdir():
        file.unlink()
    (root / "kfold" / "sketch").rename(root / "kfold" / "doodle")
    with pytest.raises(InputError, match=r"but lacks sketch and has doodle besides"):
        image_folder(set="pacs", root=str(root))
    (root / "kfold" / "doodle").rename(root / "kfold" / "Sketch")
    fill(root / "kfold", "photo/zebra/1.png")
    with pytest.raises(InputError, match=r"must hold the classes dog, .* but has zebra besides"):
        image_folder(set="pacs", root=str(root))
    with pytest.raises(InputError, match=r"dataset\.domains of pacs must be of art_painting"):
        image_folder(set="pacs", root=str(root), domains=("real",))


def test_office_home_names_need_not_be_exact(root: Path) -> None:
    classes = SETS["office-home"].classes
    assert len(classes) == 65
    for domain in ("Art", "Clipart", "Product", "real_world"):
        for name in classes:
            for i in range(2):
                write(root / "OfficeHome" / domain / name.upper() / f"{i}.png", 1, (1, 1))
    dataset = image_folder(set="office-home", root=str(root), size=2, test_share=0.5)
    assert dataset.card.classes == classes
    assert dataset.card.domains == ("Art", "Clipart", "Product", "Real World")
    assert np.bincount(dataset.test.y).tolist() == [4] * 65


def test_domainnet_lists(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("clipart", "real"):
        fill(root, f"{name}/bird/1.png {name}/cat/2.png", 0 if name == "real" else 40)
        (root / f"{name}_train.txt").write_text(f"{name}/bird/1.png 0\n{name}/cat/2.png 344\n")
        (root / f"{name}_test.txt").write_text(f"{name}/cat/2.png 344\n")
    options: dict[str, Any] = {
        "set": "domainnet",
        "root": str(root),
        "domains": ("clipart", "real"),
    }
    with pytest.raises(InputError, match=r"clipart/cat/2\.png is listed twice"):
        image_folder(**options)
    for name in ("clipart", "real"):
        (root / f"{name}_test.txt").write_text(f"{name}/cat/3.png 345\n")
    with pytest.raises(InputError, match=r"clipart_test\.txt must be in 0\.\.344, got 345"):
        image_folder(**options)
    for name in ("clipart", "real"):
        write(root / name / "cat" / "3.png", 90)
        (root / f"{name}_test.txt").write_text(f"{name}/cat/3.png 344\n")
    dataset = image_folder(**options, size=4)
    assert len(dataset.card.classes) == 345
    assert dataset.train.y.tolist() == [0, 344, 0, 344]
    assert reds(dataset.train) == [40, 41, 0, 1]
    with pytest.raises(InputError, match=r"has list files, but not infograph_train\.txt"):
        image_folder(set="domainnet", root=str(root))


def tiny_imagenet(root: Path) -> list[str]:
    wnids = [f"n{i:08}" for i in range(200)]
    (root / "wnids.txt").write_text("\n".join(reversed(wnids)))
    words = {wnid: f"thing {i}, object {i}" for i, wnid in enumerate(wnids)}
    words[wnids[4]] = words[wnids[7]] = "crane"
    lines = "\n".join(f"{wnid}\t{word}" for wnid, word in words.items())
    (root / "words.txt").write_text(f"n99999999\tnot in it\n{lines}\n")
    for i, wnid in enumerate(wnids):
        write(root / "train" / wnid / "images" / f"{wnid}_0.JPEG", i, (2, 2))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    write(root / "val" / "images" / "val_0.JPEG", 222, (2, 2))
    (root / "val" / "val_annotations.txt").write_text(f"val_0.JPEG\t{wnids[3]}\t0\t0\t1\t1\n")
    write(root / "test" / "images" / "test_0.JPEG", 111, (2, 2))
    return wnids


def test_tiny_imagenet(root: Path) -> None:
    wnids = tiny_imagenet(root)
    dataset = image_folder(set="tiny-imagenet", root=str(root), size=2)
    assert dataset.train.y.tolist() == [*range(200)]
    assert np.abs(np.array(reds(dataset.train)) - np.arange(200)).max() <= 3  # JPEG is lossy
    assert (len(dataset.test), dataset.test.y.tolist()) == (1, [3])
    assert dataset.card.classes[3] == "thing 3"
    assert dataset.card.classes[4] == f"crane ({wnids[4]})"
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn5\t0\t0\t1\t1\n")
    with pytest.raises(InputError, match=r"line 1 of .*val_annotations\.txt must be"):
        image_folder(set="tiny-imagenet", root=str(root))
    (root / "wnids.txt").unlink()
    with pytest.raises(InputError, match=r"wnids\.txt cannot be read"):
        image_folder(set="tiny-imagenet", root=str(root))


def test_imagenet_lt_lists(root: Path) -> None:
    names = ["train/n01/a.JPEG", "train/n02/b.JPEG", "val/n02/c.JPEG"]
    for red, name in enumerate(names):
        write(root / name, 50 * red)
    with pytest.raises(InputError, match=r"lacks ImageNet_LT_train\.txt, ImageNet_LT_val\.txt"):
        image_folder(set="imagenet-lt", root=str(root))
    for part, name, label in (
        ("train", names[0], 0),
        ("val", names[1], 999),
        ("test", names[2], 9),
    ):
        (root / f"ImageNet_LT_{part}.txt").write_text(f"{name} {label}\n")
    dataset = image_folder(set="imagenet-lt", root=str(root), size=4)
    assert len(dataset.card.classes) == 1000
    assert dataset.train.y.tolist() == [0]
    assert dataset.validation is not None
    assert dataset.validation.y.tolist() == [999]
    assert dataset.test.y.tolist() == [9]


def inaturalist(root: Path) -> Path:
    """Four training images of three users, one test image."""
    names = [f"train_val2018/Aves/{i}/{i}ab.jpg" for i in range(5)]
    for red, name in enumerate(names):
        write(root / name, 20 * red, (8, 8))
    (root / "iNaturalist18_train.txt").write_text(
        "".join(f"{name} {i}\n" for i, name in enumerate(names[:4]))
    )
    (root / "iNaturalist18_val.txt").write_text(f"{names[4]} 2\n")
    return root


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("u.csv", "user_id,image_id,class\n7,0ab,1\nanna,2ab,1\n7,3ab,1\n9,elsewhere,1\n"),
        ("u.json", json.dumps({"0ab.jpg": "7", "2ab.jpg": "anna", "3ab.jpg": 7})),
        (
            "u.json",
            json.dumps(
                {
                    "images": [
                        {"id": i, "file_name": f"train_val2018/Aves/{i}/{i}ab.jpg", "user_id": user}
                        for i, user in ((0, "7"), (2, "anna"), (3, "7"))
                    ]
                }
            ),
        ),
    ],
)
def test_owners_are_clients(root: Path, file: str, text: str) -> None:
    inaturalist(root)
    (root / file).write_text(text)
    dataset = image_folder(set="inaturalist", root=str(root), size=4, owners=file)
    # The second image has no user.
    assert dataset.train.y.tolist() == [0, 2, 3]
    assert dataset.train.extra["owner"].tolist() == [0, 1, 0]
    assert len(dataset.test) == 1
    assert "owner" not in dataset.test.extra
    assert dataset.card.classes[2] == "2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user_id,image_id\n7,elsewhere\n", r"names none of the training images: .*'elsewhere'"),
        ("a,b\n7,0ab\n", "must name for each image a user"),
        ("user_id,image_id\n", "names no image"),
        ("", "names no image"),
    ],
)
def test_bad_owner_files(root: Path, text: str, message: str) -> None:
    inaturalist(root)
    (root / "u.csv").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        image_folder(set="inaturalist", root=str(root), owners="u.csv")
    assert str(root / "u.csv") in str(caught.value)
    (root / "u.json").write_text("{")
    with pytest.raises(InputError, match=r"u\.json cannot be read"):
        image_folder(set="inaturalist", root=str(root), owners="u.json")
    with pytest.raises(InputError, match=r"dataset\.owners must be a file"):
        image_folder(set="inaturalist", root=str(root), owners="v.csv")


# --- errors ---


def test_broken_images_raise_or_are_skipped(root: Path) -> None:
    fill(root / "train", "a/1.png a/2.png b/3.png")
    fill(root / "test", "a/1.png b/2.png", 40)
    for path, keep in ((root / "train/a/2.png", 40), (root / "test/b/2.png", 0)):
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"train/a/2\.png is no image that can be read"):
        image_folder(root=str(root))
    with pytest.warns(UserWarning, match=r"left out 2 images .*b/2\.png, .*a/2\.png"):
        dataset = image_folder(root=str(root), on_error="skip")
    assert (reds(dataset.train), dataset.train.y.tolist()) == ([0, 2], [0, 1])
    assert reds(dataset.test) == [40]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(image_folder(root=str(root), on_error="skip").train) == 2
    assert not list((root.parent / "cache").glob(".*build*"))


def test_listed_image_that_is_missing(root: Path) -> None:
    fill(root, "a/1.png")
    (root / "train.txt").write_text("a/1.png 0\na/2.png 0\n")
    (root / "test.txt").write_text("a/3.png 0\n")
    with pytest.raises(InputError, match=r"a/2\.png is no image"):
        image_folder(root=str(root))
    (root / "test.txt").write_text("a/3.png\n")
    with pytest.raises(InputError, match=r"line 1 of .*test\.txt must be an image's path"):
        image_folder(root=str(root))
    (root / "test.txt").write_bytes(b"a/\xff.png 0\n")
    with pytest.raises(InputError, match=r"test\.txt is not UTF-8"):
        image_folder(root=str(root))


def test_pacs_lists_count_from_1(root: Path) -> None:
    pacs(root)
    (root / "splits" / "photo_train_kfold.txt").write_text("photo/dog/pic_0.png 0\n")
    with pytest.raises(InputError, match=r"the number of its class, at least 1"):
        image_folder(set="pacs", root=str(root))
    (root / "splits" / "photo_train_kfold.txt").write_text("photo/dog/pic_0.png 8\n")
    with pytest.raises(InputError, match=r"must be in 1\.\.7, got 8"):
        image_folder(set="pacs", root=str(root))


def test_folders_without_images_or_of_mixed_depth(root: Path) -> None:
    with pytest.raises(InputError, match="has no images in folders named for their classes"):
        image_folder(root=str(root))
    fill(root, "cat/1.png photo/dog/2.png")
    with pytest.raises(InputError, match=r"mixes folders of images \(cat/1\.png\) with folders"):
        image_folder(root=str(root))


def test_missing_folders_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        image_folder(set="domainnet")
    message = str(caught.value)
    expected = tmp_path / "home/.fedsim/data/domainnet"
    assert message.startswith(f"DomainNet was not found in {expected}: get it from")
    assert "ai.bu.edu/M3SDA" in message
    assert message.endswith(f"into {expected}")
    with pytest.raises(InputError, match=r"dataset\.root must be a folder of images where"):
        image_folder()
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        image_folder(root=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"set": "imagenet"}, r"dataset\.set must be null or one of pacs"),
        ({"size": 0}, r"dataset\.size must be at least 1"),
        ({"channels": 4}, r"dataset\.channels must be 1 or 3"),
        ({"split_seed": -1}, r"dataset\.split_seed must be at least 0"),
    ],
)
def test_wrong_options(root: Path, options: dict[str, Any], message: str) -> None:
    fill(root, "a/1.png a/2.png")
    with pytest.raises(InputError, match=message):
        image_folder(root=str(root), **options)


def test_sets_larger_than_a_block(root: Path) -> None:
    for i in range(600):
        write(root / "train" / "a" / f"{i:03}.png", i % 256, (2, 2))
    write(root / "test" / "a" / "1.png", 9, (2, 2))
    assert reds(image_folder(root=str(root), size=2).train) == [i % 256 for i in range(600)]
