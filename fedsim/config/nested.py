"""Options that are more than plain values: another component, or an object made from a string."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Nested:
    """A named component and its options, as the value of an option of another component.

    An option annotated with a subclass is a section of its own in an experiment file, such as
    ``within: {name: dirichlet, alpha: 0.5}``; its default is such an object too. `option` is its
    key below the other component's section, such as ``within`` or ``image.1``.
    """

    component_kind: ClassVar[str]

    name: str
    function: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    option: str = ""

    @property
    def section(self) -> dict[str, Any]:
        """The name and options as an experiment file holds them."""
        return {"name": self.name, **self.options}

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{k}: {v}" for k, v in self.section.items()) + "}"

    def with_nested_keys(self, message: str, section: str) -> str:
        """Return a message with this component's options under their keys in the experiment.

        With the section ``partition`` and the option ``within``, ``partition.alpha`` becomes
        ``partition.within.alpha``.
        """
        parameters = inspect.signature(self.function).parameters.values()
        names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY or p.default is not p.empty]
        options = "|".join(map(re.escape, names)) or "(?!)"
        place = f"{section}.{self.option}." if self.option else f"{section}."
        return re.sub(rf"\b{section}\.(?=(?:{options})\b)", place, message)


class FromText:
    """Base of types of options that an experiment file holds as a string, their first argument."""

    words: ClassVar[str]
    """Completes the sentence "<option> must be ..."."""

    def __init__(self, text: str) -> None:
        raise NotImplementedError
