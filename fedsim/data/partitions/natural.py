"""Natural clients: the writers, devices or sites named by the data set."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.partition import Assignment
from fedsim.data.partitions._dealing import check_sizes, collect
from fedsim.errors import InputError, check


def natural(
    samples: Samples,
    clients: int,
    rng: np.random.Generator,
    *,
    select: Literal["all", "largest", "random", "merge"] = "all",
    min_size: int = 1,
) -> Assignment:
    """Each client has the samples of one owner, such as a writer; clients in the owners' order.

    With ``all`` there must be as many clients as owners. ``largest`` and ``random`` take that many
    owners and leave the others' samples out; ``merge`` deals all owners to the clients, at random
    and equally many. Owners of fewer than `min_size` samples are left out.

    Raises:
        InputError: a data set without owners; a number of clients that does not fit.
    """
    check_sizes(samples, clients, min_size)
    if samples.owners is None:
        raise InputError("partition.name is 'natural', but the data set has no owners")
    _, owner, counts = np.unique(samples.owners, return_inverse=True, return_counts=True)
    eligible = np.flatnonzero(counts >= min_size)
    most = len(eligible)
    number = f"{most}, the number of owners" + (f" of {min_size} samples" if min_size > 1 else "")
    if select == "all":
        others = "or partition.select 'largest', 'random' or 'merge'"
        check(clients == most, f"partition.clients must be {number}, {others}", clients)
    check(clients <= most, f"partition.clients must be <= {number}", clients)
    client_of = np.full(len(counts), -1, np.int64)
    if select == "merge":
        client_of[rng.permutation(eligible)] = np.arange(most) % clients
    else:
        if select == "largest":
            eligible = eligible[np.argsort(-counts[eligible], kind="stable")]
        elif select == "random":
            eligible = rng.permutation(eligible)
        client_of[np.sort(eligible[:clients])] = np.arange(clients)
    clients_of_samples = client_of[owner]
    rows = np.flatnonzero(clients_of_samples >= 0)
    return collect(clients_of_samples[rows], clients, rng, rows)
