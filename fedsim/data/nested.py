"""Partitions and data sets as options: ``within: {name: dirichlet, alpha: 0.5}``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
                manifest, or an assignment of other clients or samples than those asked for.
        """
        try:
            divided = self.function(samples, clients, rng, **self.options)
        except InputError as error:
            raise InputError(self.with_nested_keys(str(error), "partition")) from error
        name = f"partition.{self.option}.name {self.name!r}"
        if isinstance(divided, Manifest):
            raise InputError(f"{name} makes a whole manifest, which no other partition can change")
        check(isinstance(divided, Assignment), f"{name} must return a fedsim Assignment", divided)
        count = divided.num_clients
        check(count == clients, f"{name} must make {clients} clients", count)
        for rows in (divided.indices, divided.server):
            highest = int(rows.max(initial=0))
            check(highest < len(samples), f"{name} refers to a sample of {len(samples)}", highest)
        return divided


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
