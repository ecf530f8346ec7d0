"""Ranges of options: what each holds, and where values outside it are refused."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan
from typing import Any, Literal

import pytest

from fedsim.components.option_types import type_name
from fedsim.config.ranges import (
    CheckedConfig,
    Count,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveFraction,
    ProperFraction,
    check_range,
    field_types,
)
from fedsim.errors import InputError


@pytest.mark.parametrize(
    ("range_", "inside", "outside", "words"),
    [
        (Positive, [1e-300, 1e300], [0, -1.0, inf, nan], "> 0 and finite"),
        (NonNegative, [0, 1e300], [-1e-9, inf, nan], ">= 0 and finite"),
        (Fraction, [0, 0.5, 1], [-0.1, 1.1, nan], "in [0, 1]"),
        (PositiveFraction, [1e-9, 1], [0, 1.1, nan], "in (0, 1]"),
        (ProperFraction, [0, 0.999], [-0.1, 1, nan], "in [0, 1)"),
        (Count, [1, 2**31 - 1], [0, -1, nan, "1", None], ">= 1"),
        (Count, [], [2**31], "below 2**31"),
        (NonNegativeInt, [0, 7], [-1, nan], ">= 0"),
    ],
)
def test_ends_of_each_range(range_: Any, inside: list[Any], outside: list[Any], words: str) -> None:
    for value in inside:
        check_range("x", range_, value)
    for value in outside:
        with pytest.raises(InputError) as caught:
            check_range("x", range_, value)
        shown = "null" if value is None else repr(value)
        assert str(caught.value) == f"x must be {words}, got {shown}"


@pytest.mark.parametrize(
    ("annotation", "inside", "outside", "words"),
    [
        (Positive | None, [None, 1.0], [0.0], "> 0 and finite"),
        (Count | Literal["all"], ["all", 1], [0], ">= 1"),
        (tuple[Count, ...], [(), (1, 2)], [(1, 0)], "a list, each >= 1"),
        (tuple[Count, ...] | Positive, [(1,), 0.5], [(0,)], "a list, each >= 1"),
        (tuple[Count, ...] | Positive, [], [0], "> 0 and finite"),
        (float, [nan, -1.0], [], ""),
    ],
)  # fmt: skip
def test_ranges_in_unions_and_lists(
    annotation: Any, inside: list[Any], outside: list[Any], words: str
) -> None:
    for value in inside:
        check_range("x", annotation, value)
    for value in outside:
        with pytest.raises(InputError) as caught:
            check_range("x", annotation, value)
        assert str(caught.value) == f"x must be {words}, got {value!r}"


@dataclass(frozen=True)
class Parent(CheckedConfig):
    lr: Positive = 0.1
    steps: Count | None = None


@dataclass(frozen=True)
class Child(Parent):
    lr: float = 0.5
    steps: int = 3
    mu: NonNegative = 0.0


def test_a_config_made_in_python_is_checked() -> None:
    assert Child(lr=2.0, steps=1).mu == 0.0
    with pytest.raises(InputError, match=r"^mu must be >= 0 and finite, got -1\.0$"):
        Child(mu=-1.0)
    with pytest.raises(InputError, match=r"^steps must be >= 1, got 0$"):
        Parent(steps=0)


def test_a_new_default_keeps_the_range_and_another_type_does_not() -> None:
    with pytest.raises(InputError, match="lr must be > 0 and finite, got nan"):
        Child(lr=nan)
    assert Child(steps=-1).steps == -1
    shown = {name: type_name(annotation) for name, annotation in field_types(Child).items()}
    assert shown == {"lr": "float > 0", "steps": "int", "mu": "float >= 0"}
    assert type_name(field_types(Parent)["steps"]) == "int >= 1 | None"
