"""Which images there are below a folder, with class, domain and part, before any is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fedsim.data.loaders.lists import read_list
from fedsim.data.sources import fingerprint
from fedsim.errors import InputError, check, nearest

TRAIN, VALIDATION, TEST, WHOLE = range(4)
"""The parts an image can be of; `WHOLE` where the files are not divided."""

_PARTS = {
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
"""List files: (domain or None, part) -> file."""


@dataclass(frozen=True, eq=False)
class Listing:
    """n images: `paths` below `root`, in a fixed order, and int64 (n,) numbers for each.

    `labels` are numbers of `classes`, `domain` numbers of `domains` (all 0 where there are none),
    `parts` those of this module.
    """

    root: Path
    paths: list[str]
    labels: np.ndarray
    parts: np.ndarray
    classes: tuple[str, ...]
    domain: np.ndarray
    domains: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.paths)

    def keep(self, rows: np.ndarray) -> Listing:
        """Return the images at `rows` int64 (k,)."""
        return replace(
            self,
            paths=[self.paths[i] for i in rows],
            labels=self.labels[rows],
            parts=self.parts[rows],
            domain=self.domain[rows],
        )

    def only(self, what: str, names: Sequence[str] | None) -> Listing:
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
        right = len(set(names)) == len(names) > 0
        check(right, f"dataset.{what} must name at least one, none twice", tuple(names))
        number = np.full(len(known), -1, np.int64)
        number[[known.index(name) for name in names]] = np.arange(len(names))
        numbers = number[self.labels if what == "classes" else self.domain]
        kept = self.keep(np.flatnonzero(numbers >= 0))
        numbers = numbers[numbers >= 0]
        if what == "classes":
            return replace(kept, labels=numbers, classes=tuple(names))
        return replace(kept, domain=numbers, domains=tuple(names))

    def named(self, what: str, names: Sequence[str], known: Sequence[str]) -> Listing:
        """Return the images of the named ``classes`` or ``domains``, of those a set is known for.

        Letters and digits alone count: ``Real World`` is ``real_world``.

        Raises:
            InputError: a name is missing, or there are some that are not `known`.
        """
        found = {canonical(name): name for name in getattr(self, what)}
        missing = [name for name in names if canonical(name) not in found]
        others = sorted(set(found) - {canonical(name) for name in known})
        if missing or others:
            lacks = f" lacks {', '.join(missing)}" if missing else ""
            has = f" has {', '.join(found[key] for key in others[:5])} besides" if others else ""
            raise InputError(
                f"{self.root} must hold the {what} {', '.join(names)}, but{lacks}"
                f"{' and' if lacks and has else ''}{has}; move what does not belong to the set, "
                "or leave dataset.set out to read any folder"
            )
        ordered = self.only(what, [found[canonical(name)] for name in names])
        if what == "classes":
            return replace(ordered, classes=tuple(names))
        return replace(ordered, domains=tuple(names))


def canonical(name: str) -> str:
    """Return the letters and digits of a name in lower case."""
    return re.sub(r"[\W_]", "", name.lower())


def tree_fingerprint(root: Path) -> str:
    """Return 16 hex digits that change when files are added, removed or renamed below `root`.

    Only folders, to a depth of 3, and the list files of the upper two are looked at, as an image
    set may have a million files: an image that is overwritten in place is not noticed.

    Raises:
        InputError: the folder cannot be read.
    """
    seen = [root]
    level = [root]
    for depth in range(3):
        below = []
        for folder in level:
            for entry in _entries(folder):
                if entry.is_dir():
                    below.append(Path(entry.path))
                elif depth < 2 and entry.name.endswith((".txt", ".csv", ".json")):
                    seen.append(Path(entry.path))
        seen += below
        level = below
    return fingerprint(seen)


def scan(root: Path) -> Listing:
    """List the images of folders named for classes, perhaps in folders of domains and of parts.

    The layouts: ``class/*.jpg``, ``domain/class/*.jpg``, and either with ``train``, ``val`` and
    ``test`` above the classes or above the domains; a lone folder ``images`` in between does not
    count.

    Raises:
        InputError: no image is found, or classes and domains lie side by side.
    """
    found = sorted(_collect(root, "", None, WHOLE), key=lambda image: image[3])
    if not found:
        raise InputError(
            f"{root} has no images in folders named for their classes (class/*.jpg or "
            "domain/class/*.jpg, perhaps below train, val and test)"
        )
    domains = sorted({domain for domain, *_ in found if domain is not None})
    alone = next((path for domain, _, _, path in found if domain is None), None)
    if domains and alone is not None:
        raise InputError(
            f"{root} mixes folders of images ({alone}) with folders of classes "
            f"({domains[0]}); move one kind elsewhere"
        )
    classes = sorted({name for _, name, _, _ in found})
    class_number = {name: i for i, name in enumerate(classes)}
    for name in (*classes, *domains):
        if not name.isprintable():
            raise InputError(f"{root} has a folder {name!r}, which is not UTF-8 text; rename it")
    domain_number = {None: 0} | {name: i for i, name in enumerate(domains)}
    return Listing(
        root,
        [path for *_, path in found],
        np.array([class_number[name] for _, name, _, _ in found], np.int64),
        np.array([part for _, _, part, _ in found], np.int64),
        tuple(classes),
        np.array([domain_number[domain] for domain, *_ in found], np.int64),
        tuple(domains),
    )


def listed(
    root: Path,
    lists: Lists,
    num_classes: int | None = None,
    first: int = 0,
    images: str = "",
) -> Listing:
    """List the images of list files, one for each (domain or None, part), below ``root/images``.

    A class is named as the folder that its images lie in, by its number if they do not lie in
    one. `first` is the number of the first class.

    Raises:
        InputError: what `read_list` refuses, a class that is not below `num_classes`, an image
            that is listed in two parts.
    """
    paths: list[str] = []
    labels, parts, domain = [], [], []
    domains = list(dict.fromkeys(name for name, _ in lists if name is not None))
    for (name, part), file in lists.items():
        rows = read_list(file, first)
        highest = max(label for _, label in rows)
        if num_classes is not None and highest >= num_classes:
            raise InputError(
                f"classes in {file} must be in {first}..{num_classes - 1 + first}, got "
                f"{highest + first}; replace the file"
            )
        prefix = f"{images}/" if images else ""
        paths += [f"{prefix}{path}" for path, _ in rows]
        labels += [label for _, label in rows]
        parts += [part] * len(rows)
        domain += [domains.index(name) if name is not None else 0] * len(rows)
    if len(set(paths)) < len(paths):
        seen: set[str] = set()
        twice = ""
        for twice in paths:
            if twice in seen:
                break
            seen.add(twice)
        named = ", ".join(str(file) for file in lists.values())
        raise InputError(f"{twice} is listed twice in {named}; remove one of the lines")
    count = max(labels) + 1 if num_classes is None else num_classes
    return Listing(
        root,
        paths,
        np.array(labels, np.int64),
        np.array(parts, np.int64),
        _class_names(paths, labels, count),
        np.array(domain, np.int64),
        tuple(domains),
    )


def _class_names(paths: Sequence[str], labels: Sequence[int], count: int) -> tuple[str, ...]:
    folders: list[set[str]] = [set() for _ in range(count)]
    for path, label in zip(paths, labels, strict=True):
        folders[label].add(path.rpartition("/")[0].rpartition("/")[2])
    names = [next(iter(f)) if len(f) == 1 else "" for f in folders]
    unique = len(set(names)) == len(names) and all(names)
    return tuple(names) if unique else tuple(map(str, range(count)))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if not e.name.startswith((".", "__MACOSX"))]
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error}") from error


def _collect(
    root: Path, at: str, domain: str | None, part: int
) -> Iterator[tuple[str | None, str, int, str]]:
    """Yield (domain, class, part, path) of the images below the folder `at` of `root`."""
    folders = sorted(e.name for e in _entries(root / at) if e.is_dir())
    prefix = f"{at}/" if at else ""
    if part == WHOLE and "train" in {name.lower().removesuffix("ing") for name in folders}:
        for name in folders:
            if name.lower() in _PARTS:
                yield from _collect(root, prefix + name, domain, _PARTS[name.lower()])
        return
    if folders == ["images"]:
        yield from _collect(root, f"{prefix}images", domain, part)
        return
    for name in folders:
        inner = prefix + name
        entries = _entries(root / inner)
        if [e.name for e in entries if e.is_dir()] == ["images"]:
            inner += "/images"
            entries = _entries(root / inner)
        images = [e.name for e in entries if Path(e.name).suffix.lower() in _SUFFIXES]
        if images:
            yield from ((domain, name, part, f"{inner}/{image}") for image in images)
        elif domain is None and any(e.is_dir() for e in entries):
            yield from _collect(root, inner, name, part)
