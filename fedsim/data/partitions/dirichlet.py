"""Label skew by Dirichlet proportions, in the three forms of the literature.

class        for each class c: p_c ~ Dir(alpha, ..., alpha) over the clients, and client k gets the
             part p_c[k] of the class (Yurochkin et al. 2019, arXiv:1905.12022)
multinomial  the same p_c, and each sample of class c goes to client k with probability p_c[k]
             (the protocol of FedLoGe's code)
balanced     clients of equal size, and for each client k: q_k ~ Dir(alpha C pi) over the C classes
             with the shares pi (Hsu, Qi, Brown 2019, arXiv:1909.06335, whose alpha is our alpha C).
             Every slot of client k draws a class from q_k; slots that find their class used up draw
             again from what q_k leaves of the other classes, at most once a class.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.partition import Assignment
from fedsim.data.partitions._dealing import by_class, check_sizes, collect, equal_parts, fill_up
from fedsim.errors import check

# Beyond it, sums of gamma draws overflow; the proportions are equal long before.
_LARGEST_ALPHA = 1e100


def dirichlet(
    samples: Samples,
    clients: int,
    rng: np.random.Generator,
    *,
    alpha: float,
    min_size: int = 1,
    variant: Literal["class", "balanced", "multinomial"] = "class",
) -> Assignment:
    """Every sample once, each class by Dirichlet(alpha) proportions: small alpha, strong skew.

    Clients under `min_size` samples are filled up with random samples of the largest clients,
    and the proportions are never drawn again. With the variant ``class``, a client with share p of
    a class of n samples gets n p of them on average, and always within 1 of that. With
    ``balanced``, sizes differ by at most 1.

    Raises:
        InputError: an alpha that is not positive, or fewer samples than `min_size` needs.
    """
    check(0 < alpha < np.inf, "partition.alpha must be > 0 and finite", alpha)
    check_sizes(samples, clients, min_size)
    alpha = min(alpha, _LARGEST_ALPHA)
    order, counts = by_class(samples, rng)
    if variant == "balanced":
        sizes = rng.permutation(equal_parts(len(samples), clients))
        shares = _balanced(counts, sizes, alpha, rng)
    owners = np.empty(len(samples), dtype=np.int32)
    everyone = np.arange(clients, dtype=np.int32)
    for c, members in enumerate(np.split(order, np.cumsum(counts)[:-1])):
        if variant == "balanced":
            numbers = shares[:, c]
        else:
            p = rng.dirichlet(np.full(clients, alpha))
            numbers = (
                _shares(len(members), p, rng)
                if variant == "class"
                else rng.multinomial(len(members), p)
            )
        owners[members] = np.repeat(everyone, numbers)
    fill_up(owners, clients, min_size, rng)
    return collect(owners, clients, rng)


def _shares(n: int, p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Round n p (clients,) to integers that sum to n: each floor or ceiling, n p in the mean.

    The cumulative sums are rounded after a common random shift. Without it, one fixed client
    would be favoured wherever n p is far below 1.
    """
    cuts = np.floor(np.cumsum(p) * n + rng.random()).astype(np.int64)
    np.minimum(cuts, n, out=cuts)
    cuts[-1] = n
    return np.diff(cuts, prepend=0)


def _balanced(
    counts: np.ndarray, sizes: np.ndarray, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """Return int32 (clients, classes) whose rows sum to `sizes` and columns to `counts`."""
    mix = rng.dirichlet(alpha * len(counts) * counts / counts.sum(), size=len(sizes))
    taken = np.zeros(mix.shape, np.int32)
    left, missing = counts.copy(), sizes.copy()
    while missing.any():  # every pass uses a class up, or is the last
        rows = np.flatnonzero(missing)
        wish = mix[rows] * (left > 0)
        total = wish.sum(axis=1)
        wish[total < 1e-12] = left  # clients whose classes are all used up take any others
        wish /= wish.sum(axis=1, keepdims=True)
        drawn = rng.multinomial(missing[rows], wish)
        for c in np.flatnonzero(drawn.sum(axis=0) > left):
            # Clients are served in random order, each in full: most keep the mix they drew.
            order = rng.permutation(len(rows))
            served = np.minimum(np.cumsum(drawn[order, c]), left[c])
            drawn[order, c] = np.diff(served, prepend=0)
        taken[rows] += drawn
        missing[rows] -= drawn.sum(axis=1)
        left -= drawn.sum(axis=0)
    return taken
