"""A shared pool: any number of clients over a data set of any size, for tests of scale."""

from __future__ import annotations

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.partition import Assignment
from fedsim.errors import check


def pool(
    pooled: Samples, clients: int, rng: np.random.Generator, *, samples: int = 8
) -> Assignment:
    """Every client draws samples from all of them, with replacement: samples are shared.

    A client may hold a sample twice, so its held-out samples may occur in its training data: this
    measures speed and memory, not generalisation.

    Raises:
        InputError: fewer than 1 client or sample, or an empty data set.
    """
    check(clients >= 1, "partition.clients must be >= 1", clients)
    check(samples >= 1, "partition.samples must be >= 1", samples)
    check(len(pooled) >= 1, "partition pool needs a data set with samples", len(pooled))
    indices = rng.integers(0, len(pooled), size=clients * samples, dtype=np.int32)
    return Assignment(indices, np.arange(clients + 1, dtype=np.int64) * samples)
