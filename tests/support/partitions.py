"""What the tests of the partitions share."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

import numpy as np

from fedsim.components.configure import configure
from fedsim.components.lookup import resolve
from fedsim.data.dataset import Samples
from fedsim.data.partition import Assignment
from fedsim.rng import numpy_generator


def samples_of(
    labels: Any, domains: Any = None, owners: Any = None, names: tuple[str, ...] = ()
) -> Samples:
    """Return samples with these columns; domains are named a, b, c, ... unless told."""
    labels = np.asarray(labels, np.int64)
    if domains is not None:
        domains = np.asarray(domains, np.int64)
        names = names or tuple("abcdefgh"[: int(domains.max()) + 1])
    if owners is not None:
        owners = np.asarray(owners, np.int64)
    return Samples(labels, int(labels.max(initial=0)) + 1, domains, names, owners)


def divide(samples: Samples, name: str, clients: int, seed: int = 0, **options: Any) -> Assignment:
    """Return what the named partition makes of the samples, its options checked as in a file."""
    function, values = _component(name, json.dumps(options))
    return function(samples, clients, numpy_generator(seed, "partition"), **values)


@cache
def _component(name: str, options: str) -> tuple[Any, dict[str, Any]]:
    return resolve("partitions", name), configure("partitions", name, json.loads(options))


def class_counts(own: Assignment, samples: Samples) -> np.ndarray:
    """Return the samples of each client and class, int64 (clients, classes)."""
    counts = np.zeros((own.num_clients, samples.num_classes), np.int64)
    np.add.at(counts, (own.owners, samples.labels[own.indices]), 1)
    return counts


def fingerprint(own: Assignment) -> str:
    """Return 16 hex digits of all arrays."""
    digest = hashlib.sha256()
    for name in ("indices", "pointers", "server", "labelled", "modality"):
        array = getattr(own, name)
        digest.update(f"{name}/{array.dtype.str}/{len(array)}/".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]
