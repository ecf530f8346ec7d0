"""Word vectors from a file in the text format of GloVe (Pennington et al. 2014) or word2vec.

Each line has a word and its numbers; word2vec's first line has the counts of words and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedsim.data.dataset import Card
from fedsim.errors import InputError, check


@torch.no_grad()
def start_from(weight: Tensor, vectors: str | None, card: Card | None) -> None:
    """Copy a file's vectors into the rows of `weight` (V, width) of its words (in place).

    Without a file nothing happens. If a word occurs twice, its first vector counts.

    Raises:
        InputError: the file is missing, damaged or of another width, or has none of the words; the
            vocabulary is unknown.
    """
    if vectors is None:
        return
    vocabulary = () if card is None else card.vocabulary
    text = f"vectors need the {len(weight)} words of the data set's vocabulary"
    check(len(vocabulary) == len(weight), text, len(vocabulary))
    path = Path(vectors).expanduser()
    try:
        state = path.stat()
        rows, values = _read(path, state.st_mtime_ns, vocabulary, weight.shape[1])
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"vectors must be a file of word vectors, got {path}: {reason}") from error
    if not len(rows):
        raise InputError(f"vectors must be of words of the data set, {path} has none of them")
    weight[torch.from_numpy(rows)] = torch.from_numpy(values).to(weight)


@lru_cache(maxsize=2)  # several towers of a model may start from one file
def _read(
    path: Path, changed: int, vocabulary: Sequence[str], width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the word numbers int64 (k,) that the file has, and vectors float32 (k, width)."""
    numbers = {word.encode(): number for number, word in enumerate(vocabulary) if word}
    rows: list[int] = []
    values: list[np.ndarray] = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip()
            fields = line.count(b" ")
            if number == 1:
                if fields == 1 and all(part.isdigit() for part in line.split()):
                    _check_width(path, int(line.split()[1]), width)
                    continue
                _check_width(path, fields, width)
            if fields < width:
                raise _damaged(path, number, f"{fields} numbers, expected {width}")
            # A few words of the larger files of GloVe contain spaces.
            word = line.split(b" ", 1)[0] if fields == width else line.rsplit(b" ", width)[0]
            row = numbers.pop(word, None)
            if row is not None:
                rows.append(row)
                values.append(_numbers(path, number, line.rsplit(b" ", width)[1:]))
    vectors = np.stack(values) if values else np.empty((0, width), np.float32)
    return np.array(rows, np.int64), vectors


def _check_width(path: Path, actual: int, width: int) -> None:
    check(width == actual, f"width must be that of the vectors in {path} ({actual})", width)


def _numbers(path: Path, number: int, fields: list[bytes]) -> np.ndarray:
    try:
        values = np.array([float(field) for field in fields], np.float32)
    except ValueError as error:
        raise _damaged(path, number, str(error)) from error
    if not np.isfinite(values).all():
        raise _damaged(path, number, "numbers that are not finite")
    return values


def _damaged(path: Path, number: int, what: str) -> InputError:
    return InputError(f"vectors are damaged, {path}, line {number}: {what}")
