"""Feature shift: each client's samples are of one domain."""

from __future__ import annotations

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.nested import Partition
from fedsim.data.partition import Assignment
from fedsim.data.partitions._dealing import IID, check_sizes, equal_parts, join
from fedsim.errors import InputError, check, nearest


def domain(
    samples: Samples,
    clients: int,
    rng: np.random.Generator,
    *,
    within: Partition = IID,
    numbers: dict[str, int] | None = None,
    within_of: dict[str, Partition] | None = None,
) -> Assignment:
    """Every sample once, and each client's of one domain: one or several clients a domain.

    Clients are in the order of the domains and spread evenly over them, the largest domains first
    where the number does not divide. `within` divides the samples of a domain, by default into
    equal shares. A domain without samples has no client.

    `numbers` instead sets the number of clients of each named domain, in the order named; samples
    of other domains are left out. `within_of` replaces `within` for the named domains.

    Raises:
        InputError: a data set without domains; fewer clients than domains; more clients in a
            domain than samples; names of no domain; numbers that do not sum to the clients.
    """
    check_sizes(samples, clients, 1)
    if samples.domains is None:
        raise InputError("partition.name is 'domain', but the data set has no domains")
    names = samples.domain_names
    for option, mapping in (("numbers", numbers or {}), ("within_of", within_of or {})):
        for name in mapping:
            requirement = f"partition.{option} must name domains of {', '.join(names)}"
            check(name in names, requirement + nearest(name, names), name)
    if numbers is None:
        spread = _spread(samples.domains, clients)
    else:
        check(min(numbers.values(), default=0) >= 1, "partition.numbers must be >= 1", numbers)
        total, requirement = sum(numbers.values()), f"partition.numbers must sum to {clients}"
        check(total == clients, f"{requirement}, partition.clients", total)
        spread = {names.index(name): number for name, number in numbers.items()}
    assignments = []
    for domain, number in spread.items():
        rows = np.flatnonzero(samples.domains == domain)
        name = names[domain] if domain < len(names) else str(domain)
        if number > len(rows):
            raise InputError(
                f"partition.clients must leave every client a sample of its domain, but "
                f"{clients} clients are {number} for the {len(rows)} of {name!r}"
            )
        divide = (within_of or {}).get(name, within)
        assignments.append(divide(samples.take(rows), number, rng).on_rows(rows))
    return join(assignments)


def _spread(domains: np.ndarray, clients: int) -> dict[int, int]:
    """Return domain -> number of clients, as even as can be, more for the largest domains."""
    present, counts = np.unique(domains, return_counts=True)
    requirement = f"partition.clients must be >= {len(present)}, the number of domains"
    check(clients >= len(present), requirement, clients)
    numbers = np.empty(len(present), np.int64)
    numbers[np.argsort(-counts, kind="stable")] = equal_parts(clients, len(present))
    return dict(zip(present.tolist(), numbers.tolist(), strict=True))
