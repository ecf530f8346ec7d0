"""Tiny experiments, and what two runs must have in common to be called the same."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import fedsim
from fedsim.config.experiment import Experiment

TESTS = Path(__file__).resolve().parent
FAULTY = f"{TESTS}/faults.py:Faulty"
TRACING = f"{TESTS}/clients.py:Tracing"
NOTES_GPUS = f"{TESTS}/notes_gpus.py:NotesGPUs"
KEEPS_MUCH = f"{TESTS}/clients.py:KeepsMuch"
DROPOUT_AND_BATCH_NORM = f"{TESTS}/models.py:dropout_and_batch_norm"

TIMINGS = ("seconds", "train_seconds", "virtual_seconds")
"""Metrics that no two runs share."""


def tiny(**changes: Any) -> dict[str, Any]:
    """Return an experiment of a second or so: digits, 8 clients, 3 rounds, serial.

    A mapping given for a section is merged into the section's defaults unless it has a `name`.
    """
    tree: dict[str, Any] = {
        "name": "tiny",
        "rounds": 3,
        "dataset": {"name": "digits"},
        "partition": {"name": "dirichlet", "clients": 8, "alpha": 1.0},
        "model": {"name": "mlp", "hidden": [16]},
        "strategy": {"name": "fedavg"},
        "client": {"epochs": 1, "batch_size": 32, "lr": 0.1},
        "participation": 1.0,
        "engine": {"name": "serial"},
        "checkpoint": {"min_seconds": 0},
    }
    for key, value in changes.items():
        merge = isinstance(value, dict) and key in tree and "name" not in value
        tree[key] = {**tree[key], **value} if merge else value
    return tree


SCENES: dict[str, Any] = {
    "dataset": {
        "name": "emoji-scenes", "size": 64, "train": 24, "test": 6, "vendors": ["noto"],
        "groups": ["smileys", "food"], "domains": ["clear", "fog", "snow"],
    },
    "partition": {
        "name": "server-labelled", "clients": 8, "server_domain": "clear",
        "within": {"name": "domain"}, "test": 0.1,
    },
    "model": {"name": "detector", "width": 8},
}  # fmt: skip
"""Sections of an experiment with a detector and labels at the server only."""


def prepared(**changes: Any) -> Experiment:
    """Return the tiny experiment as the platform completes it."""
    from fedsim.api import prepare

    return prepare(tiny(**changes))


def model_bits(run: fedsim.Run) -> str:
    """Return the sha256 of the final model: names, types, shapes and bytes of its tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(run.arrays().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def measured(run: fedsim.Run) -> list[tuple[Any, ...]]:
    """Return every recorded value but the timings, floats as their exact hexadecimal form."""
    rows: list[tuple[Any, ...]] = []
    for split, client in ((run.metrics, False), (run.clients, True)):
        frame = split[~split["name"].isin(TIMINGS)]
        columns = ["round", "split", "name", *(["client"] if client else [])]
        keys = zip(*(frame[c].tolist() for c in columns), strict=True)
        values = (float(v).hex() for v in frame["value"])
        rows += [(*key, value) for key, value in zip(keys, values, strict=True)]
    return sorted(rows, key=repr)


def assert_same(run: fedsim.Run, reference: fedsim.Run) -> None:
    """Assert that two runs have the same model, bit for bit, and the same metrics."""
    assert measured(run) == measured(reference)
    assert model_bits(run) == model_bits(reference)


def events(run: fedsim.Run, kind: str | None = None) -> list[tuple[int, int | None, str, str]]:
    """Return the recorded events as (round, client, kind, text)."""
    frame = run.events
    clients = [None if c is None else int(c) for c in frame["client"].astype(object).where(
        frame["client"].notna(), None
    )]  # fmt: skip
    rows = list(zip(frame["round"].tolist(), clients, frame["kind"], frame["text"], strict=True))
    return [row for row in rows if kind is None or row[2] == kind]


def command(*arguments: str | Path) -> list[str]:
    """Return the argument list that runs the command line in a process of its own."""
    return [sys.executable, "-m", "fedsim.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Return the environment for such a process: it finds fedsim from any folder."""
    path = os.pathsep.join(filter(None, [str(TESTS.parents[1]), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start the command line in a process of its own."""
    return subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        **options,
    )


def cli(*arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own to its end."""
    process = start(*arguments)
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
