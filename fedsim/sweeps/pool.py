"""Running a sweep's runs: a queue over long-lived processes, one run a process at a time.

With at least as many runs as cores every run has one core and the serial engine; with fewer, each
run has its share of the cores as Ray workers. A run's results are the same bits either way. Runs
on GPUs or on a cluster keep the engine of their file and go one after another.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from fedsim.config import Engine, Experiment
from fedsim.errors import InputError, RunFailed
from fedsim.progress import Progress
from fedsim.sweeps.plan import Cell

STOP_SECONDS = 20.0
"""How long interrupted runs may take to save what they have before they are killed."""


@dataclass
class Outcome:
    """How a run ended: `error` is None where it finished."""

    cell: Cell
    seconds: float
    error: str | None = None


@dataclass
class _Slot:
    process: Any
    connection: Connection
    cell: Cell
    started: float


Listener = Callable[[str, Cell, Any], None]
"""Called with ("start" | "round" | "end", cell, None | (round, rounds) | Outcome)."""


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def placed(experiment: Experiment, jobs: int, cores: int) -> Experiment:
    """Return the experiment with the engine it has while `jobs` runs share `cores` cores."""
    engine = experiment.engine
    if jobs == 1 or engine.gpus > 0 or engine.address is not None:
        return experiment
    share = cores // jobs
    own = engine.model_dump() | {"name": "ray" if share > 1 else "serial", "cpus": 1.0}
    own["workers"] = share if share > 1 else None
    return experiment.model_copy(update={"engine": Engine(**own)})


def default_jobs(work: list[tuple[Cell, bool]], cores: int) -> int:
    """Return how many runs go at once: a core each, or one by one where they need GPUs."""
    engines = [cell.experiment.engine for cell, _ in work]
    if any(engine.gpus > 0 or engine.address is not None for engine in engines):
        return 1
    return max(1, min(cores, len(work)))


def run_all(
    work: list[tuple[Cell, bool]], root: Path, jobs: int, force: bool, listen: Listener
) -> list[Outcome]:
    """Make the runs, at most `jobs` at once, and return how each ended.

    A run that fails does not stop the others. On an interrupt the runs under way save what they
    have, and their processes are gone when this returns.
    """
    context = multiprocessing.get_context("spawn")
    cores = num_cores()
    queue = deque(work)
    idle: list[tuple[Any, Connection]] = []
    busy: list[_Slot] = []
    outcomes: list[Outcome] = []
    stopped = False
    try:
        while queue or busy:
            while queue and len(busy) < jobs:
                cell, resumed = queue.popleft()
                if idle:
                    process, connection = idle.pop()
                else:
                    connection, theirs = context.Pipe()
                    process = context.Process(target=_serve, args=(theirs,))
                    process.start()
                    theirs.close()
                experiment = placed(cell.experiment, jobs, cores)
                connection.send((experiment.model_dump(), cell.folder, root, resumed, force))
                busy.append(_Slot(process, connection, cell, time.monotonic()))
                listen("start", cell, None)
            ready = wait([slot.connection for slot in busy])
            for slot in [s for s in busy if s.connection in ready]:
                try:
                    kind, value = slot.connection.recv()
                except (EOFError, OSError):
                    slot.process.join()
                    kind, value = "end", f"its process died (exit {slot.process.exitcode})"
                    slot.connection.close()
                if kind == "round":
                    listen("round", slot.cell, value)
                    continue
                busy.remove(slot)
                if not slot.connection.closed:
                    idle.append((slot.process, slot.connection))
                outcome = Outcome(slot.cell, time.monotonic() - slot.started, value)
                outcomes.append(outcome)
                listen("end", slot.cell, outcome)
    except BaseException:
        stopped = True
        raise
    finally:
        _stop([(s.process, s.connection) for s in busy] + idle, stopped)
    return outcomes


def _stop(workers: list[tuple[Any, Connection]], interrupt: bool) -> None:
    """End the processes; those at work get SIGTERM and time to save."""
    for process, connection in workers:
        with contextlib.suppress(OSError):
            connection.send(None)
        if interrupt and process.is_alive():
            process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process, connection in workers:
        process.join(timeout=max(0.1, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
        connection.close()


class _Reporter(Progress):
    """Sends each round's end to the sweep; stops the run when the sweep is gone."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def round_end(self, round: int, metrics: Mapping[str, float], seconds: float) -> None:
        try:
            self._connection.send(("round", (round, self.rounds)))
        except OSError:
            raise KeyboardInterrupt from None


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _serve(connection: Connection) -> None:
    """What runs in a process: one run after another until the sweep sends None or is gone."""
    signal.signal(signal.SIGTERM, _interrupt)
    # A Ctrl-C reaches the whole group; the sweep passes it on, once, as SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        while (task := connection.recv()) is not None:
            connection.send(("end", _run(connection, *task)))
    except (EOFError, OSError, KeyboardInterrupt):
        pass


def _run(
    connection: Connection,
    tree: dict[str, Any],
    folder: Path,
    root: Path,
    resumed: bool,
    force: bool,
) -> str | None:
    """Make one run and return None, or what went wrong."""
    from fedsim import api
    from fedsim.loading import reason

    try:
        progress = _Reporter(connection)
        if resumed:
            api.resume(folder, progress=progress)
        else:
            api.run(tree, out=root, force=force, progress=progress)
    except (InputError, RunFailed) as error:
        return str(error)
    except Exception as error:
        return reason(error)
    return None
