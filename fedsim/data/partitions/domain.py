"""Feature shift: no client has samples of two domains."""

from __future__ import annotations

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.nested import Partition
from fedsim.data.partition import Assignment
from fedsim.data.partitions._dealing import IID, check_sizes, equal_parts, joined, subset
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

    `numbers` says instead how many clients each of the named domains has, in the order named; the
    samples of other domains are nobody's. `within_of` says of single domains what divides them.

    Raises:
        InputError: a data set without domains; fewer clients than domains; more clients in a
            domain than samples; names of no domain; numbers that do not sum to the clients.
    """
    check_sizes(samples, clients, 1)
    if samples.domains is None:
        raise InputError("partition.name is 'domain', but the data set has no domains")
    names = samples.domain_names
    for option, given in (("numbers", numbers or {}), ("within_of", within_of or {})):
        for name in given:
            allowed = f"partition.{option} must name domains of {', '.join(names)}"
            check(name in names, allowed + nearest(name, names), name)
    if numbers is None:
        spread = _spread(samples.domains, clients)
    else:
        check(min(numbers.values(), default=0) >= 1, "partition.numbers must be >= 1", numbers)
        total = sum(numbers.values())
        check(
            total == clients, f"partition.numbers must sum to {clients}, partition.clients", total
        )
        spread = {names.index(name): number for name, number in numbers.items()}
    parts = []
    for domain, number in spread.items():
        rows = np.flatnonzero(samples.domains == domain)
        called = names[domain] if domain < len(names) else str(domain)
        if number > len(rows):
            raise InputError(
                f"partition.clients must leave every client a sample of its domain, but "
                f"{clients} clients are {number} for the {len(rows)} of {called!r}"
            )
        divide = (within_of or {}).get(called, within)
        parts.append(divide(subset(samples, rows), number, rng).on_rows(rows))
    return joined(parts)


def _spread(domains: np.ndarray, clients: int) -> dict[int, int]:
    """Return domain -> number of clients, as even as can be, more for the largest domains."""
    present, counts = np.unique(domains, return_counts=True)
    check(
        clients >= len(present),
        f"partition.clients must be >= {len(present)}, the number of domains",
        clients,
    )
    numbers = np.empty(len(present), np.int64)
    numbers[np.argsort(-counts, kind="stable")] = equal_parts(clients, len(present))
    return dict(zip(present.tolist(), numbers.tolist(), strict=True))
