"""Image sets that are folders of files, with or without list files, from the user's own copy.

An image is decoded once, when the set is first opened, by several threads; sets may be larger
than memory.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from fedsim.data.arrays import dataset_of, names_of
from fedsim.data.cache import Array, Arrays, Stream, cached_arrays
from fedsim.data.dataset import Card, Dataset
from fedsim.data.images import Fit, read_image
from fedsim.data.loaders.decoding import image_rows, unreadable
from fedsim.data.loaders.folders import TEST, TRAIN, VALIDATION, WHOLE, Listing, tree_fingerprint
from fedsim.data.loaders.holdout import held_out
from fedsim.data.loaders.image_sets import IMAGE_SETS, list_images
from fedsim.data.loaders.owners import owner_numbers, read_owners
from fedsim.data.sources import data_folders, digest, fingerprint, not_found
from fedsim.data.tokens import to_bytes
from fedsim.errors import InputError, check

SETS = {name: known.card for name, known in IMAGE_SETS.items()}

SetName = Literal[
    "pacs", "office-caltech10", "office-home", "domainnet", "tiny-imagenet", "imagenet-lt",
    "inaturalist",
]  # fmt: skip


def image_folder(
    *,
    set: SetName | None = None,
    root: str | None = None,
    size: int = 64,
    channels: Literal[1, 3] = 3,
    fit: Fit = "squash",
    domains: tuple[str, ...] | None = None,
    classes: tuple[str, ...] | None = None,
    test_share: float = 0.2,
    split_seed: int = 0,
    owners: str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> Dataset:
    """Folders of image files: PACS, Office-Home, DomainNet, ImageNet-LT, iNaturalist, or any other.

    Without `set` any folder `root` is read: ``class/*.jpg``, ``domain/class/*.jpg``, either with
    ``train``, ``val`` and ``test`` above the classes or the domains, or list files ``train.txt``,
    ``val.txt``, ``test.txt`` in `root` with lines ``path number``, classes numbered from 0. A
    known `set` is searched for in `root` or the usual folders, has its official classes and
    domains, and is divided by its official list files if present. Validation images are the test
    split where there is no other. Images that are not divided are split at random with
    `split_seed`: `test_share` of each class in each domain.

    `size` is the height and width in pixels: ``squash`` stretches an image, ``crop`` cuts its
    middle out. `domains` and `classes` keep the named ones, numbered in that order. `owners` is a
    CSV or JSON file (below `root` or anywhere) with the user of each image: training images then
    have the column ``owner``, and those without a user are left out. A broken image is an error,
    or with `on_error` ``skip`` is left out with a warning (all images are then read twice).

    Files that are added, removed or renamed make the arrays anew; an image overwritten in place
    does not.

    Raises:
        InputError: a folder, list or image that is missing or damaged, a class out of range, an
            unknown set, domain or class, a wrong option.
    """
    check(set is None or set in SETS, f"dataset.set must be null or one of {', '.join(SETS)}", set)
    check(size >= 1, "dataset.size must be at least 1 pixel", size)
    check(channels in (1, 3), "dataset.channels must be 1 or 3", channels)
    folder = _find(set, root)
    owner_file = _owner_file(folder, owners)
    files = [tree_fingerprint(folder), *([fingerprint([owner_file])] if owner_file else [])]
    options = [set, size, channels, fit, domains, classes, test_share, split_seed, on_error]
    key = f"image-folder-1-{set or 'any'}-{digest(json.dumps([files, options]))}"

    def build() -> Arrays:
        # The test split does not depend on which classes and domains are kept.
        listing = _with_test(list_images(set, folder, domains))
        listing = listing.only("domains", domains).only("classes", classes)
        owner = None
        if owner_file is not None:
            listing, owner = _with_owners(listing, owner_file)
        if on_error == "skip":
            rows = _readable(listing)
            listing, owner = listing.keep(rows), None if owner is None else owner[rows]
        listing = replace(listing, splits=_divide(listing, test_share, split_seed))
        return _arrays(listing, (size, size, channels), fit, owner)

    arrays = cached_arrays(key, build)
    card = SETS[set] if set else Card(folder.name, str(folder), "see source", ())
    names = {name: names_of(arrays[name]) for name in ("classes", "domains")}
    if set is None:
        within = f" in {len(names['domains'])} domains" if names["domains"] else ""
        number = f"{len(arrays['train-x']):,} training images"
        card = replace(card, description=f"{number}{within}, resized.")
    card = replace(card, classes=names["classes"], domains=names["domains"])
    own_stats = set is None or channels == 1
    return dataset_of(set or "image-folder", arrays, card, stats_key=key if own_stats else None)


def _find(name: str | None, root: str | None) -> Path:
    if name is None and root is None:
        raise InputError("dataset.root must be a folder of images where dataset.set is null")
    folders = data_folders(name or "image-folder", root)
    for folder in folders:
        if folder.is_dir():
            return folder
    if name is None:
        raise InputError(
            f"there is no folder {folders[0]}; dataset.root must be a folder of images"
        )
    advice = f"get it from its authors ({SETS[name].source}) and unpack it into {folders[-1]}"
    raise not_found(SETS[name].title, folders, advice)


def _owner_file(folder: Path, owners: str | None) -> Path | None:
    if owners is None:
        return None
    for path in (folder / owners, Path(owners).expanduser()):
        if path.is_file():
            return path
    raise InputError(f"dataset.owners must be a file below {folder} or anywhere, got {owners!r}")


def _readable(listing: Listing) -> np.ndarray:
    """Return the rows of images that can be decoded, int64 (k,); warn of the others."""
    paths = [listing.root / path for path in listing.paths]
    broken = unreadable(paths, read_image)
    if broken:
        shown = ", ".join(str(paths[i]) for i in broken[:3]) + (", ..." if len(broken) > 3 else "")
        warnings.warn(f"left out {len(broken)} images that cannot be read: {shown}", stacklevel=2)
    return np.setdiff1d(np.arange(len(listing)), broken)


def _arrays(
    listing: Listing, shape: tuple[int, int, int], fit: Fit, owner: np.ndarray | None
) -> Arrays:
    arrays: dict[str, Array] = {
        "classes": to_bytes(listing.classes),
        "domains": to_bytes(listing.domains),
    }
    for split, name in ((TRAIN, "train"), (VALIDATION, "validation"), (TEST, "test")):
        rows = np.flatnonzero(listing.splits == split)
        if len(rows) == 0:
            if split == VALIDATION:
                continue
            raise InputError(
                f"{listing.root} has no {name} images of the classes and domains asked for"
            )
        paths = [listing.root / listing.paths[i] for i in rows]
        images = image_rows(paths, shape, f"reading {name} images", fit)
        arrays[f"{name}-x"] = Stream((len(rows), *shape), np.uint8, images)
        arrays[f"{name}-y"] = listing.labels[rows]
        if listing.domains:
            arrays[f"{name}-extra-domain"] = listing.domain[rows]
        if owner is not None and split == TRAIN:
            arrays[f"{name}-extra-owner"] = owner[rows]
    return arrays


def _with_owners(listing: Listing, file: Path) -> tuple[Listing, np.ndarray]:
    """Leave out training images without a user; return the users' numbers too, int64 (n,)."""
    train = np.flatnonzero((listing.splits == TRAIN) | (listing.splits == WHOLE))
    check(len(train) > 0, f"{listing.root} must have training images", 0)
    numbers, _ = owner_numbers([listing.paths[i] for i in train], read_owners(file), file)
    owner = np.full(len(listing), -1, np.int64)
    owner[train] = numbers
    without = train[numbers < 0]
    rows = np.setdiff1d(np.arange(len(listing)), without)
    return listing.keep(rows), owner[rows]


def _with_test(listing: Listing) -> Listing:
    """Return the images with a test split, or all as `WHOLE`."""
    if (listing.splits == TEST).any():
        return listing
    validation = listing.splits == VALIDATION
    if validation.any():
        return replace(listing, splits=np.where(validation, TEST, listing.splits))
    return replace(listing, splits=np.full(len(listing), WHOLE))


def _divide(listing: Listing, test_share: float, seed: int) -> np.ndarray:
    """Return the split of each image, none `WHOLE`: int64 (n,)."""
    if not (listing.splits == WHOLE).any():
        return listing.splits
    groups = listing.domain * len(listing.classes) + listing.labels
    return np.where(held_out(groups, test_share, seed), TEST, TRAIN)
