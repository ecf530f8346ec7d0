"""A public set: samples known to the server and all clients and owned by none, such as the
image-text pairs of CreamFL (Yu et al. 2023, arXiv:2302.08888).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.nested import Partition
from fedsim.data.partition import Assignment
from fedsim.data.partitions._dealing import IID, check_sizes
from fedsim.data.partitions._server import number_of, rows_of_domain, set_aside
from fedsim.errors import InputError, check


def public(
    samples: Samples,
    clients: int,
    rng: np.random.Generator,
    *,
    size: int | None = None,
    share: float | None = None,
    domain: str | None = None,
    within: Partition = IID,
) -> Assignment:
    """A random public set, of `size` samples or a `share`; `within` divides the rest.

    With `domain` it is drawn from that domain only.

    Raises:
        InputError: neither or both of `size` and `share`; a public set of all samples or more; an
            unknown domain.
    """
    check_sizes(samples, clients, 1)
    rows = np.arange(len(samples)) if domain is None else rows_of_domain(samples, domain, "domain")
    n = len(rows)
    if (size is None) == (share is None):
        raise InputError(
            "partition.size or partition.share must say how large the public set is, got "
            f"size {size} and share {share}"
        )
    if size is None:
        size = number_of(share or 0.0, n, "partition.share")
    most = n - 1 if n == len(samples) else n
    check(1 <= size <= most, f"partition.size must be in 1..{most}, the samples there are", size)
    assignment = set_aside(samples, rows[rng.permutation(n)[:size]], clients, within, rng)
    return replace(assignment, public=np.ones(size, np.uint8))
