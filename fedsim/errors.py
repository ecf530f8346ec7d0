"""Exceptions shown to the user, and how their messages are worded."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class FedsimError(Exception):
    """Base of all errors that fedsim raises on purpose."""


class InputError(FedsimError, ValueError):
    """Bad input: the message names the key, its value and the allowed ones. Exit status 2."""


class RunFailed(FedsimError, RuntimeError):
    """A run stopped with an error; its folder stays resumable. Exit status 1."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` with the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def check_choice(subject: str, name: str, allowed: Iterable[str]) -> None:
    """Raise `InputError` with the allowed names and the nearest one unless `name` is allowed.

    Example: ``check_choice("a workload", "W5", ["W1", "W2"])``.
    """
    allowed = list(allowed)
    if name not in allowed:
        raise InputError(
            f"{subject} must be one of {', '.join(allowed)}, got {name!r}.{nearest(name, allowed)}"
        )


def check(condition: bool, requirement: str, got: object) -> None:
    """Raise `InputError` saying ``<requirement>, got <got>`` unless `condition` holds.

    Example: ``check(0 <= beta < 1, "beta must be in [0, 1)", beta)``.
    """
    if not condition:
        raise InputError(f"{requirement}, got {got!r}")


def os_reason(error: OSError) -> str:
    """Return the operating system's reason, without error number and file name."""
    return error.strerror or str(error)


@contextmanager
def os_errors_as(kind: type[FedsimError], failure: str) -> Iterator[None]:
    """Turn an `OSError` in the block into ``kind("<failure>: <the system's reason>")``."""
    try:
        yield
    except OSError as error:
        raise kind(f"{failure}: {os_reason(error)}") from error


def describe(error: BaseException, path: Path | None = None) -> str:
    """Return ``file:line: Type: message`` for the innermost frame, or the innermost in `path`.

    Frames of this module and of the import system do not count.
    """
    first_line = next(iter(str(error).splitlines()), "")
    text = f"{type(error).__name__}: {first_line}".removesuffix(": ")
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if f.filename != __file__ and not f.filename.startswith("<frozen")
    ]
    inside = [f for f in frames if path is not None and f.filename == str(path)]
    for frame in reversed(inside or frames):
        return f"{frame.filename}:{frame.lineno}: {text}"
    return text


def refuse_replaced(cls: type, replaced: Mapping[str, str]) -> None:
    """Raise `InputError` if a class defines a member that nothing reads, naming what does its work.

    `replaced` maps the member to that.
    """
    for member, successor in replaced.items():
        if member in vars(cls):
            raise InputError(f"{cls.__name__}.{member} has no effect: use {successor}")
