"""Running a sweep's runs: a queue over long-lived processes, one run a process at a time.

With at least as many runs as cores every run has one core and the serial engine; with fewer, each
run has its share of the cores as Ray workers. A run's results are the same bits either way. Runs
on GPUs keep the engine of their file; as many go at once as there are GPUs for, each seeing its
own. Runs on a cluster go one after another.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from fedsim.config.experiment import Engine, Experiment
from fedsim.errors import InputError, RunFailed, describe
from fedsim.rounds.progress import Progress
from fedsim.sweeps.plan import Cell

STOP_SECONDS = 20.0
"""How long interrupted runs may take to save what they have before they are killed."""


@dataclass
class Outcome:
    """How a run ended: `error` is None where it finished."""

    cell: Cell
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class _Process:
    """A process that makes runs; `gpus` are those it sees, None if all."""

    handle: Any
    connection: Connection
    gpus: str | None


@dataclass
class _Slot:
    process: _Process
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


def visible_gpus() -> list[str]:
    """Return what `CUDA_VISIBLE_DEVICES` calls the GPUs that this process may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu.strip() for gpu in given.split(",") if gpu.strip() not in ("", "-1")]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def default_jobs(work: list[tuple[Cell, bool]], cores: int, gpus: int) -> int:
    """Return how many runs go at once: each has a core, and whole GPUs if its workers need any."""
    engines = [cell.experiment.engine for cell, _ in work]
    if any(engine.address is not None for engine in engines):
        return 1
    most = min(cores, len(work))
    need = max((math.ceil((e.workers or 1) * e.gpus - 1e-9) for e in engines), default=0)
    return max(1, min(most, gpus // need) if need else most)


def gpu_shares(gpus: Sequence[str], jobs: int) -> list[str]:
    """Return the GPUs that each of `jobs` processes sees; with too few, some share one."""
    size = max(1, len(gpus) // jobs)
    starts = (i * size % len(gpus) for i in range(jobs))
    return [",".join(gpus[start : start + size]) for start in starts]


def run_all(
    work: list[tuple[Cell, bool]],
    root: Path,
    jobs: int,
    force: bool,
    listen: Listener,
    gpus: Sequence[str] = (),
) -> list[Outcome]:
    """Make the runs, at most `jobs` at once on these GPUs, and return how each ended.

    A run that fails does not stop the others. On an interrupt the runs under way save what they
    have, and their processes are gone when this returns.
    """
    context = multiprocessing.get_context("spawn")
    cores = num_cores()
    queue = deque(work)
    free: list[str | None] = [None] * jobs
    if gpus and jobs > 1:
        free = [*gpu_shares(gpus, jobs)]
    idle: list[_Process] = []
    busy: list[_Slot] = []
    outcomes: list[Outcome] = []
    stopped = False
    try:
        while queue or busy:
            while queue and len(busy) < jobs:
                cell, resumed = queue.popleft()
                process = idle.pop() if idle else _start(context, free.pop(0))
                experiment = placed(cell.experiment, jobs, cores)
                task = (experiment.model_dump(), cell.folder, root, resumed, force)
                process.connection.send(task)
                busy.append(_Slot(process, cell, time.monotonic()))
                listen("start", cell, None)
            ready = wait([slot.process.connection for slot in busy])
            for slot in [s for s in busy if s.process.connection in ready]:
                process = slot.process
                try:
                    kind, value = process.connection.recv()
                except (EOFError, OSError):
                    process.handle.join()
                    kind, value = "end", f"its process died (exit {process.handle.exitcode})"
                    process.connection.close()
                if kind == "round":
                    listen("round", slot.cell, value)
                    continue
                busy.remove(slot)
                if process.connection.closed:
                    free.append(process.gpus)
                else:
                    idle.append(process)
                outcome = Outcome(slot.cell, time.monotonic() - slot.started, value)
                outcomes.append(outcome)
                listen("end", slot.cell, outcome)
    except BaseException:
        stopped = True
        raise
    finally:
        _stop([slot.process for slot in busy] + idle, stopped)
    return outcomes


def _start(context: Any, gpus: str | None) -> _Process:
    """Start a process that sees these GPUs, or all of them."""
    connection, theirs = context.Pipe()
    handle = context.Process(target=_serve, args=(theirs, gpus))
    handle.start()
    theirs.close()
    return _Process(handle, connection, gpus)


def _stop(processes: list[_Process], interrupt: bool) -> None:
    """End the processes; those at work get SIGTERM and time to save."""
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


def _serve(connection: Connection, gpus: str | None) -> None:
    """What runs in a process: one run after another until the sweep sends None or is gone."""
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # read when CUDA is first used, which is later
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
