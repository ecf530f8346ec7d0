"""Feature shift: no client has samples of two domains."""

from __future__ import annotations

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.nested import Partition
from fedsim.data.partition import Assignment
from fedsim.data.partitions._dealing import IID, check_sizes, equal_parts, within_groups
from fedsim.errors import InputError, check


def domain(
    samples: Samples, clients: int, rng: np.random.Generator, *, within: Partition = IID
) -> Assignment:
    """Every sample once, and each client's of one domain: one or several clients a domain.

    Clients are in the order of the domains and spread evenly over them, the largest domains first
    where the number does not divide. `within` divides the samples of a domain, by default into
    equal shares. A domain without samples has no client.

    Raises:
        InputError: a data set without domains; fewer clients than domains; more clients in a
            domain than samples.
    """
    check_sizes(samples, clients, 1)
    if samples.domains is None:
        raise InputError("partition.name is 'domain', but the data set has no domains")
    present, groups, counts = np.unique(samples.domains, return_inverse=True, return_counts=True)
    check(
        clients >= len(present),
        f"partition.clients must be >= {len(present)}, the number of domains",
        clients,
    )
    numbers = np.empty(len(present), np.int64)
    numbers[np.argsort(-counts, kind="stable")] = equal_parts(clients, len(present))
    for i in np.flatnonzero(numbers > counts)[:1]:
        names = samples.domain_names
        called = names[present[i]] if present[i] < len(names) else str(present[i])
        raise InputError(
            f"partition.clients must leave every client a sample of its domain, but "
            f"{clients} clients are {numbers[i]} for the {counts[i]} of {called!r}"
        )
    return within_groups(samples, groups, numbers, within, rng)
