"""A test part for data sets that come without one."""

from __future__ import annotations

import numpy as np

from fedsim.errors import check


def held_out(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Mark a random `share` of each group as the test part: bool (n,).

    `groups` are int64 (n,), such as classes. Of a group of k, round(share * k) samples are
    marked, halves rounded up, but never all. The marks depend on the order and numbers of
    `groups`, the share and the seed alone, not on the machine or the version of numpy.

    Raises:
        InputError: a share outside (0, 1), a negative seed, a share that marks nothing.
    """
    check(0 < share < 1, "dataset.test_share must be in (0, 1)", share)
    check(seed >= 0, "dataset.split_seed must be at least 0", seed)
    # The raw stream of a bit generator never changes between numpy versions; a Generator's may.
    keys = np.random.Philox(key=seed).random_raw(len(groups))
    order = np.lexsort((keys, groups))
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    # A product meant to be a half may lie just below it in floating point.
    counts = np.minimum(np.floor(share * sizes + (0.5 + 1e-9)).astype(np.int64), sizes - 1)
    position = np.arange(len(groups)) - np.repeat(starts, sizes)
    marks = np.zeros(len(groups), bool)
    marks[order] = position < np.repeat(counts, sizes)
    check(
        bool(marks.any()),
        f"dataset.test_share must leave a test sample of at least one class; the largest has "
        f"{sizes.max()}",
        share,
    )
    return marks
