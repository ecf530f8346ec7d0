"""Label skew: each class is spread over the clients by Dirichlet proportions (Hsu, Qi, Brown 2019,
arXiv:1909.06335, in the form of Yurochkin et al. 2019, arXiv:1905.12022, that uses every sample).

    p_c ~ Dir(alpha, ..., alpha) over the clients, for each class c
    client k gets the part p_c[k] of the samples of class c
"""

from __future__ import annotations

import numpy as np

from fedsim.data.partition import Assignment
from fedsim.errors import check


def dirichlet(
    labels: np.ndarray,
    clients: int,
    rng: np.random.Generator,
    *,
    alpha: float,
    min_size: int = 1,
) -> Assignment:
    """Every sample once, each class by Dirichlet(alpha) proportions: small alpha, strong skew.

    Clients under `min_size` samples are filled up with random samples of the largest clients,
    and the proportions are never drawn again. Given p, a client's expected number of samples of
    a class with n is exactly n p, and the number is off by less than 1.

    Raises:
        InputError: an alpha that is not positive, or more samples asked for than there are.
    """
    n = len(labels)
    check(clients >= 1, "partition.clients must be >= 1", clients)
    check(0 < alpha < np.inf, "partition.alpha must be > 0 and finite", alpha)
    check(min_size >= 0, "partition.min_size must be >= 0", min_size)
    check(n >= 1, "partition dirichlet needs a data set with samples", n)
    check(
        min_size * clients <= n,
        f"partition.min_size x partition.clients must be <= {n}, the number of samples",
        f"{min_size} x {clients} = {min_size * clients}",
    )
    owners = np.empty(n, dtype=np.int64)
    shuffled = rng.permutation(n)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    ends = np.cumsum(np.bincount(labels))
    for members in np.split(by_class, ends[:-1]):
        if len(members):
            shares = _shares(len(members), rng.dirichlet(np.full(clients, alpha)), rng)
            owners[members] = np.repeat(np.arange(clients), shares)
    _fill_up(owners, clients, min_size, rng)
    # A second permutation: in the first one, low clients come early in every class.
    order = rng.permutation(n)
    order = order[np.argsort(owners[order], kind="stable")]
    pointers = np.zeros(clients + 1, dtype=np.int64)
    np.cumsum(np.bincount(owners, minlength=clients), out=pointers[1:])
    return Assignment(order.astype(np.int32), pointers)


def _shares(n: int, p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Round n p (clients,) to integers that sum to n: each floor or ceiling, n p in the mean.

    The cumulative sums are rounded after a common random shift. Without it, one fixed client
    would be favoured wherever n p is far below 1.
    """
    cuts = np.floor(np.cumsum(p) * n + rng.random()).astype(np.int64)
    np.minimum(cuts, n, out=cuts)
    cuts[-1] = n
    return np.diff(cuts, prepend=0)


def _fill_up(owners: np.ndarray, clients: int, min_size: int, rng: np.random.Generator) -> None:
    """Change `owners` (n,) so that every client has `min_size` samples, taking from the largest.

    The largest clients are cut to a common level, the lowest that releases no more than needed;
    those still above it then give one more, lowest client first.
    """
    sizes = np.bincount(owners, minlength=clients)
    missing = np.maximum(min_size - sizes, 0)
    needed = int(missing.sum())
    if needed == 0:
        return
    low, high = min_size, int(sizes.max())  # released(low) >= needed > released(high) = 0
    while high - low > 1:
        middle = (low + high) // 2
        if np.maximum(sizes - middle, 0).sum() > needed:
            low = middle
        else:
            high = middle
    gives = np.maximum(sizes - high, 0)
    gives[np.flatnonzero(sizes >= high)[: needed - int(gives.sum())]] += 1
    donors = rng.permutation(np.flatnonzero(gives[owners] > 0))
    donors = donors[np.argsort(owners[donors], kind="stable")]
    first = np.concatenate(([0], np.cumsum(np.where(gives > 0, sizes, 0))))[:-1]
    rank = np.arange(len(donors)) - first[owners[donors]]
    released = rng.permutation(donors[rank < gives[owners[donors]]])
    owners[released] = np.repeat(np.arange(clients), missing)
