"""Runs with numbers that a test chooses, and the numbers of runs by plain SQL."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import fedsim
from fedsim.runs.recorder import Recorder


def query(folder: Path, sql: str) -> list[Any]:
    with sqlite3.connect(folder / "metrics.db") as db:
        return db.execute(sql).fetchall()


def stored(folder: Path, name: str) -> list[tuple[int, float]]:
    """Return round and value of a global test metric, by plain SQL."""
    return query(
        folder,
        "SELECT round, value FROM metrics WHERE client IS NULL AND split = 'test' "
        f"AND name = '{name}' ORDER BY round",
    )


def write_run(
    made: Path,
    out: Path,
    name: str,
    seed: int,
    curves: Mapping[str, Sequence[float]],
    clients: Mapping[str, Sequence[Sequence[float]]] | None = None,
    **changes: Any,
) -> fedsim.Run:
    """Write a finished run with the data and partition of `made`.

    `curves` map ``split/name`` to a value for each round; `clients` a test metric to a list for
    each round, with a value a client. `changes` are sections, merged into those of the experiment.
    """
    folder = out / name / f"seed-{seed}"
    shutil.copytree(made / "fedavg/seed-0", folder, ignore=shutil.ignore_patterns("metrics*"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    rounds = len(next(iter(curves.values())))
    config |= {"name": name, "seed": seed, "rounds": rounds}
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    recorder = Recorder(folder / "metrics.db")
    for i in range(rounds):
        scores = {}
        for key, values in curves.items():
            split, _, metric = key.partition("/")
            scores[split, metric] = values[i]
        rows = [
            ("test", metric, list(range(len(values[i]))), list(values[i]))
            for metric, values in (clients or {}).items()
        ]
        recorder.write_round(i + 1, scores, rows)
    recorder.close()
    return fedsim.load_run(folder)
