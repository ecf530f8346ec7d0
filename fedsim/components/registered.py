"""Components that a program names with `fedsim.register`.

Experiments are completed with the place where such a component is defined, ``pkg.mod:Name`` or
``/path/file.py:Name``, so that workers and a later `fedsim resume` find it without the program
that registered it.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.errors import InputError

_MAIN = "__main__"


@dataclass(frozen=True)
class Registered:
    """A registered component, and the reference by which other processes load it."""

    component: Any
    reference: str

    def describe(self) -> str:
        """Return the first line of the component's docstring."""
        return (inspect.getdoc(self.component) or "").partition("\n")[0]


_entries: dict[str, dict[str, Registered]] = {}


def entries(kind: str) -> dict[str, Registered]:
    """Return name -> registered component of a kind."""
    return _entries.get(kind, {})


def add(kind: str, name: str, component: Any) -> None:
    """Register a component under a name.

    Raises:
        InputError: a component defined elsewhere has the name.
    """
    reference = reference_of(component, name)
    other = entries(kind).get(name)
    if other is not None and other.reference != reference:
        raise InputError(
            f"register: {name!r} of {kind} is already {other.reference}; give {reference} another "
            "name"
        )
    _entries.setdefault(kind, {})[name] = Registered(component, reference)


def component_of_program(reference: str) -> Any:
    """Return the component that the running program registered from this place, or None.

    Loading the program's file would run it once more.
    """
    for table in _entries.values():
        for entry in table.values():
            if entry.reference == reference and entry.component.__module__ == _MAIN:
                return entry.component
    return None


def reference_of(component: Any, name: str) -> str:
    """Return ``pkg.mod:Name`` or ``/path/file.py:Name`` of a class or function.

    Raises:
        InputError: it is neither, or no other process can load it: it is defined in a function, a
            notebook or at a prompt.
    """
    where = getattr(component, "__module__", None)
    qualified = getattr(component, "__qualname__", None)
    if (
        where is None
        or qualified is None
        or not (isinstance(component, type) or callable(component))
    ):
        kind = type(component).__name__
        raise InputError(f"register: {name!r} must be a class or a function, got a {kind}")
    if "<" in qualified:
        raise InputError(
            f"register: {name!r} must be defined at the top of a module, where workers find it; "
            f"got {qualified}"
        )
    module = sys.modules.get(where)
    file = getattr(module, "__file__", None)
    if where == _MAIN or hasattr(module, "__content__"):
        if file is None or not Path(file).is_file():
            raise InputError(
                f"register: {name!r} is defined in a notebook or at a prompt, where no worker "
                "finds it; write it to a file (%%writefile rule.py) and name it "
                f"'./rule.py:{qualified}'"
            )
        return f"{Path(file).resolve()}:{qualified}"
    return f"{where}:{qualified}"
