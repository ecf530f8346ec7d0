"""Label skew with disjoint classes: each class belongs to one group of clients (the "disjoint"
CIFAR of pFedPG, Yang et al. 2023, arXiv:2308.15367: 2 of 10 classes at each client).
"""

from __future__ import annotations

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.nested import Partition
from fedsim.data.partition import Assignment
from fedsim.data.partitions._dealing import IID, by_class, check_sizes, equal_parts, within_groups
from fedsim.errors import InputError, check


def disjoint(
    samples: Samples,
    clients: int,
    rng: np.random.Generator,
    *,
    classes: int | None = None,
    within: Partition = IID,
) -> Assignment:
    """Every sample once; clients have random classes that no other client, or group, has.

    By default every client has its own classes, equally many (the first may have one more). With
    `classes` the classes are divided into groups of that many, and the clients spread evenly over
    the groups; `within` divides the samples of a group among its clients.

    Raises:
        InputError: fewer classes than clients; `classes` that do not divide their number; fewer
            clients than groups; more clients in a group than samples.
    """
    check_sizes(samples, clients, 1)
    order, counts = by_class(samples, rng)
    available = len(counts)
    if classes is None:
        check(
            clients <= available,
            f"partition.clients must be <= {available}, the number of classes, unless "
            "partition.classes says how many a group of clients has",
            clients,
        )
        num_groups = clients
    else:
        divides = classes >= 1 and available % classes == 0
        check(divides, f"partition.classes must divide {available}, the number of classes", classes)
        num_groups = available // classes
        groups_text = f"{num_groups}, the number of groups of {classes} classes"
        check(clients >= num_groups, f"partition.clients must be >= {groups_text}", clients)
    group_of = np.empty(available, np.int64)
    sizes = equal_parts(available, num_groups)
    group_of[rng.permutation(available)] = np.repeat(np.arange(num_groups), sizes)
    groups = np.empty(len(samples), np.int64)
    groups[order] = np.repeat(group_of, counts)
    numbers, sizes = equal_parts(clients, num_groups), np.bincount(groups)
    for i in np.flatnonzero(numbers > sizes)[:1]:
        raise InputError(
            f"partition.clients must leave every client a sample of its classes, but {clients} "
            f"clients are {numbers[i]} for the {sizes[i]} samples of one group of classes"
        )
    return within_groups(samples, groups, numbers, within, rng)
