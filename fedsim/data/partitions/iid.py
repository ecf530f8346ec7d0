"""Independent and identically distributed: a random split into equal parts."""

from __future__ import annotations

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.partition import Assignment
from fedsim.errors import check


def iid(samples: Samples, clients: int, rng: np.random.Generator) -> Assignment:
    """Every sample once, at random, to clients of equal size (the first may have one more).

    Raises:
        InputError: fewer than 1 client, or more clients than samples.
    """
    n = len(samples)
    check(clients >= 1, "partition.clients must be >= 1", clients)
    check(clients <= n, f"partition.clients must be <= {n}, the number of samples", clients)
    pointers = np.arange(clients + 1, dtype=np.int64)
    pointers = pointers * (n // clients) + np.minimum(pointers, n % clients)
    return Assignment(rng.permutation(n).astype(np.int32), pointers)
