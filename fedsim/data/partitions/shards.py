"""Label skew by shards (McMahan et al. 2017, arXiv:1602.05629): samples sorted by class are cut
into equal shards, and every client gets the same number of random ones.
"""

from __future__ import annotations

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.partition import Assignment
from fedsim.data.partitions._dealing import by_class, check_sizes, collect, equal_parts
from fedsim.errors import check


def shards(
    samples: Samples, clients: int, rng: np.random.Generator, *, shards: int = 2
) -> Assignment:
    """Every sample once, in equal shards sorted by class: few classes a client, equal sizes.

    The sizes of two shards differ by at most 1.

    Raises:
        InputError: more shards than samples.
    """
    check_sizes(samples, clients, 1)
    check(shards >= 1, "partition.shards must be >= 1", shards)
    n, total = len(samples), clients * shards
    requirement = f"partition.clients x partition.shards must be <= {n}, the number of samples"
    check(total <= n, requirement, f"{clients} x {shards} = {total}")
    order, _ = by_class(samples, rng)
    owners = np.empty(n, np.int32)
    owners[order] = np.repeat(rng.permutation(total) // shards, equal_parts(n, total))
    return collect(owners, clients, rng)
