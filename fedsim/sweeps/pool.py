"""Process pool of a sweep: a queue of runs over long-lived processes, one run each at a time.

With at least as many runs as cores each run gets one core and the serial engine; with fewer, each
gets its share of the cores as Ray workers. The results are the same bits either way. Runs on GPUs
keep the engine of their file, and only as many run at once as there are GPUs for, each on its own.
Runs on a cluster follow one another.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from fedsim.config.experiment import Engine, Experiment
from fedsim.errors import InputError, RunFailed, describe
from fedsim.rounds.progress import Progress
from fedsim.sweeps.plan import Cell, Plan

STOP_SECONDS = 20.0
"""Time for interrupted runs to save their state before they are killed."""


@dataclass
class Outcome:
    """End of a run: `error` is None if it finished."""

    cell: Cell
    seconds: float
    error: str | None = None


class Display:
    """Base of the displays of a sweep; shows nothing."""

    def __init__(self, plan: Plan, finished: int, jobs: int) -> None:
        """Show the sweep; `finished` of its runs exist already, `jobs` run at a time."""

    def __call__(self, kind: str, cell: Cell, value: Any) -> None:
        """Show that a run starts (None), ends a round ((round, rounds)) or ends (`Outcome`)."""

    def close(self) -> None:
        """End the display."""


@dataclass(eq=False)
class _Process:
    """A process of the pool; `gpus` are those it sees, None if all."""

    handle: Any
    connection: Connection
    gpus: str | None
    cell: Cell | None = None  # at work
    started: float = 0.0


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def with_core_share(experiment: Experiment, jobs: int, cores: int) -> Experiment:
    """Return the experiment with the engine for `jobs` runs that share `cores` cores."""
    engine = experiment.engine
    if jobs == 1 or engine.gpus > 0 or engine.address is not None:
        return experiment
    share = cores // jobs
    changes = (
        {"name": "ray", "workers": share} if share > 1 else {"name": "serial", "workers": None}
    )
    shared = Engine(**engine.model_dump() | changes | {"cpus": 1.0})
    return experiment.model_copy(update={"engine": shared})


def visible_gpus() -> list[str]:
    """Return the names that `CUDA_VISIBLE_DEVICES` has for the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def default_jobs(work: list[tuple[Cell, bool]], cores: int, gpus: int) -> int:
    """Return the number of concurrent runs: a core for each, and whole GPUs if workers need any."""
    engines = [cell.experiment.engine for cell, _ in work]
    if any(engine.address is not None for engine in engines):
        return 1
    most = min(cores, len(work))
    need = max((math.ceil((e.workers or 1) * e.gpus - 1e-9) for e in engines), default=0)
    return max(1, min(most, gpus // need) if need else most)


def gpu_shares(gpus: Sequence[str], jobs: int) -> list[str]:
    """Return the GPUs that each of `jobs` processes sees; some share one if there are too few."""
    size = max(1, len(gpus) // jobs)
    starts = (i * size % len(gpus) for i in range(jobs))
    return [",".join(gpus[start : start + size]) for start in starts]


def run_all(
    work: list[tuple[Cell, bool]],
    root: Path,
    jobs: int,
    force: bool,
    display: Display,
    gpus: Sequence[str] = (),
) -> list[Outcome]:
    """Make the runs, at most `jobs` at a time on these GPUs, and return their outcomes.

    A run that fails does not stop the others. On an interrupt the current runs save their state,
    and their processes have ended when this returns.
    """
    context = multiprocessing.get_context("spawn")
    cores = num_cores()
    queue = deque(work)
    free: list[str | None] = [None] * jobs
    if gpus and jobs > 1:
        free = [*gpu_shares(gpus, jobs)]
    idle: list[_Process] = []
    busy: list[_Process] = []
    outcomes: list[Outcome] = []
    interrupted = False
    try:
        while queue or busy:
            while queue and len(busy) < jobs:
                cell, resumed = queue.popleft()
                process = idle.pop() if idle else _start(context, free.pop(0))
                experiment = with_core_share(cell.experiment, jobs, cores)
                task = (experiment.model_dump(), cell.folder, root, resumed, force)
                process.connection.send(task)
                process.cell, process.started = cell, time.monotonic()
                busy.append(process)
                display("start", cell, None)
            ready = wait([process.connection for process in busy])
            for process in [p for p in busy if p.connection in ready]:
                assert process.cell is not None
                try:
                    kind, value = process.connection.recv()
                except (EOFError, OSError):
                    process.handle.join()
                    kind, value = "end", f"its process died (exit {process.handle.exitcode})"
                    process.connection.close()
                if kind == "round":
                    display("round", process.cell, value)
                    continue
                busy.remove(process)
                if process.connection.closed:
                    free.append(process.gpus)
                else:
                    idle.append(process)
                outcome = Outcome(process.cell, time.monotonic() - process.started, value)
                outcomes.append(outcome)
                display("end", process.cell, outcome)
    except BaseException:
        interrupted = True
        raise
    finally:
        _stop(busy + idle, interrupted)
    return outcomes


def _start(context: Any, gpus: str | None) -> _Process:
    """Start a process that sees these GPUs, or all of them."""
    connection, theirs = context.Pipe()
    handle = context.Process(target=_serve, args=(theirs, gpus))
    handle.start()
    theirs.close()
    return _Process(handle, connection, gpus)


def _stop(processes: list[_Process], interrupt: bool) -> None:
    """End the processes; an interrupt sends them SIGTERM and leaves them time to save."""
    for process in processes:
        with contextlib.suppress(OSError):
            process.connection.send(None)
        if interrupt and process.handle.is_alive():
            process.handle.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        process.handle.join(timeout=max(0.1, deadline - time.monotonic()))
        if process.handle.is_alive():
            process.handle.kill()
            process.handle.join()
        process.connection.close()


class _Reporter(Progress):
    """Sends each finished round to the sweep; stops the run if the sweep has died."""

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


def _serve(connection: Connection, gpus: str | None) -> None:
    """Make one run after another until the sweep sends None or dies: the work of a process."""
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # read when CUDA is first used
    signal.signal(signal.SIGTERM, _interrupt)
    # Ctrl-C reaches the whole process group; the sweep passes it on once, as SIGTERM.
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
    """Make one run; return its error message, None if it finished."""
    from fedsim import api

    try:
        progress = _Reporter(connection)
        if resumed:
            api.resume(folder, progress=progress)
        else:
            api.run(tree, out=root, force=force, progress=progress)
    except (InputError, RunFailed) as error:
        return str(error)
    except Exception as error:
        return describe(error)
    return None
