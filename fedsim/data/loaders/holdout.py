"""Test splits for data sets that come without one: a random share of each class or group.

The marks never change with the machine or the version of numpy: they come from the raw stream of a
bit generator, which stays the same where a Generator's draws may not.
"""

from __future__ import annotations

import numpy as np

from fedsim.errors import check


def held_out(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Mark a random `share` of each group for testing: bool (n,).

    `groups` are int64 (n,), such as classes. Of a group of k, round(share * k) samples are
    marked, halves rounded up, but never all.

    Raises:
        InputError: a share outside (0, 1), a negative seed, a share that marks nothing.
    """
    check(0 < share < 1, "dataset.test_share must be in (0, 1)", share)
    check(seed >= 0, "dataset.split_seed must be at least 0", seed)
    marks = mark_share(groups, share, seed)
    largest = np.unique(groups, return_counts=True)[1].max()
    requirement = "dataset.test_share must leave a test sample of at least one class; the largest"
    check(bool(marks.any()), f"{requirement} has {largest}", share)
    return marks


def mark_share(groups: np.ndarray, share: float, key: int) -> np.ndarray:
    """Mark what `held_out` does, which may be nothing."""
    order = np.lexsort((np.random.Philox(key=key).random_raw(len(groups)), groups))
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    # A product meant to be a half may lie just below it in floating point.
    counts = np.minimum(np.floor(share * sizes + (0.5 + 1e-9)).astype(np.int64), sizes - 1)
    position = np.arange(len(groups)) - np.repeat(starts, sizes)
    marks = np.zeros(len(groups), bool)
    marks[order] = position < np.repeat(counts, sizes)
    return marks


def mark_fifth(groups: np.ndarray, key: int) -> np.ndarray:
    """Mark a fifth of each group for testing, in the way of `mark_share`: bool (n,)."""
    return mark_share(groups, 0.2, key)
