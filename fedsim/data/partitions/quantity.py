"""Quantity skew: clients of unequal size, each with a random sample of all classes.

power      size ~ (r + 1)^(-exponent) for the clients' ranks r = 0..N-1, in random order
lognormal  size ~ exp(sigma z), z normal, for each client on its own
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.partition import Assignment, pointers_of
from fedsim.data.partitions._dealing import apportion, check_sizes
from fedsim.errors import check


def quantity(
    samples: Samples,
    clients: int,
    rng: np.random.Generator,
    *,
    profile: Literal["power", "lognormal"] = "power",
    exponent: float = 1.0,
    sigma: float = 1.0,
    min_size: int = 1,
) -> Assignment:
    """Every sample once, at random, to clients whose sizes follow a power law or a lognormal.

    Clients in the tail get `min_size` samples, the others keep their proportions.

    Raises:
        InputError: a negative exponent or sigma, or fewer samples than `min_size` needs.
    """
    check_sizes(samples, clients, min_size)
    for name, value in (("exponent", exponent), ("sigma", sigma)):
        check(0 <= value < np.inf, f"partition.{name} must be >= 0 and finite", value)
    if profile == "power":
        logarithms = -exponent * np.log1p(rng.permutation(clients))
    else:
        logarithms = sigma * rng.standard_normal(clients)
    n = len(samples)
    weights = np.exp(logarithms - logarithms.max())
    bounds = np.full(clients, min_size), np.full(clients, n)
    pointers = pointers_of(apportion(n, weights, *bounds))
    return Assignment(rng.permutation(n).astype(np.int32), pointers)
