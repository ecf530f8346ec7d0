"""Names that a program gives its own components with `fedsim.register`.

A name stands for where its object was defined, ``pkg.mod:Name`` or ``/path/file.py:Name``. That is
what an experiment is completed with, so that workers and a later `fedsim resume` find the object
without the program that gave it the name.
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
    """A component that has been given a name, and the reference by which others load it."""

    component: Any
    reference: str

    def describe(self) -> str:
        """Return the first line of the component's docstring."""
        return (inspect.getdoc(self.component) or "").partition("\n")[0]


_known: dict[str, dict[str, Registered]] = {}


def known(kind: str) -> dict[str, Registered]:
    """Return name -> component of what has been registered for a kind."""
    return _known.get(kind, {})


def enter(kind: str, name: str, component: Any) -> None:
    """Give a component a name.

    Raises:
        InputError: the name belongs to a component of another place.
    """
    reference = reference_of(component, name)
    other = known(kind).get(name)
    if other is not None and other.reference != reference:
        raise InputError(
            f"register: {name!r} of {kind} is already {other.reference}; give {reference} another "
            "name"
        )
    _known.setdefault(kind, {})[name] = Registered(component, reference)


def of_program(reference: str) -> Any:
    """Return what the running program registered under a reference to its own file, or None.

    Loading the file would run the program once more.
    """
    for table in _known.values():
        for entry in table.values():
            if entry.reference == reference and entry.component.__module__ == _MAIN:
                return entry.component
    return None


def reference_of(component: Any, name: str) -> str:
    """Return ``pkg.mod:Name`` or ``/path/file.py:Name`` of a class or function.

    Raises:
        InputError: it is neither, or no other process could load it: defined inside a function, in
            a notebook's cell or at a prompt.
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
