"""Labels at the server only: clients never see the labels of their samples (FedSTO, Kim et al.
2023, arXiv:2310.17097, where the server has one weather condition and each client another).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.nested import Partition
from fedsim.data.partition import Assignment
from fedsim.data.partitions._dealing import IID, check_sizes
from fedsim.data.partitions._server import number_of, rows_of_domain, set_aside
from fedsim.errors import InputError


def server_labelled(
    samples: Samples,
    clients: int,
    rng: np.random.Generator,
    *,
    server_share: float | None = None,
    server_domain: str | None = None,
    within: Partition = IID,
) -> Assignment:
    """The server holds labelled samples, the clients unlabelled ones, divided by `within`.

    The server has a random `server_share` of all samples, or all of the domain `server_domain`.

    Raises:
        InputError: neither or both of them; an unknown domain, or one of no or of all samples.
    """
    check_sizes(samples, clients, 1)
    n = len(samples)
    if (server_share is None) == (server_domain is None):
        raise InputError(
            "partition.server_share or partition.server_domain must say what the server has, got "
            f"server_share {server_share} and server_domain {server_domain}"
        )
    if server_domain is None:
        size = number_of(server_share or 0.0, n, "partition.server_share")
        server = rng.permutation(n)[:size]
    else:
        server = rows_of_domain(samples, server_domain, "server_domain")
    assignment = set_aside(samples, server, clients, within, rng)
    return replace(assignment, labelled=np.zeros(clients, np.uint8))
