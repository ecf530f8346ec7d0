"""Partitions and data sets as options: ``within: {name: dirichlet, alpha: 0.5}``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fedsim.config.nested import Nested
from fedsim.data.dataset import Dataset, Samples
from fedsim.data.partition import Assignment, Manifest
from fedsim.errors import InputError, check


@dataclass(frozen=True, repr=False)
class Partition(Nested):
    """A partition as an option: ``within: Partition = Partition("iid", iid)``."""

    component_kind: ClassVar[str] = "partitions"

    option: str = "within"

    def __call__(self, samples: Samples, clients: int, rng: np.random.Generator) -> Assignment:
        """Divide `samples` among the clients.

        Raises:
            InputError: whatever the partition refuses, under the option's key; or it returns a
                manifest, or an assignment of other samples or to another number of clients.
        """
        try:
            divided = self.function(samples, clients, rng, **self.options)
        except InputError as error:
            raise InputError(self.with_nested_keys(str(error), "partition")) from error
        name = f"partition.{self.option}.name {self.name!r}"
        if isinstance(divided, Manifest):
            raise InputError(f"{name} makes a whole manifest, which no other partition can change")
        check_assignment(divided, name, clients, len(samples))
        return divided


def check_assignment(value: Any, name: str, clients: int, num_samples: int) -> None:
    """Raise `InputError` unless a partition's value is an assignment to that many clients."""
    check(isinstance(value, Assignment), f"{name} must return a fedsim Assignment", value)
    check(value.num_clients == clients, f"{name} must make {clients} clients", value.num_clients)
    for rows in (value.indices, value.server):
        highest = int(rows.max(initial=-1))
        check(highest < num_samples, f"{name} must refer to samples below {num_samples}", highest)


@dataclass(frozen=True, repr=False)
class Source(Nested):
    """A data set as an option, such as one of ``sets: dict[str, Source]``."""

    component_kind: ClassVar[str] = "datasets"

    def __call__(self) -> Dataset:
        """Load the data set.

        Raises:
            InputError: whatever the data set refuses, under the option's key.
        """
        try:
            dataset = self.function(**self.options)
        except InputError as error:
            raise InputError(self.with_nested_keys(str(error), "dataset")) from error
        name = f"dataset {self.name!r}"
        check(isinstance(dataset, Dataset), f"{name} must return a fedsim Dataset", dataset)
        return dataset
