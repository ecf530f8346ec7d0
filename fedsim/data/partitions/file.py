"""A saved partition: a manifest written by ``fedsim partition --manifest`` or a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.partition import Manifest
from fedsim.errors import check


def file(samples: Samples, clients: int, rng: np.random.Generator, *, path: str) -> Manifest:
    """The saved manifest, with its own validation and test samples.

    Its rows are rows of the data set's whole training split: a long tail or share is already
    applied, and `partition.validation` and `partition.test` are ignored.

    Raises:
        InputError: no such file, or not a whole manifest; a manifest of other clients.
    """
    manifest = Manifest.load(Path(path).expanduser())
    number = manifest.num_clients
    requirement = f"partition.clients must be {number}, the number of clients of {path}"
    check(number == clients, requirement, clients)
    return manifest
