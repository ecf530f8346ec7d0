"""Label skew by a limit: every client has samples of k classes only (McMahan et al. 2017,
arXiv:1602.05629, in the form that fixes the classes rather than the shards).
"""

from __future__ import annotations

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.partition import Assignment
from fedsim.data.partitions._dealing import apportion, by_class, check_sizes, collect, equal_parts
from fedsim.errors import InputError, check

_SWEEPS = 12


def pathological(
    samples: Samples, clients: int, rng: np.random.Generator, *, classes: int = 2
) -> Assignment:
    """Every sample once, and every client has exactly `classes` random classes.

    The number of clients of a class is in proportion to its size, equal for equal classes. Its
    samples are dealt to them in equal parts, so that clients are as equal as class sizes permit.

    Raises:
        InputError: more classes a client than there are, fewer places at clients than classes,
            or more places than samples to fill them.
    """
    check_sizes(samples, clients, 1)
    check(classes >= 1, "partition.classes must be >= 1", classes)
    order, counts = by_class(samples, rng)
    available = len(counts)
    requirement = f"partition.classes must be <= {available}, the number of classes"
    check(classes <= available, requirement, classes)
    places = clients * classes
    check(
        places >= available,
        f"partition.clients x partition.classes must be >= {available}, the number of classes, "
        "or some would have no client",
        f"{clients} x {classes} = {places}",
    )
    most = np.minimum(counts, clients)
    if most.sum() < places:
        raise InputError(
            f"partition.clients x partition.classes must be <= {most.sum()}, as a class has at "
            f"most as many clients as samples, got {clients} x {classes} = {places}"
        )
    # In a random order of the classes, so that no class is always the one to be rounded up.
    shuffled = rng.permutation(available)
    holders = np.empty(available, np.int64)
    holders[shuffled] = apportion(
        places, counts[shuffled], np.ones(available, np.int64), most[shuffled]
    )
    classes_of = _mixed(_any_places(holders, clients, classes), rng)
    by_holder = rng.permutation(places)
    flat = classes_of.ravel()[by_holder]
    by_holder = by_holder[np.argsort(flat, kind="stable")]
    owners = np.empty(len(samples), np.int32)
    owners[order] = np.repeat(by_holder // classes, equal_parts(counts, holders))
    return collect(owners, clients, rng)


def _any_places(holders: np.ndarray, clients: int, classes: int) -> np.ndarray:
    """Return the classes of each client (clients, classes), no class twice at one client.

    The places of a class are dealt to consecutive clients; a class has at most `clients` of them.
    """
    places = np.repeat(np.arange(len(holders)), holders)
    return np.ascontiguousarray(places.reshape(classes, clients).T)


def _mixed(classes_of: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return `classes_of` (clients, k) after random trades that keep what makes it valid.

    In a sweep clients meet in pairs, and deal what only one of the two has at random ("curveball"
    of Strona et al. 2014, doi:10.1038/ncomms5114). The number of sweeps is fixed, not a redraw:
    each halves what is left of the order in the beginning.
    """
    classes_of = classes_of.copy()
    clients, k = classes_of.shape
    for _ in range(_SWEEPS + clients.bit_length() if clients > 1 else 0):
        order = rng.permutation(clients)
        one, other = order[: clients // 2], order[clients // 2 : clients // 2 * 2]
        both = np.sort(np.concatenate([classes_of[one], classes_of[other]], axis=1), axis=1)
        common = both[:, 1:] == both[:, :-1]
        keys = rng.random(both.shape)
        keys[:, :-1][common] = -1.0
        keys[:, 1:][common] = 2.0
        both = np.take_along_axis(both, np.argsort(keys, axis=1, kind="stable"), axis=1)
        classes_of[one], classes_of[other] = both[:, :k], both[:, k:]
    return np.sort(classes_of, axis=1)
