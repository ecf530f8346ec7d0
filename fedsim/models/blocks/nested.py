"""Calling a model's function, also where it is an option of another model's:
``image: {name: cnn, channels: [16, 32]}``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from torch import nn

from fedsim.data.dataset import Card
from fedsim.errors import InputError


@dataclass(frozen=True)
class Model:
    """A named model and its options, called as ``tower(input_shape, num_classes, card)``.

    An option annotated with this type is a section of its own in an experiment file; its default
    is such an object too. `option` is its key in the section, such as image.1.
    """

    component_kind: ClassVar[str] = "models"

    name: str
    function: Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)
    option: str = ""

    @property
    def section(self) -> dict[str, Any]:
        """The name and options as an experiment file holds them."""
        return {"name": self.name, **self.options}

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{k}: {v}" for k, v in self.section.items()) + "}"

    def __call__(
        self, input_shape: tuple[int, ...], num_classes: int, card: Card | None = None
    ) -> nn.Module:
        """Return the model.

        Raises:
            InputError: whatever the model refuses, with the option's name before it.
        """
        try:
            made: nn.Module = call_model(
                self.function, input_shape, num_classes, card, self.options
            )
            return made
        except InputError as error:
            where = f"model.{self.option}" if self.option else f"model {self.name!r}"
            raise InputError(f"{where}: {error}") from error


class Trained(NamedTuple):
    """The final model of a run, the names of its model and data set, and the data's card."""

    module: nn.Module
    model: str
    dataset: str
    card: Card


@dataclass(frozen=True)
class TrainedModel:
    """The final model of a finished run, called as ``towers()``.

    An option annotated with this type is the run's folder in an experiment file.
    """

    component_kind: ClassVar[str] = "runs"

    folder: str
    load: Callable[[str], Trained] | None = None  # set by what builds the model

    def __call__(self) -> Trained:
        """Return the model.

        Raises:
            InputError: there is no such run, or it has left no whole model.
        """
        if self.load is None:
            raise RuntimeError(f"nothing loads the run {self.folder}")
        return self.load(self.folder)


def call_model(
    function: Callable[..., Any],
    input_shape: tuple[int, ...],
    num_classes: int,
    card: Card | None,
    options: Mapping[str, Any],
) -> Any:
    """Return what a model's function makes, given the card where it has a place for one."""
    about: tuple[Any, ...] = (input_shape, num_classes)
    if _num_positional(function) > len(about):
        about += (card,)
    return function(*about, **options)


def _num_positional(function: Callable[..., Any]) -> int:
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = inspect.signature(function).parameters.values()
    return sum(
        p.kind is kinds[0] or (p.kind is kinds[1] and p.default is p.empty) for p in parameters
    )
