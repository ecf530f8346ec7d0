"""Encoding of texts: word tokeniser, vocabulary, rows of tokens of equal length."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from fedsim.errors import check

END, UNKNOWN = 0, 1
"""The tokens past the end of a text and of unknown words."""

_WORD = re.compile(r"\w+(?:['’]\w+)?|[^\w\s]")


def words(text: str) -> list[str]:
    """Return words and signs of a text in lower case: ``It's 9!`` is ``it's``, ``9``, ``!``."""
    return _WORD.findall(text.lower())


def build_vocabulary(
    texts: Iterable[str], size: int | None = None, min_count: int = 1
) -> tuple[str, ...]:
    """Return the words of the texts, the most frequent first, equally frequent ones sorted.

    The first two entries, empty and ``<unk>``, stand for `END` and `UNKNOWN`; `size` counts them.

    Raises:
        InputError: `size` below 3, or `min_count` below 1.
    """
    check(size is None or size >= 3, "a vocabulary must have at least 3 entries", size)
    check(min_count >= 1, "min_count must be >= 1", min_count)
    counts = Counter(word for text in texts for word in words(text))
    ranked = sorted((w for w, n in counts.items() if n >= min_count), key=lambda w: (-counts[w], w))
    return ("", "<unk>", *ranked[: None if size is None else size - 2])


def encode(texts: Sequence[str], vocabulary: Sequence[str], length: int) -> np.ndarray:
    """Return int32 (n, length): each text's first `length` words, then `END`.

    A text without words is one `UNKNOWN`, so that no row is empty.
    """
    check(length >= 1, "the length of a text must be >= 1", length)
    numbers = {word: i for i, word in enumerate(vocabulary)}
    rows = np.full((len(texts), length), END, np.int32)
    for row, text in zip(rows, texts, strict=True):
        tokens = [numbers.get(word, UNKNOWN) for word in words(text)[:length]] or [UNKNOWN]
        row[: len(tokens)] = tokens
    return rows


def to_bytes(texts: Iterable[str]) -> np.ndarray:
    """Return the texts in UTF-8 as an array (n,) of dtype S, that can be memory-mapped.

    Raises:
        InputError: a text that ends with a NUL, which such an array would lose.
    """
    encoded = [text.encode() for text in texts]
    for text in encoded:
        check(not text.endswith(b"\0"), "a text must not end with a NUL byte", text[-20:])
    return np.array(encoded, dtype=np.bytes_)
