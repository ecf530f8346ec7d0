"""Listings of the images below a folder, with class, domain and split; no image is opened."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from fedsim.data.loaders.lists import read_list
from fedsim.data.sources import fingerprint, refusing
from fedsim.errors import InputError, check, nearest

TRAIN, VALIDATION, TEST, WHOLE = range(4)
"""The splits an image can be of; `WHOLE` where the files are not divided."""

_SPLITS = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "test": TEST,
    "testing": TEST,
}
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}


Lists = dict[tuple[str | None, int], Path]
"""List files: (domain or None, split) -> file."""


class ListedImage(NamedTuple):
    """An image's path below the root, the number of its class, its split, its domain's number."""

    path: str
    label: int
    split: int
    domain: int = 0


@dataclass(frozen=True, eq=False)
class Listing:
    """n images: `paths` below `root`, in a fixed order, and int64 (n,) numbers for each.

    `labels` are numbers of `classes`, `domain` numbers of `domains` (all 0 where there are none),
    `splits` those of this module.
    """

    root: Path
    paths: list[str]
    labels: np.ndarray
    splits: np.ndarray
    domain: np.ndarray
    classes: tuple[str, ...]
    domains: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        root: Path,
        images: Iterable[ListedImage],
        classes: Sequence[str],
        domains: Sequence[str] = (),
    ) -> Listing:
        """Return the listing of these images."""
        rows = list(images)
        numbers = np.array([row[1:] for row in rows], np.int64).reshape(-1, 3)
        labels, splits, domain = np.ascontiguousarray(numbers.T)
        paths = [row.path for row in rows]
        return cls(root, paths, labels, splits, domain, tuple(classes), tuple(domains))

    def __len__(self) -> int:
        return len(self.paths)

    def keep(self, rows: np.ndarray) -> Listing:
        """Return the images at `rows` int64 (k,)."""
        return replace(
            self,
            paths=[self.paths[i] for i in rows],
            labels=self.labels[rows],
            splits=self.splits[rows],
            domain=self.domain[rows],
        )

    def only(self, what: Literal["classes", "domains"], names: Sequence[str] | None) -> Listing:
        """Return the images of the named ``classes`` or ``domains``, numbered in that order.

        Raises:
            InputError: a name that is not there, or repeated names.
        """
        if names is None:
            return self
        known: tuple[str, ...] = getattr(self, what)
        for name in names:
            if name not in known:
                shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
                raise InputError(
                    f"dataset.{what} must be of {shown or '(none)'}, got {name!r}."
                    f"{nearest(name, known)}"
                )
        unique = len(set(names)) == len(names) > 0
        check(unique, f"dataset.{what} must name at least one, none twice", tuple(names))
        number = np.full(len(known), -1, np.int64)
        number[[known.index(name) for name in names]] = np.arange(len(names))
        numbers = number[self.labels if what == "classes" else self.domain]
        kept = self.keep(np.flatnonzero(numbers >= 0))
        numbers = numbers[numbers >= 0]
        if what == "classes":
            return replace(kept, labels=numbers, classes=tuple(names))
        return replace(kept, domain=numbers, domains=tuple(names))

    def named(
        self, what: Literal["classes", "domains"], names: Sequence[str], known: Sequence[str]
    ) -> Listing:
        """Return the images of the named ``classes`` or ``domains``, of those a set is known for.

        Only letters and digits count: ``Real World`` matches ``real_world``.

        Raises:
            InputError: a name is missing, or there are some that are not `known`.
        """
        present = {canonical(name): name for name in getattr(self, what)}
        missing = [name for name in names if canonical(name) not in present]
        others = sorted(set(present) - {canonical(name) for name in known})
        if missing or others:
            lacks = f" lacks {', '.join(missing)}" if missing else ""
            has = f" has {', '.join(present[key] for key in others[:5])} besides" if others else ""
            raise InputError(
                f"{self.root} must hold the {what} {', '.join(names)}, but{lacks}"
                f"{' and' if lacks and has else ''}{has}; move what does not belong to the set, "
                "or leave dataset.set out to read any folder"
            )
        ordered = self.only(what, [present[canonical(name)] for name in names])
        if what == "classes":
            return replace(ordered, classes=tuple(names))
        return replace(ordered, domains=tuple(names))


def canonical(name: str) -> str:
    """Return the letters and digits of a name in lower case."""
    return re.sub(r"[\W_]", "", name.lower())


def tree_fingerprint(root: Path) -> str:
    """Return 16 hex digits that change when files are added, removed or renamed below `root`.

    It covers folders to a depth of 3 and the list files of the upper two, as an image set may have
    a million files: an image overwritten in place goes unnoticed.

    Raises:
        InputError: the folder cannot be read.
    """
    tracked = [root]
    level = [root]
    for depth in range(3):
        below = []
        for folder in level:
            for entry in _entries(folder):
                if entry.is_dir():
                    below.append(Path(entry.path))
                elif depth < 2 and entry.name.endswith((".txt", ".csv", ".json")):
                    tracked.append(Path(entry.path))
        tracked += below
        level = below
    return fingerprint(tracked)


def scan(root: Path) -> Listing:
    """List the images of folders named for classes, perhaps in folders of domains and of splits.

    The layouts: ``class/*.jpg``, ``domain/class/*.jpg``, and either with ``train``, ``val`` and
    ``test`` above the classes or above the domains; a lone folder ``images`` in between does not
    count.

    Raises:
        InputError: no image is found, or classes and domains lie side by side.
    """
    images = sorted(_collect(root, "", None, WHOLE), key=lambda image: image[3])
    if not images:
        raise InputError(
            f"{root} has no images in folders named for their classes (class/*.jpg or "
            "domain/class/*.jpg, perhaps below train, val and test)"
        )
    domains = sorted({domain for domain, *_ in images if domain is not None})
    alone = next((path for domain, *_, path in images if domain is None), None)
    if domains and alone is not None:
        raise InputError(
            f"{root} mixes folders of images ({alone}) with folders of classes "
            f"({domains[0]}); move one kind elsewhere"
        )
    classes = sorted({name for _, name, _, _ in images})
    for name in (*classes, *domains):
        if not name.isprintable():
            raise InputError(f"{root} has a folder {name!r}, which is not UTF-8 text; rename it")
    class_number = {name: i for i, name in enumerate(classes)}
    domain_number = {None: 0} | {name: i for i, name in enumerate(domains)}
    rows = (
        ListedImage(path, class_number[name], split, domain_number[domain])
        for domain, name, split, path in images
    )
    return Listing.of(root, rows, classes, domains)


def scan_lists(
    root: Path,
    lists: Lists,
    num_classes: int | None = None,
    first: int = 0,
    images: str = "",
) -> Listing:
    """List the images of list files, one for each (domain or None, split), below ``root/images``.

    A class takes the name of the folder that holds all its images, or else its number. `first` is
    the number of the first class.

    Raises:
        InputError: what `read_list` refuses, a class that is not below `num_classes`, an image
            listed twice.
    """
    rows: list[ListedImage] = []
    domains = list(dict.fromkeys(name for name, _ in lists if name is not None))
    for (name, split), file in lists.items():
        lines = read_list(file, first)
        highest = max(label for _, label in lines)
        if num_classes is not None and highest >= num_classes:
            raise InputError(
                f"classes in {file} must be in {first}..{num_classes - 1 + first}, got "
                f"{highest + first}; replace the file"
            )
        prefix = f"{images}/" if images else ""
        domain = 0 if name is None else domains.index(name)
        rows += [ListedImage(f"{prefix}{path}", label, split, domain) for path, label in lines]
    twice = [path for path, count in Counter(row.path for row in rows).items() if count > 1]
    if twice:
        named = ", ".join(str(file) for file in lists.values())
        raise InputError(f"{twice[0]} is listed twice in {named}; remove one of the lines")
    count = num_classes or max(row.label for row in rows) + 1
    return Listing.of(root, rows, _class_names(rows, count), domains)


def _class_names(rows: Sequence[ListedImage], count: int) -> tuple[str, ...]:
    folders: list[set[str]] = [set() for _ in range(count)]
    for row in rows:
        folders[row.label].add(row.path.rpartition("/")[0].rpartition("/")[2])
    names = [next(iter(f)) if len(f) == 1 else "" for f in folders]
    unique = len(set(names)) == len(names) and all(names)
    return tuple(names) if unique else tuple(map(str, range(count)))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with refusing(f"{folder} cannot be read: {{error}}", OSError), os.scandir(folder) as entries:
        return [e for e in entries if not e.name.startswith((".", "__MACOSX"))]


def _collect(
    root: Path, at: str, domain: str | None, split: int
) -> Iterator[tuple[str | None, str, int, str]]:
    """Yield (domain, class, split, path) of the images below the folder `at` of `root`."""
    folders = sorted(e.name for e in _entries(root / at) if e.is_dir())
    prefix = f"{at}/" if at else ""
    if split == WHOLE and "train" in {name.lower().removesuffix("ing") for name in folders}:
        for name in folders:
            if name.lower() in _SPLITS:
                yield from _collect(root, prefix + name, domain, _SPLITS[name.lower()])
        return
    if folders == ["images"]:
        yield from _collect(root, f"{prefix}images", domain, split)
        return
    for name in folders:
        inner = prefix + name
        entries = _entries(root / inner)
        if [e.name for e in entries if e.is_dir()] == ["images"]:
            inner += "/images"
            entries = _entries(root / inner)
        images = [e.name for e in entries if Path(e.name).suffix.lower() in _SUFFIXES]
        if images:
            yield from ((domain, name, split, f"{inner}/{image}") for image in images)
        elif domain is None and any(e.is_dir() for e in entries):
            yield from _collect(root, inner, name, split)
