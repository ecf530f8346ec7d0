"""Samples of the server itself, set aside before the rest is divided."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.nested import Partition
from fedsim.data.partition import Assignment
from fedsim.errors import InputError, check, nearest


def number_of(share: float, n: int, key: str) -> int:
    """Return round(`share` * n), halves up: at least 1, and at most n - 1."""
    check(0 < share < 1, f"{key} must be in (0, 1)", share)
    check(n >= 2, f"{key} needs a data set of at least 2 samples", n)
    # A product meant to be a half may lie just below it in floating point: 0.145 * 100.
    return min(max(1, int(share * n + (0.5 + 1e-9))), n - 1)


def set_aside(
    samples: Samples,
    server: np.ndarray,
    clients: int,
    within: Partition,
    rng: np.random.Generator,
) -> Assignment:
    """Return the assignment with the rows `server` at the server and the others by `within`."""
    rest = np.ones(len(samples), np.bool_)
    rest[server] = False
    rows = np.flatnonzero(rest)
    assignment = within(samples.take(rows), clients, rng)
    if len(assignment.server):
        raise InputError(
            f"partition.within.name {within.name!r} gives samples to the server too; only one "
            "partition may"
        )
    return replace(assignment.on_rows(rows), server=server.astype(np.int32))


def rows_of_domain(samples: Samples, name: str, option: str) -> np.ndarray:
    """Return the rows of a domain that has samples, but not all of them.

    Raises:
        InputError: there is no such domain; `option` is its name in messages.
    """
    names = samples.domain_names
    if samples.domains is None:
        raise InputError(f"partition.{option} needs a data set with domains")
    if name not in names:
        raise InputError(
            f"partition.{option} must be one of {', '.join(names)}, got {name!r}."
            f"{nearest(name, names)}"
        )
    rows = np.flatnonzero(samples.domains == names.index(name))
    check(
        0 < len(rows) < len(samples),
        f"partition.{option} must have some of the {len(samples)} samples and leave some",
        f"{name!r} with {len(rows)}",
    )
    return rows
