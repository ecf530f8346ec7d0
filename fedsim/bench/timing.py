"""Timing of the workloads in ``experiments/bench`` against a hand-written loop.

fedsim and the loop (`fedsim.bench.limit`) train the same clients in the same order and alternate
after a few rounds: on a shared machine only such ratios are meaningful. Both start from the same
weights, and the difference after one round is reported.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.config.experiment import Experiment
from fedsim.config.reading import to_yaml
from fedsim.errors import RunFailed, check, check_choice

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "bench"
TURNS = {"W1": 5, "W2": 1, "W3": 40, "W4": 40}
"""Rounds in a turn of fedsim or the loop."""

POPULATIONS = (100, 1_000, 10_000, 100_000, 1_000_000)
"""Numbers of clients of W4."""


@dataclass
class Result:
    """Measurements of one workload; seconds are those of single rounds."""

    name: str
    clients: int
    cohort: int
    fedsim: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    eager: list[float] = field(default_factory=list)
    start_seconds: float = 0.0
    peak_mib: float = 0.0
    difference: float = 0.0
    turns: int = 1

    @property
    def ratios(self) -> list[float]:
        """fedsim's seconds over the loop's for each turn (medians over its rounds)."""
        size = len(self.fedsim) // self.turns
        turns = [slice(i, i + size) for i in range(0, len(self.fedsim), size)]
        median = statistics.median
        return [median(self.fedsim[turn]) / median(self.limit[turn]) for turn in turns]


def main(workloads: Sequence[str] = (), repeats: int = 5, rounds: int | None = None) -> None:
    """Time the workloads, all by default, and print a table.

    There are `repeats` turns of `rounds` rounds (by default those of `TURNS`).

    Raises:
        InputError: an unknown workload, or numbers below 1.
    """
    for name in workloads:
        check_choice("a workload", name.upper(), TURNS)
    for key, value in (("repeats", repeats), ("rounds", rounds)):
        check(value is None or value >= 1, f"{key} must be a whole number of at least 1", value)
    chosen = [name.upper() for name in workloads] or list(TURNS)
    print(_machine())
    print(f"median of {repeats} turns; limit: hand-written loop, 2 processes of 1 thread\n")
    print(_row(_HEAD), flush=True)
    for name in chosen:
        for result in _measure(name, repeats, rounds or TURNS[name]):
            print(_row(_cells(result)), flush=True)
    print("\nlaunch to end of round 1, `fedsim run` on W3 (median of 3):", flush=True)
    for engine in ("serial", "ray"):
        seconds = statistics.median(_launch(engine) for _ in range(3))
        print(f"  {engine:7}{seconds:6.1f} s", flush=True)


def _measure(name: str, repeats: int, rounds: int) -> Iterator[Result]:
    from fedsim.api import prepare

    path = FOLDER / f"{name.lower()}.yaml"
    sizes: Sequence[int | None] = POPULATIONS if name == "W4" else (None,)
    for size in sizes:
        overrides: dict[str, Any] = {"rounds": 10**6}
        if size is not None:
            overrides["partition.clients"] = size
            overrides["participation"] = min(100, size)
        experiment = prepare(path, overrides)
        yield measure(name, experiment, repeats, rounds)


def measure(name: str, experiment: Experiment, repeats: int, rounds: int) -> Result:
    """Run an experiment and the hand-written loop in turns."""
    from fedsim.bench.limit import Limit
    from fedsim.strategy import sample_cohort

    population, cohort = experiment.partition.clients, experiment.cohort_size
    result = Result(name, population, cohort, turns=repeats)
    started = time.perf_counter()
    with _loop(experiment) as loop:
        loop.step(1)
        result.start_seconds = time.perf_counter() - started
        limits = {"limit": Limit(experiment), "eager": Limit(experiment, eager=True)}
        try:
            first = sample_cohort(experiment.seed, 1, population, cohort)
            for limit in limits.values():
                limit.round(1, first)
            # After one round: later ones only show how fast rounding errors grow in training.
            ours, theirs = loop.params.flat.numpy(), limits["limit"].weights
            result.difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
            for turn in range(repeats):
                span = range(2 + turn * rounds, 2 + (turn + 1) * rounds)
                cohorts = [sample_cohort(experiment.seed, r, population, cohort) for r in span]
                for round in span:
                    begun = time.perf_counter()
                    loop.step(round)
                    result.fedsim.append(time.perf_counter() - begun)
                for kind, limit in limits.items():
                    seconds = [limit.round(r, c) for r, c in zip(span, cohorts, strict=True)]
                    getattr(result, kind).extend(seconds)
            result.peak_mib = _memory_mib()
        finally:
            for limit in limits.values():
                limit.close()
    return result


@contextmanager
def _loop(experiment: Experiment) -> Iterator[Any]:
    """Yield a round loop in a temporary run folder, to step through by hand."""
    from fedsim.api import load_data
    from fedsim.engine.executors import open_executor
    from fedsim.rounds.loop import RoundLoop
    from fedsim.rounds.progress import Progress
    from fedsim.rounds.setup import build_parts
    from fedsim.runs.folder import RunFolder

    with (
        tempfile.TemporaryDirectory() as out,
        RunFolder.create(Path(out), experiment.name, experiment.seed) as folder,
    ):
        parts = build_parts(experiment, load_data)
        with open_executor(parts.experiment, parts.manifest.public_rows) as executor:
            folder.begin(to_yaml(experiment), {}, parts.manifest)
            loop = RoundLoop(parts, executor, folder, Progress())
            try:
                yield loop
            finally:
                loop.close()


def _memory_mib() -> float:
    """Return the memory of this process and its workers, without Ray's servers, in MiB.

    Unique set sizes: pages that processes share, such as those of the data set, are not counted.
    """
    import psutil

    total = psutil.Process().memory_full_info().uss
    for process in psutil.process_iter(["pid", "name", "cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if line.startswith("ray::_Actor"):
            total += process.memory_full_info().uss
    return total / 2**20


def _launch(engine: str) -> float:
    """Return the seconds from the start of `fedsim run` to its line about round 1."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "fedsim.cli", "run", str(FOLDER / "w3.yaml")]
        command += ["--set", "rounds=1", "--set", f"engine.name={engine}", "--out", out]
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            lines = process.stdout or ()
            times = [(line, time.perf_counter() - started) for line in lines]
        seconds = [at for line, at in times if line.startswith("round 1")]
        if not seconds:
            raise RunFailed(f"`{' '.join(command)}` ended with status {process.returncode}")
        return seconds[0]


def _machine() -> str:
    from fedsim.runs.environment import cpu_model

    date = time.strftime("%Y-%m-%d")
    return f"{cpu_model()}, {os.cpu_count()} cores, {platform.system()}, {date}"


_HEAD = (
    "workload", "clients", "cohort", "fedsim s", "limit s", "ratio", "(lowest-highest)",
    "eager s", "updates/s", "start s", "MiB", "difference",
)  # fmt: skip


def _cells(result: Result) -> tuple[str, ...]:
    ours, ratios = statistics.median(result.fedsim), result.ratios
    return (
        result.name,
        f"{result.clients:,}",
        str(result.cohort),
        f"{ours:.4f}",
        f"{statistics.median(result.limit):.4f}",
        f"{statistics.median(ratios):.2f}",
        f"({min(ratios):.2f}-{max(ratios):.2f})",
        f"{statistics.median(result.eager):.4f}",
        f"{result.cohort / ours:,.0f}",
        f"{result.start_seconds:.1f}",
        f"{result.peak_mib:.0f}",
        f"{result.difference:.0e}",
    )


def _row(cells: Sequence[str]) -> str:
    widths = (8, 9, 6, 8, 8, 5, 16, 8, 9, 7, 5, 10)
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
