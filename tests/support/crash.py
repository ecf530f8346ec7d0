"""Run an experiment again and again, killed at each of its file operations, and resume it.

    python -m tests.support.crash EXPERIMENT OUT FIRST STEP

Every run is a fork of this process that kills itself at the n-th operation on its folder, for
n = FIRST, FIRST + STEP, ... until one gets through; then another fork ends it. Prints a line a run:
n, the bits of the model, the recorded values, the status.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import fedsim
from tests.support.runs import measured, model_bits

WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "sqlite3.connect")


def go_on(experiment: str, out: Path) -> fedsim.Run:
    """Resume the run where there is one to resume, else begin it."""
    folder = out / "tiny/seed-0"
    if (folder / "config.yaml").is_file():
        return fedsim.resume(folder)
    return fedsim.run(experiment, out=out)


def die_at(count: int, out: Path) -> None:
    """Kill this process at the `count`-th operation that names a file under `out`."""
    left = count

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in WATCHED and str(out) in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def fork(work: Any) -> int:
    """Do `work` in a child process; return its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(experiment: str, out: Path, first: int, step: int) -> int:
    count, status = first, -signal.SIGKILL
    while status == -signal.SIGKILL:
        place = out / str(count)

        def killed(place: Path = place, count: int = count) -> None:
            die_at(count, place)
            go_on(experiment, place)

        def finished(place: Path = place, count: int = count) -> None:
            run = go_on(experiment, place)
            values = hashlib.sha256(repr(measured(run)).encode()).hexdigest()
            print(count, model_bits(run), values, run.status, flush=True)

        status = fork(killed)
        if fork(finished) != 0:
            return 1
        count += step
    return 0 if status == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
