"""Clients' test samples drawn from a data set's test split instead of their own samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.data.partition import Manifest, pointers_of
from fedsim.errors import InputError

Rule = Literal["matched", "domain", "classes"]


def add_local_tests(
    manifest: Manifest, dataset: Dataset, rule: Rule, rng: np.random.Generator
) -> Manifest:
    """Return the manifest with test samples from the test split; clients may share them.

    matched: in proportion to the client's training histogram, floor(n_kc / n * N_test) random test
    samples of class c for client k with n_kc of all n training samples (the protocol of FedLoGe's
    code). Where the test split has fewer of a class, they are used again.
    domain: all test samples of the client's domains. classes: all of its classes.

    Raises:
        InputError: a data set without domains; a client without any test sample under `domain` or
            `classes`.
    """
    column = "domain" if rule == "domain" else "labels"
    if rule == "domain" and "domain" not in dataset.train.extra:
        raise InputError(f"partition.test is 'domain', but {dataset.name} has no domains")
    train, test = (
        split.extra["domain"] if rule == "domain" else split.y
        for split in (dataset.train, dataset.test)
    )
    kinds = int(max(train.max(), test.max())) + 1
    keys, counts = np.unique(manifest.owners * kinds + train[manifest.indices], return_counts=True)
    members = [np.flatnonzero(test == kind) for kind in range(kinds)]
    available = np.array([len(m) for m in members])
    if rule == "matched":
        # Whole numbers throughout: a quotient in floating point may fall below its integer.
        picks = counts * len(test) // len(manifest.indices)
        picks[available[keys % kinds] == 0] = 0
    else:
        picks = available[keys % kinds]
    pieces = []
    for key, count in zip(keys[picks > 0], picks[picks > 0], strict=True):
        rows = members[key % kinds]
        if rule == "matched":
            rounds = -(-int(count) // len(rows))
            rows = np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:count]
        pieces.append(rows)
    sizes = np.bincount(keys // kinds, weights=picks, minlength=manifest.num_clients)
    if rule != "matched" and not sizes.all():
        client = int(np.argmin(sizes))
        raise InputError(
            f"partition.test is {rule!r}, but the test split of {dataset.name} has nothing of the "
            f"{column} of client {client}"
        )
    pointers = pointers_of(sizes.astype(np.int64))
    rows = np.concatenate(pieces) if pieces else np.empty(0, np.int32)
    return replace(manifest, test_indices=rows.astype(np.int32), test_pointers=pointers)
