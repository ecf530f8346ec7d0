"""The errors a user can meet, and the sentences they are told in."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path


class FedsimError(Exception):
    """Base of every error fedsim raises on purpose."""


class InputError(FedsimError, ValueError):
    """Bad input: the message names the key, the value and what is allowed. Exit status 2."""


class RunFailed(FedsimError, RuntimeError):
    """A run stopped because of what happened in it; its folder stays resumable. Exit status 1."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return a sentence tail naming the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def check(condition: bool, requirement: str, got: object) -> None:
    """Raise `InputError` saying ``<requirement>, got <got>`` unless `condition` holds.

    Example: ``check(0 <= beta < 1, "beta must be in [0, 1)", beta)``.
    """
    if not condition:
        raise InputError(f"{requirement}, got {got!r}")


def reason(error: BaseException, path: Path | None = None) -> str:
    """Return ``file:line: Type: message`` for the frame at fault, the last one in `path` if given.

    Frames of this module and of the import system do not count.
    """
    text = next(iter(str(error).splitlines()), "")
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if f.filename != __file__ and not f.filename.startswith("<frozen")
    ]
    own = [f for f in frames if path is not None and f.filename == str(path)]
    for frame in reversed(own or frames):
        return f"{frame.filename}:{frame.lineno}: {what}"
    return what
