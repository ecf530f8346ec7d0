"""A partition as an option of another one: ``within: {name: dirichlet, alpha: 0.5}``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.partition import Assignment, Manifest
from fedsim.errors import InputError, check


@dataclass(frozen=True)
class Partition:
    """A named partition and its options, called as ``within(samples, clients, rng)``.

    An option annotated with this type is a section of its own in an experiment file; its default
    is such an object too: ``within: Partition = Partition("iid", iid)``. `option` is its key in
    the section of the other one.
    """

    component_kind: ClassVar[str] = "partitions"

    name: str
    function: Callable[..., Assignment]
    options: Mapping[str, Any] = field(default_factory=dict)
    option: str = "within"

    @property
    def section(self) -> dict[str, Any]:
        """The name and options as an experiment file holds them."""
        return {"name": self.name, **self.options}

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{k}: {v}" for k, v in self.section.items()) + "}"

    def __call__(self, samples: Samples, clients: int, rng: np.random.Generator) -> Assignment:
        """Return what the partition makes of `samples`.

        Raises:
            InputError: whatever the partition refuses, its options named as nested ones; a
                manifest, or an assignment of other clients or samples than those asked for.
        """
        try:
            divided = self.function(samples, clients, rng, **self.options)
        except InputError as error:
            raise InputError(self._nested(str(error))) from error
        name = f"partition.{self.option}.name {self.name!r}"
        if isinstance(divided, Manifest):
            raise InputError(f"{name} makes a whole manifest, which no other partition can change")
        check(isinstance(divided, Assignment), f"{name} must return a fedsim Assignment", divided)
        found = divided.num_clients
        check(found == clients, f"{name} must make {clients} clients", found)
        for rows in (divided.indices, divided.server):
            highest = int(rows.max(initial=0))
            check(highest < len(samples), f"{name} refers to a sample of {len(samples)}", highest)
        return divided

    def _nested(self, message: str) -> str:
        """Return the message with ``partition.alpha`` as ``partition.within.alpha``."""
        names = "|".join(map(re.escape, self.options)) or "(?!)"
        return re.sub(rf"\bpartition\.(?=(?:{names})\b)", f"partition.{self.option}.", message)
