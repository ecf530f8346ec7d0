"""Checkpoints: everything that a run needs to resume bit for bit.

One sealed file a round, ``checkpoint/round-<r>.safetensors``, written aside and renamed, so
that a killed process leaves the older one intact. A torn or changed file is recognised by its
SHA-256 and skipped.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedsim.errors import RunFailed, os_reason
from fedsim.runs.atomic import ASIDE, remove_files, write_atomic
from fedsim.runs.codec import Damaged, from_bytes, to_bytes

FOLDER = "checkpoint"
KEPT = 2
"""Number of checkpoints kept, so that a damaged one can be skipped."""

NAME = re.compile(r"round-(\d+)\.safetensors")


def path_of(folder: Path, round: int) -> Path:
    """Return the path of a round's checkpoint in a run folder."""
    return folder / FOLDER / f"round-{round}.safetensors"


def rounds(folder: Path) -> list[int]:
    """Return the rounds that have a checkpoint file, intact or not, in ascending order."""
    try:
        names = os.listdir(folder / FOLDER)
    except FileNotFoundError:
        return []
    return sorted(int(m[1]) for m in map(NAME.fullmatch, names) if m)


def save(folder: Path, round: int, value: Any) -> None:
    """Write the checkpoint of `round`, then remove all but the `KEPT` newest up to it.

    Checkpoints of later rounds, which a resume has abandoned, are removed too.

    Raises:
        RunFailed: the disk is full or fails; earlier checkpoints are untouched.
        TypeError: `value` holds something that cannot be saved (see `codec.encode`).
    """
    data = to_bytes(value, "checkpoint")
    path = path_of(folder, round)
    older = rounds(folder)
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise RunFailed(_cannot_write(path, error, len(data), older)) from error
    kept = sorted({r for r in older if r <= round} | {round})[-KEPT:]
    for stale in set(older) - set(kept):
        with contextlib.suppress(OSError):
            path_of(folder, stale).unlink()


def load_latest(
    folder: Path, check: Callable[[Any], object] | None = None
) -> tuple[int, Any, list[str]] | None:
    """Return (round, value, warnings) of the newest intact checkpoint; None if there is none.

    Each damaged file that was skipped is named in a warning. `check(value)` may raise `RunFailed`
    where files that the checkpoint refers to are gone, which counts as damage: pass
    ``lambda v: store.restore(v["states"])`` to fall back together with the client states.

    Raises:
        RunFailed: every checkpoint is damaged, or was written by a newer fedsim.
    """
    candidates = rounds(folder)
    warnings: list[str] = []
    for round in reversed(candidates):
        path = path_of(folder, round)
        try:
            value = from_bytes(path.read_bytes())
        except (Damaged, OSError) as error:
            detail = os_reason(error) if isinstance(error, OSError) else str(error)
            warnings.append(f"checkpoint {path} is damaged and was skipped: {detail}")
            continue
        except RunFailed as error:
            raise RunFailed(f"cannot read checkpoint {path}: {error}") from None
        try:
            if check is not None:
                check(value)
        except RunFailed as error:
            warnings.append(f"checkpoint {path} cannot be used and was skipped: {error}")
            continue
        return round, value, warnings
    if candidates:
        raise RunFailed(f"no checkpoint in {folder} can be used; " + "; ".join(warnings))
    return None


def remove_all(folder: Path) -> None:
    """Remove every checkpoint file of the run in `folder`, and the folder if then empty."""
    remove_files(folder / FOLDER, lambda name: NAME.fullmatch(name.removeprefix(ASIDE)))


def _cannot_write(path: Path, error: OSError, size: int, older: list[int]) -> str:
    room = ""
    with contextlib.suppress(OSError):
        room = f" ({size:,} bytes to write, {shutil.disk_usage(path.parent).free:,} free)"
    kept = f"the checkpoint of round {older[-1]} is kept" if older else "there is no earlier one"
    return f"cannot write checkpoint {path}: {os_reason(error)}{room}; {kept}"
