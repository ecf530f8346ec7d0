"""A public set: samples that the server and all clients know and none owns, as the image-text pairs
of CreamFL (Yu et al. 2023, arXiv:2302.08888).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.nested import Partition
from fedsim.data.partition import Assignment
from fedsim.data.partitions._dealing import IID, check_sizes
from fedsim.data.partitions._server import number_of, set_aside
from fedsim.errors import InputError, check


def public(
    samples: Samples,
    clients: int,
    rng: np.random.Generator,
    *,
    size: int | None = None,
    share: float | None = None,
    within: Partition = IID,
) -> Assignment:
    """A random public set that all know, of `size` samples or a `share`; the rest by `within`.

    Raises:
        InputError: neither or both of `size` and `share`; a public set of all samples or more.
    """
    check_sizes(samples, clients, 1)
    n = len(samples)
    if (size is None) == (share is None):
        raise InputError(
            "partition.size or partition.share must say how large the public set is, got "
            f"size {size} and share {share}"
        )
    if size is None:
        size = number_of(share or 0.0, n, "partition.share")
    check(1 <= size < n, f"partition.size must be in 1..{n - 1}, below the number of samples", size)
    divided = set_aside(samples, rng.permutation(n)[:size], clients, within, rng)
    return replace(divided, public=np.ones(size, np.uint8))
