"""Part of a training split, for experiments with little data."""

from __future__ import annotations

import numpy as np


def share_rows(
    n: int, domains: np.ndarray | None, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Return a random `share` in (0, 1] of the rows 0..n-1, int64, ascending.

    Of every domain, where there are domains int64 (n,), so that none disappears:
    round(share * size) rows, halves rounded up, at least 1.
    """
    order = rng.permutation(n)
    groups = np.zeros(n, np.int64) if domains is None else np.asarray(domains)[order]
    pieces = []
    for group in np.unique(groups):
        members = order[groups == group]
        pieces.append(members[: max(1, int(share * len(members) + 0.5 + 1e-9))])
    return np.sort(np.concatenate(pieces))
