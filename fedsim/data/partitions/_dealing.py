"""Dealing samples out to clients, in whole numbers and in random order: shared by partitions."""

from __future__ import annotations

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.nested import Partition
from fedsim.data.partition import Assignment, pointers_of
from fedsim.data.partitions.iid import iid
from fedsim.errors import check

IID = Partition("iid", iid)
"""The default of every nested partition."""


def check_sizes(samples: Samples, clients: int, min_size: int) -> None:
    """Raise `InputError` unless there are enough samples for clients of `min_size`."""
    n = len(samples)
    check(clients >= 1, "partition.clients must be >= 1", clients)
    check(min_size >= 0, "partition.min_size must be >= 0", min_size)
    check(n >= 1, "a partition needs a data set with samples", n)
    requirement = f"partition.min_size x partition.clients must be <= {n}, the number of samples"
    needed = min_size * clients
    check(needed <= n, requirement, f"{min_size} x {clients} = {needed}")


def stable_order(keys: np.ndarray) -> np.ndarray:
    """Return ``np.argsort(keys, kind="stable")`` of integers 0..2**31-1, in less time.

    One sort of unique numbers, key and position: its result is the same on every processor.
    """
    packed = keys.astype(np.int64)
    packed <<= 32
    packed |= np.arange(len(keys), dtype=np.int32)
    packed.sort()
    packed &= 0xFFFFFFFF
    return packed


def by_class(samples: Samples, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return all rows int32 (n,), sorted by class and random within one, and the classes' sizes.

    Sizes int64 (C,) are of the classes that have samples. Samples of no class (-1) are a class.
    """
    order = rng.permutation(np.arange(len(samples), dtype=np.int32))
    classes = samples.labels[order]
    classes += 1
    counts = np.bincount(classes)
    return order[stable_order(classes)], counts[counts > 0]


def collect(
    owners: np.ndarray, clients: int, rng: np.random.Generator, rows: np.ndarray | None = None
) -> Assignment:
    """Return the assignment of sample i, or ``rows[i]``, to client ``owners[i]`` (n,).

    The order within a client is random.
    """
    order = rng.permutation(np.arange(len(owners), dtype=np.int32))
    order = order[stable_order(owners[order])]
    pointers = pointers_of(np.bincount(owners, minlength=clients))
    return Assignment(order if rows is None else rows[order].astype(np.int32), pointers)


def equal_parts(total: int | np.ndarray, parts: int | np.ndarray) -> np.ndarray:
    """Return the sizes int64 of `parts` equal parts of `total`: the first may have one more.

    With arrays (G,), the sizes for each total in turn, concatenated.
    """
    total, parts = np.atleast_1d(total), np.atleast_1d(parts)
    rank = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    return np.repeat(total // parts, parts) + (rank < np.repeat(total % parts, parts))


def apportion(total: int, weights: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return whole numbers int64 (k,) that sum to `total`, in proportion to `weights` > 0.

    Each is the floor or ceiling of ``clip(c w, low, high)`` with the c that gives the total, so
    the proportions hold wherever the bounds allow them. Needs sum(low) <= total <= sum(high).
    """
    w = np.maximum(weights / weights.max(), 1e-18)
    # Bisection of the logarithm of c, which may be of any magnitude.
    below, above = 1e-6, float((high / w).max()) + 1.0
    for _ in range(80):
        middle = float(np.sqrt(below * above))
        if np.clip(middle * w, low, high).sum() <= total:
            below = middle
        else:
            above = middle
    exact = np.clip(below * w, low, high)
    numbers = np.floor(exact).astype(np.int64)
    missing = total - int(numbers.sum())
    # Rounded, as equal fractions may differ in the last bit, and not alike on every processor.
    room = np.where(numbers < high, np.round(exact - numbers, 9), -1.0)
    numbers[np.argsort(-room, kind="stable")[:missing]] += 1
    return numbers


def fill_up(owners: np.ndarray, clients: int, min_size: int, rng: np.random.Generator) -> None:
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
    donors = donors[stable_order(owners[donors])]
    first = np.concatenate(([0], np.cumsum(np.where(gives > 0, sizes, 0))))[:-1]
    rank = np.arange(len(donors)) - first[owners[donors]]
    released = rng.permutation(donors[rank < gives[owners[donors]]])
    owners[released] = np.repeat(np.arange(clients), missing)


def join(assignments: list[Assignment]) -> Assignment:
    """Return the clients of all assignments in turn, as one assignment."""

    def roles(name: str, default: int) -> np.ndarray:
        columns = [getattr(assignment, name) for assignment in assignments]
        if not any(map(len, columns)):
            return np.empty(0, np.uint8)
        filled = [
            column if len(column) else np.full(assignment.num_clients, default, np.uint8)
            for column, assignment in zip(columns, assignments, strict=True)
        ]
        return np.concatenate(filled)

    return Assignment(
        np.concatenate([assignment.indices for assignment in assignments]),
        pointers_of(np.concatenate([assignment.sizes for assignment in assignments])),
        server=np.concatenate([assignment.server for assignment in assignments]),
        labelled=roles("labelled", 1),
        modality=roles("modality", 0),
    )


def within_groups(
    samples: Samples,
    groups: np.ndarray,
    clients: np.ndarray,
    within: Partition,
    rng: np.random.Generator,
) -> Assignment:
    """Return an assignment of the samples of each group g to ``clients[g]`` clients by `within`."""
    order = stable_order(groups)
    stops = np.cumsum(np.bincount(groups, minlength=len(clients)))
    return join(
        [
            within(samples.take(rows), count, rng).on_rows(rows)
            for rows, count in zip(np.split(order, stops[:-1]), clients.tolist(), strict=True)
        ]
    )
