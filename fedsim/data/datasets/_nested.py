"""A data set as an option of another one: ``{name: cifar, set: cifar100}``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fedsim.data.dataset import Dataset
from fedsim.errors import InputError, check


@dataclass(frozen=True)
class Source:
    """A named data set and its options, called as ``source()``.

    `option` is its key in the section, such as sets.a.
    """

    component_kind: ClassVar[str] = "datasets"

    name: str
    function: Callable[..., Dataset]
    options: Mapping[str, Any] = field(default_factory=dict)
    option: str = ""

    @property
    def section(self) -> dict[str, Any]:
        """The name and options as an experiment file holds them."""
        return {"name": self.name, **self.options}

    def __call__(self) -> Dataset:
        """Return the data set.

        Raises:
            InputError: whatever it refuses, its options named as nested ones.
        """
        try:
            made = self.function(**self.options)
        except InputError as error:
            own = f"dataset.{self.option}." if self.option else "dataset."
            text = re.sub(r"\bdataset\.", own, str(error))
            raise InputError(text) from error
        check(
            isinstance(made, Dataset), f"dataset {self.name!r} must return a fedsim Dataset", made
        )
        return made
