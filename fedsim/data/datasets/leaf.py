"""LEAF's JSON files: samples that come with the user they are from, each a natural client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedsim.data.cache import Built, Stream, cached_arrays
from fedsim.data.dataset import Card, Dataset, Split
from fedsim.data.loaders.decoding import cached_stats
from fedsim.data.sources import data_folders, fingerprint, track
from fedsim.data.tokens import UNKNOWN
from fedsim.errors import InputError, check

_LENGTH = 80  # characters that go before the one to be told
_CHARACTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
_NUMBERS = {character: i for i, character in enumerate(_CHARACTERS)}
_LICENCE = "BSD-2-Clause (the programs); see source"
_SOURCE = "Caldas et al. 2018, arXiv:1812.01097; github.com/TalwalkarLab/leaf"

SETS = {
    "femnist": Card(
        title="FEMNIST",
        source=_SOURCE,
        licence=_LICENCE,
        classes=tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"),
        input_shape=(1, 28, 28),
        mean=(0.0,),  # that of the files is computed at the first use
        std=(1.0,),
        description=(
            "Handwritten digits and letters of 3,550 writers, 805,263 images in all: dark ink on "
            "white, the other way round than MNIST. The column `owner` is the writer."
        ),
    ),
    "shakespeare": Card(
        title="Shakespeare",
        source=_SOURCE,
        licence=f"{_LICENCE}; the text is in the public domain",
        classes=("newline", "space", *_CHARACTERS[2:]),
        input_shape=(_LENGTH, len(_CHARACTERS) + 2),
        mean=(),
        std=(),
        description=(
            "The next character after 80 of a play, of 1,129 speaking roles. The column `owner` "
            "is the role."
        ),
        kind="text",
    ),
}


def leaf(*, set: Literal["femnist", "shakespeare"] = "femnist", root: str | None = None) -> Dataset:
    """LEAF's FEMNIST or Shakespeare from the user's JSON files; writers and roles are owners.

    `root` is the folder ``data`` that LEAF's ``preprocess.sh`` made, with folders ``train`` and
    ``test`` of JSON files, or the folder above it; without it, the usual folders are looked
    through. The column ``owner`` int64 (n,) counts the users of both splits in the order of their
    names.

    Raises:
        InputError: files that are missing, damaged or of another form; a label or a pixel that is
            out of range.
    """
    check(set in SETS, f"dataset.set must be one of {', '.join(SETS)}", set)
    files = _find(set, root)
    every = [path for paths in files.values() for path in paths]
    key = f"leaf-1-{set}-{fingerprint(every)}"
    arrays = cached_arrays(key, lambda: _build(set, files))
    card = SETS[set]
    vocabulary: tuple[str, ...] = ()
    if card.kind == "text":
        vocabulary = ("", "<unk>", *_CHARACTERS)
    else:
        mean, std = cached_stats(key, arrays["train-x"])
        card = replace(card, mean=mean, std=std)

    def split(part: str) -> Split:
        return Split(arrays[f"{part}-x"], arrays[f"{part}-y"], {"owner": arrays[f"{part}-owner"]})

    return Dataset(set, split("train"), split("test"), card, vocabulary=vocabulary)


def _find(name: str, root: str | None) -> dict[str, list[Path]]:
    """Return the JSON files of both parts, of the first folder that has any."""
    folders = data_folders(name, root)
    for folder in folders:
        for inner in (folder, folder / "data"):
            files = {p: sorted((inner / p).glob("*.json")) for p in ("train", "test")}
            missing = [part for part, paths in files.items() if not paths]
            if not missing:
                return files
            if len(missing) == 1:
                raise InputError(
                    f"{inner / missing[0]} holds no JSON file: run LEAF's preprocess.sh with "
                    "-t sample, which divides each user's samples"
                )
    raise InputError(
        f"LEAF's {SETS[name].title} was not found in {', '.join(map(str, folders))}: run "
        f"data/{name}/preprocess.sh -s niid --sf 1.0 -k 0 -t sample of "
        "github.com/TalwalkarLab/leaf and put the folders train and test of JSON files that it "
        f"makes into {folders[-1]}"
    )


@dataclass
class _Part:
    """The samples of one split, a piece for each user and file."""

    x: list[np.ndarray] = field(default_factory=list)
    y: list[np.ndarray] = field(default_factory=list)
    users: list[str] = field(default_factory=list)


def _build(name: str, files: dict[str, list[Path]]) -> Built:
    read = _images if name == "femnist" else _characters
    parts = {}
    for part, paths in files.items():
        parts[part] = _Part()
        for path in track(paths, f"reading {name}, {part}"):
            for user, samples in _users(path):
                x, y = read(samples, f"user {user!r} of {path}")
                if len(y):
                    parts[part].x.append(x)
                    parts[part].y.append(y)
                    parts[part].users.append(user)
        check(bool(parts[part].y), f"{paths[0].parent} must hold samples", 0)
    number = {
        user: i for i, user in enumerate(sorted({u for p in parts.values() for u in p.users}))
    }
    arrays: dict[str, np.ndarray | Stream] = {}
    for part, content in parts.items():
        sizes = [len(y) for y in content.y]
        first = content.x[0]
        # Not put together in memory, as that would hold all samples twice.
        arrays[f"{part}-x"] = Stream((sum(sizes), *first.shape[1:]), first.dtype, content.x)
        arrays[f"{part}-y"] = np.concatenate(content.y)
        owners = np.array([number[user] for user in content.users], np.int64)
        arrays[f"{part}-owner"] = np.repeat(owners, sizes)
    return arrays


def _users(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each user of a file and its samples, a mapping with lists x and y of equal length."""
    try:
        content = json.loads(path.read_bytes())
        users, data = content["users"], content["user_data"]
        rows = [(str(user), data[user]["x"], data[user]["y"]) for user in users]
        right = all(isinstance(v, list) for _, *values in rows for v in values)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as JSON ({error}); run LEAF's preprocess.sh again"
        ) from error
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path} lacks {error}: it is no file of LEAF's preprocess.sh") from error
    check(right, f"x and y of each user must be lists in {path}", "something else")
    for user, x, y in rows:
        check(
            len(x) == len(y),
            f"user {user!r} of {path} must have as many x as y",
            f"{len(x)} and {len(y)}",
        )
        yield user, {"x": x, "y": y}


def _images(samples: dict[str, Any], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images uint8 (n, 28, 28, 1), in the file 784 numbers in [0, 1], and labels."""
    if not samples["y"]:
        return np.empty((0, 28, 28, 1), np.uint8), np.empty(0, np.int64)
    try:
        x = np.array(samples["x"], np.float64)
        labels = np.array(samples["y"])
    except (ValueError, TypeError) as error:
        raise InputError(f"{where} must have 784 numbers an image and a label each") from error
    check(x.shape[1:] == (784,), f"{where} must have 784 numbers an image", x.shape[1:])
    # Not written as `min < 0 or ...`, which is false of NaN.
    inside = bool(x.min() >= 0) and bool(x.max() <= 1)
    check(inside, f"pixels must be in [0, 1] of {where}", (float(x.min()), float(x.max())))
    check(
        labels.ndim == 1 and labels.dtype.kind in "iu",
        f"labels must be whole numbers of {where}",
        str(labels[:3]),
    )
    check(
        bool(labels.min() >= 0) and bool(labels.max() < 62),
        f"labels must be in 0..61 of {where}",
        (int(labels.min()), int(labels.max())),
    )
    return np.rint(x * 255).astype(np.uint8).reshape(-1, 28, 28, 1), labels.astype(np.int64)


def _characters(samples: dict[str, Any], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the texts int32 (n, 80) and the number of the next character.

    Samples whose next character is not among LEAF's 80 are left out.
    """
    rows, labels = [], []
    for text, following in zip(samples["x"], samples["y"], strict=True):
        right = isinstance(text, str) and len(text) == _LENGTH and isinstance(following, str)
        check(right, f"{where} must have texts of {_LENGTH} characters", str(text)[:_LENGTH])
        if len(following) == 1 and following in _NUMBERS:
            rows.append([_NUMBERS[c] + 2 if c in _NUMBERS else UNKNOWN for c in text])
            labels.append(_NUMBERS[following])
    return np.array(rows, np.int32).reshape(-1, _LENGTH), np.array(labels, np.int64)
