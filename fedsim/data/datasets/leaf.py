"""LEAF's FEMNIST and Shakespeare: samples by user, each a natural client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedsim.data.arrays import dataset_of, split_arrays
from fedsim.data.cache import Array, Arrays, Stream, cached_arrays
from fedsim.data.dataset import Card, Dataset
from fedsim.data.sources import data_folders, fingerprint, not_found, refusing, track
from fedsim.data.tokens import UNKNOWN
from fedsim.errors import InputError, check

_LENGTH = 80  # characters before the one to predict
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
        description=(
            "The next character after 80 of a play, of 1,129 speaking roles. The column `owner` "
            "is the role."
        ),
        kind="text",
    ),
}


def leaf(*, set: Literal["femnist", "shakespeare"] = "femnist", root: str | None = None) -> Dataset:
    """LEAF's FEMNIST or Shakespeare from the user's JSON files; writers and roles are owners.

    `root` is the folder ``data`` written by LEAF's ``preprocess.sh``, with folders ``train`` and
    ``test`` of JSON files, or the folder above it; without it, the usual folders are searched. The
    column ``owner`` int64 (n,) numbers the users of both splits in the order of their names.

    Raises:
        InputError: files that are missing, damaged or of another form; a label or a pixel that is
            out of range.
    """
    check(set in SETS, f"dataset.set must be one of {', '.join(SETS)}", set)
    files = _find(set, root)
    key = f"leaf-1-{set}-{fingerprint(path for paths in files.values() for path in paths)}"
    arrays = cached_arrays(key, lambda: _build(set, files))
    vocabulary = ("", "<unk>", *_CHARACTERS) if set == "shakespeare" else ()
    return dataset_of(set, arrays, SETS[set], vocabulary, stats_key=key)


def _find(name: str, root: str | None) -> dict[str, list[Path]]:
    """Return the JSON files of both splits, of the first folder that has any."""
    folders = data_folders(name, root)
    for folder in folders:
        for inner in (folder, folder / "data"):
            files = {p: sorted((inner / p).glob("*.json")) for p in ("train", "test")}
            missing = [split for split, paths in files.items() if not paths]
            if not missing:
                return files
            if len(missing) == 1:
                raise InputError(
                    f"{inner / missing[0]} holds no JSON file: run LEAF's preprocess.sh with "
                    "-t sample, which divides each user's samples"
                )
    raise not_found(
        f"LEAF's {SETS[name].title}",
        folders,
        f"run data/{name}/preprocess.sh -s niid --sf 1.0 -k 0 -t sample of "
        "github.com/TalwalkarLab/leaf and put the folders train and test of JSON files that it "
        f"makes into {folders[-1]}",
    )


def _build(name: str, files: dict[str, list[Path]]) -> Arrays:
    read = _images if name == "femnist" else _characters
    pieces: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {}  # user, x, y of a file
    for split, paths in files.items():
        pieces[split] = []
        for path in track(paths, f"reading {name}, {split}"):
            for user, samples in _users(path):
                x, y = read(samples, f"user {user!r} of {path}")
                if len(y):
                    pieces[split].append((user, x, y))
        check(bool(pieces[split]), f"{paths[0].parent} must hold samples", 0)
    users = sorted({user for rows in pieces.values() for user, *_ in rows})
    number = {user: i for i, user in enumerate(users)}
    arrays: dict[str, Array] = {}
    for split, rows in pieces.items():
        sizes, first = [len(y) for *_, y in rows], rows[0][1]
        owners = np.array([number[user] for user, *_ in rows], np.int64)
        columns: dict[str, Array] = {
            # Not concatenated in memory, as that would hold all samples twice.
            "x": Stream((sum(sizes), *first.shape[1:]), first.dtype, [x for _, x, _ in rows]),
            "y": np.concatenate([y for *_, y in rows]),
            "owner": np.repeat(owners, sizes),
        }
        arrays |= split_arrays(split, columns)
    return arrays


def _users(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each user of a file and its samples, a mapping with lists x and y of equal length."""
    lacking = f"{path} lacks {{error}}: it is no file of LEAF's preprocess.sh"
    damaged = f"{path} cannot be read as JSON ({{error}}); run LEAF's preprocess.sh again"
    with (
        refusing(damaged, OSError, ValueError, RecursionError),
        refusing(lacking, KeyError, TypeError, IndexError),
    ):
        content = json.loads(path.read_bytes())
        users, data = content["users"], content["user_data"]
        rows = [(str(user), data[user]["x"], data[user]["y"]) for user in users]
        are_lists = all(isinstance(v, list) for _, *values in rows for v in values)
    check(are_lists, f"x and y of each user must be lists in {path}", "something else")
    for user, x, y in rows:
        requirement = f"user {user!r} of {path} must have as many x as y"
        check(len(x) == len(y), requirement, f"{len(x)} and {len(y)}")
        yield user, {"x": x, "y": y}


def _images(samples: dict[str, Any], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images uint8 (n, 28, 28, 1), in the file 784 numbers in [0, 1], and labels."""
    if not samples["y"]:
        return np.empty((0, 28, 28, 1), np.uint8), np.empty(0, np.int64)
    requirement = f"{where} must have 784 numbers an image and a label each"
    with refusing(requirement, ValueError, TypeError):
        x = np.array(samples["x"], np.float64)
        labels = np.array(samples["y"])
    check(x.shape[1:] == (784,), f"{where} must have 784 numbers an image", x.shape[1:])
    # Not written as `min < 0 or ...`, which is false of NaN.
    inside = bool(x.min() >= 0) and bool(x.max() <= 1)
    check(inside, f"pixels must be in [0, 1] of {where}", (float(x.min()), float(x.max())))
    whole = labels.ndim == 1 and labels.dtype.kind in "iu"
    check(whole, f"labels must be whole numbers of {where}", str(labels[:3]))
    low, high = int(labels.min()), int(labels.max())
    check(low >= 0 and high < 62, f"labels must be in 0..61 of {where}", (low, high))
    return np.rint(x * 255).astype(np.uint8).reshape(-1, 28, 28, 1), labels.astype(np.int64)


def _characters(samples: dict[str, Any], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the texts int32 (n, 80) and the number of the next character.

    Samples whose next character is not among LEAF's 80 are left out.
    """
    rows, labels = [], []
    for text, following in zip(samples["x"], samples["y"], strict=True):
        valid = isinstance(text, str) and len(text) == _LENGTH and isinstance(following, str)
        check(valid, f"{where} must have texts of {_LENGTH} characters", str(text)[:_LENGTH])
        if len(following) == 1 and following in _NUMBERS:
            rows.append([_NUMBERS[c] + 2 if c in _NUMBERS else UNKNOWN for c in text])
            labels.append(_NUMBERS[following])
    return np.array(rows, np.int32).reshape(-1, _LENGTH), np.array(labels, np.int64)
