"""Ranges of numbers as types of options: ``lr: Positive = 0.1``.

A range is checked wherever the option comes from: an experiment's by `fedsim.components.options`,
those of a ``Config`` made in Python by its base `CheckedConfig`. `fedsim show` prints it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import GetCoreSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

from fedsim.config.yaml import show
from fedsim.errors import InputError

RANGE_ERROR: Final = "range"
"""Type of pydantic's error for a number out of its `Range`."""


@dataclass(frozen=True)
class Range:
    """A set of numbers; `words` complete the sentence "<option> must be ...".

    NaN belongs to no range here, as every comparison with it is false.
    """

    words: str
    holds: Callable[[Any], bool]

    def __contains__(self, value: object) -> bool:
        return isinstance(value, Real) and self.holds(value)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        def validate(value: Any) -> Any:
            if value not in self:
                raise PydanticCustomError(RANGE_ERROR, "a number out of its range")
            return value

        return core_schema.no_info_after_validator_function(validate, handler(source))


Positive = Annotated[float, Range("> 0 and finite", lambda x: 0 < x < math.inf)]
NonNegative = Annotated[float, Range(">= 0 and finite", lambda x: 0 <= x < math.inf)]
Fraction = Annotated[float, Range("in [0, 1]", lambda x: 0 <= x <= 1)]
PositiveFraction = Annotated[float, Range("in (0, 1]", lambda x: 0 < x <= 1)]
ProperFraction = Annotated[float, Range("in [0, 1)", lambda x: 0 <= x < 1)]
Count = Annotated[int, Range(">= 1", lambda n: n >= 1), Range("below 2**31", lambda n: n < 2**31)]
NonNegativeInt = Annotated[int, Range(">= 0", lambda n: n >= 0)]


@dataclass(frozen=True)
class CheckedConfig:
    """Base of ``Config`` dataclasses whose fields have ranges.

    A subclass with rules between options checks them in a ``__post_init__`` of its own, after
    ``super().__post_init__()``.

    Raises:
        InputError: an option out of its range.
    """

    def __post_init__(self) -> None:
        config: type = type(self)
        for name, annotation in field_types(config).items():
            check_range(name, annotation, getattr(self, name))


def check_range(key: str, annotation: Any, value: Any) -> None:
    """Raise `InputError` unless a value, or each item of a list, is in the range of its type.

    In a union with other types the range is one for numbers.
    """
    if (words := _broken(annotation, value)) is not None:
        raise InputError(f"{key} must be {words}, got {show(value)}")


def _broken(annotation: Any, value: Any) -> str | None:
    """Return the words of the range that a value is not in, None if there is no such range."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        ranges = (item for item in arguments[1:] if isinstance(item, Range))
        return next((item.words for item in ranges if value not in item), None)
    if is_union(annotation):
        number = isinstance(value, Real)
        members = (m for m in arguments if number == (get_origin(m) is Annotated))
        return next(filter(None, (_broken(member, value) for member in members)), None)
    if (
        origin in (tuple, list)
        and arguments[1:] in ((), (Ellipsis,))
        and isinstance(value, list | tuple)
    ):
        words = next(filter(None, (_broken(arguments[0], item) for item in value)), None)
        return words and f"a list, each {words}"
    return None


def is_union(annotation: Any) -> bool:
    """Whether a type is ``A | B`` or ``Optional[A]``."""
    return get_origin(annotation) in (Union, types.UnionType)


@functools.cache
def field_types(config: type) -> dict[str, Any]:
    """Return field name -> evaluated type of a dataclass, in the order declared."""
    hints: dict[str, Any] = {}
    for owner in reversed(config.__mro__):
        namespace = vars(sys.modules.get(owner.__module__, types.ModuleType("")))
        for name, annotation in vars(owner).get("__annotations__", {}).items():
            hint = evaluate_type(annotation, namespace)
            # ``lr: float = 0.5`` of a subclass changes the default and not the range.
            if get_args(hints.get(name))[:1] != (hint,):
                hints[name] = hint
    return {field.name: hints.get(field.name, Any) for field in dataclasses.fields(config)}


def evaluate_type(annotation: Any, namespace: dict[str, Any]) -> Any:
    """Return the type that an annotation written as a string stands for, `Any` if unknown."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, namespace)
    except Exception:  # a name imported for type checkers only: the option goes unchecked
        return Any
