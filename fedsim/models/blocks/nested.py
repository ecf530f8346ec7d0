"""Models as options, ``image: {name: cnn}``, and the call of a model's function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import nn

from fedsim.config.nested import FromText, Nested
from fedsim.data.dataset import Card
from fedsim.errors import InputError


@dataclass(frozen=True, repr=False)
class Model(Nested):
    """A model as an option of another one, called as ``tower(input_shape, num_classes, card)``."""

    component_kind: ClassVar[str] = "models"

    def __call__(
        self, input_shape: tuple[int, ...], num_classes: int, card: Card | None = None
    ) -> nn.Module:
        """Build the model.

        Raises:
            InputError: whatever the model refuses, with the option's key before it.
        """
        try:
            module: nn.Module = call_model(
                self.function, input_shape, num_classes, card, self.options
            )
            return module
        except InputError as error:
            place = f"model.{self.option}" if self.option else f"model {self.name!r}"
            raise InputError(f"{place}: {error}") from error


class Trained(NamedTuple):
    """The final model of a run, the names of its model and data set, and the data's card."""

    module: nn.Module
    model: str
    dataset: str
    card: Card


@dataclass(frozen=True)
class TrainedModel(FromText):
    """The final model of a finished run as an option, given as the run's folder."""

    words: ClassVar[str] = "the folder of a finished run"

    folder: str
    load: Callable[[str], Trained] | None = None  # set by what builds the model

    def __call__(self) -> Trained:
        """Load the model.

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
    """Call a model's function, with the card if it has a third positional parameter."""
    arguments: tuple[Any, ...] = (input_shape, num_classes)
    if _num_positional(function) > len(arguments):
        arguments += (card,)
    return function(*arguments, **options)


def _num_positional(function: Callable[..., Any]) -> int:
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = inspect.signature(function).parameters.values()
    return sum(
        p.kind is kinds[0] or (p.kind is kinds[1] and p.default is p.empty) for p in parameters
    )
