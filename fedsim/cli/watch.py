"""Runs under the command line: progress display, trackers, signals, and how to resume."""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedsim.errors import InputError, RunFailed

if TYPE_CHECKING:
    from fedsim.rounds.progress import Progress


@contextlib.contextmanager
def watched(
    folder: Path | None = None, track: Sequence[str] = (), track_clients: bool = False
) -> Iterator[Progress]:
    """Yield the progress display of a run; where it stops, print why and how to resume it.

    `folder` is the run's folder, if it exists already.

    Raises:
        typer.Exit: with the exit status of a run that failed or was interrupted.
    """
    from fedsim.rounds.progress import make_progress

    progress: Progress = make_progress()
    if track:
        from fedsim.trackers import Tracked, make_trackers

        progress = Tracked(make_trackers(track), progress, track_clients)
    try:
        with sigterm_interrupts(), contextlib.closing(progress):
            yield progress
    except InputError:
        raise
    except (KeyboardInterrupt, SystemExit) as error:
        # Ray replaces the handler by one that exits with the signal's number.
        if isinstance(error, SystemExit) and error.code != signal.SIGTERM:
            raise
        where = progress.folder or folder
        hint = f"; resume with: fedsim resume {where}" if where else " before the run began"
        print(f"interrupted{hint}", file=sys.stderr)
        raise typer.Exit(130) from None
    except Exception as error:
        where = progress.folder or folder
        if isinstance(error, RunFailed):
            print(f"error: {error}", file=sys.stderr)
        else:
            print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
            notes = getattr(error, "__notes__", [])  # where the traceback is logged, if it is
            if notes:
                print(*notes, sep="\n", file=sys.stderr)
            else:
                _log_traceback(where)
        if where and f"fedsim resume {where}" not in str(error):
            print(f"resume with: fedsim resume {where}", file=sys.stderr)
        raise typer.Exit(1) from None


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Make SIGTERM raise `KeyboardInterrupt` in the block."""
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _log_traceback(folder: Path | None) -> None:
    """Append the current traceback to the run's log; print it if there is none."""
    if folder is not None and folder.is_dir():
        with contextlib.suppress(OSError), open(folder / "log.txt", "a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
            print(f"the traceback is in {folder / 'log.txt'}", file=sys.stderr)
            return
    traceback.print_exc()
