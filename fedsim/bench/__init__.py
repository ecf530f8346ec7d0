"""`fedsim bench`: the workloads of ``experiments/bench`` beside a hand-written loop.

fedsim and the loop (`fedsim.bench.limit`) train the same clients in the same order, a few rounds in
turn, in one run: on a shared machine only such ratios mean something. Both start from the same
weights, and that they end at the same is checked.
"""

from __future__ import annotations

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
from fedsim.errors import InputError, RunFailed, nearest

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "bench"
TURNS = {"W1": 5, "W2": 1, "W3": 40, "W4": 40}
"""Rounds that fedsim and the loop run in turn."""

POPULATIONS = (100, 1_000, 10_000, 100_000, 1_000_000)
"""Numbers of clients of W4."""


@dataclass
class Result:
    """What was measured of one workload; seconds are of single rounds."""

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
        """fedsim's seconds over the loop's, a turn each (medians over the turn's rounds)."""
        turn = len(self.fedsim) // self.turns
        cuts = range(0, len(self.fedsim), turn)
        medians = [
            (
                statistics.median(self.fedsim[i : i + turn]),
                statistics.median(self.limit[i : i + turn]),
            )
            for i in cuts
        ]
        return [ours / theirs for ours, theirs in medians]


def main(workloads: Sequence[str] = (), repeats: int = 5, rounds: int | None = None) -> None:
    """Measure the workloads and print a table.

    `repeats` turns of `rounds` rounds each (a default for each workload) are run; an empty list of
    workloads means all of them.

    Raises:
        InputError: an unknown workload, or numbers below 1.
    """
    for name in workloads:
        if name.upper() not in TURNS:
            raise InputError(
                f"a workload must be one of {', '.join(TURNS)}, got {name!r}."
                f"{nearest(name.upper(), TURNS)}"
            )
    for key, value in (("repeats", repeats), ("rounds", rounds)):
        if value is not None and value < 1:
            raise InputError(f"{key} must be a whole number of at least 1, got {value}")
    chosen = [name.upper() for name in workloads] or list(TURNS)
    print(_machine())
    print(f"median of {repeats} turns; limit: hand-written loop, 2 processes of 1 thread\n")
    print(_row(_HEAD), flush=True)
    for name in chosen:
        for result in _measure(name, repeats, rounds or TURNS[name]):
            print(_row(_cells(result)), flush=True)
    print("\nlaunch to end of round 1, `fedsim run` on W3 (median of 3):", flush=True)
    for engine in ("serial", "ray"):
        print(
            f"  {engine:7}{statistics.median(_launch(engine) for _ in range(3)):6.1f} s", flush=True
        )


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
    """Give a round loop in a temporary run folder, to be stepped through by hand."""
    from fedsim.components import build
    from fedsim.engine.executors import open_executor
    from fedsim.rounds.loop import RoundLoop
    from fedsim.rounds.progress import Progress
    from fedsim.rounds.setup import build_parts
    from fedsim.runs.folder import RunFolder

    def data(experiment: Experiment) -> tuple[Any, Any]:
        dataset = build.build_dataset(experiment)
        return dataset, build.build_partition(experiment, dataset)

    with (
        tempfile.TemporaryDirectory() as out,
        RunFolder.create(Path(out), experiment.name, experiment.seed) as folder,
    ):
        parts = build_parts(experiment, data)
        with open_executor(parts.experiment, parts.manifest.public_rows) as executor:
            folder.begin(to_yaml(experiment), {}, parts.manifest)
            loop = RoundLoop(parts, executor, folder, Progress())
            try:
                yield loop
            finally:
                loop.close()


def _memory_mib() -> float:
    """Return the memory of this process and its workers, without Ray's own servers, in MiB.

    Unique set size: pages that processes share, such as the data set's, do not count twice.
    """
    import psutil

    total = psutil.Process().memory_full_info().uss
    for process in psutil.process_iter(["pid", "name", "cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if line.startswith("ray::_Actor"):
            total += process.memory_full_info().uss
    return total / 2**20


def _launch(engine: str) -> float:
    """Return the seconds from starting `fedsim run` to its line about round 1."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "fedsim.cli", "run", str(FOLDER / "w3.yaml")]
        command += ["--set", "rounds=1", "--set", f"engine.name={engine}", "--out", out]
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            lines = process.stdout or ()
            said = [(line, time.perf_counter() - started) for line in lines]
        seconds = [at for line, at in said if line.startswith("round 1")]
        if not seconds:
            raise RunFailed(f"`{' '.join(command)}` ended with status {process.returncode}")
        return seconds[0]


def _machine() -> str:
    import os

    from fedsim.runs.environment import cpu_model

    return (
        f"{cpu_model()}, {os.cpu_count()} cores, {platform.system()}, {time.strftime('%Y-%m-%d')}"
    )


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
