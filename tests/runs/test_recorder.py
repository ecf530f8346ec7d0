"""The recorder: exact values, whole rounds or none, readable while written."""

from __future__ import annotations

import json
import math
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedsim.errors import RunFailed
from fedsim.runs.reader import reading
from fedsim.runs.recorder import Recorder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.db"


def rows(path: Path) -> list[tuple[object, ...]]:
    with reading(path) as db:
        return db.execute(
            "SELECT round, client, split, name, value FROM metrics ORDER BY 1, 3, 4, 2"
        ).fetchall()


def test_long_table(path: Path) -> None:
    recorder = Recorder(path)
    recorder.write_round(
        1,
        {("test", "generic/accuracy"): 0.1},
        [("train", "loss", [4, 2], [0.3, 1e-300]), ("train", "loss/b", np.array([7]), [2])],
        [(4, "nan", "update holds NaN"), (None, "note", "of the round")],
    )
    recorder.write_round(2, {("train", "loss"): 1 / 3}, [])
    recorder.close()
    assert rows(path) == [
        (1, None, "test", "generic/accuracy", 0.1),
        (1, 2, "train", "loss", 1e-300),
        (1, 4, "train", "loss", 0.3),
        (1, 7, "train", "loss/b", 2.0),
        (2, None, "train", "loss", 1 / 3),
    ]
    with reading(path) as db:
        assert db.execute("SELECT * FROM events").fetchall() == [
            (1, 4, "nan", "update holds NaN"),
            (1, None, "note", "of the round"),
        ]


def test_values_that_are_not_finite(path: Path) -> None:
    recorder = Recorder(path)
    values = [math.inf, -math.inf, math.nan]
    recorder.write_round(1, {("a", "x"): math.nan}, [("b", "y", [0, 1, 2], values)])
    recorder.close()
    # NULL is how a NaN reads in plain SQL.
    assert [r[4] for r in rows(path)] == [None, math.inf, -math.inf, None]


def test_a_round_is_written_whole_or_not(path: Path) -> None:
    recorder = Recorder(path)
    recorder.write_round(1, {("a", "x"): 1.0})
    with pytest.raises(RunFailed, match=r"cannot write .*metrics\.db: a client with two values"):
        recorder.write_round(2, {("b", "new"): 1.0}, [("b", "new2", [3, 3], [0.0, 0.0])])
    with pytest.raises(RunFailed, match=r"cannot write .*metrics\.db: UNIQUE constraint failed"):
        recorder.write_round(2, {("b", "new"): 1.0}, 2 * [("b", "new2", [3], [0.0])])
    with pytest.raises(ValueError, match="shorter"):
        recorder.write_round(2, {("b", "new"): 1.0}, [("b", "new2", [3, 4], [0.0])])
    assert len(rows(path)) == 1
    # The names given out inside the failed rounds are given out again.
    recorder.write_round(2, {("b", "new"): 2.0}, [("b", "new2", [3], [4.0])])
    recorder.close()
    assert rows(path)[1:] == [(2, None, "b", "new", 2.0), (2, 3, "b", "new2", 4.0)]


def run_table(path: Path) -> dict[str, object]:
    with reading(path) as db:
        return {k: json.loads(v) for k, v in db.execute("SELECT key, value FROM run")}


def test_truncate_after_and_resume(path: Path) -> None:
    recorder = Recorder(path)
    for round in (1, 2, 3, 4):
        recorder.write_round(
            round, {("a", "x"): round}, [("a", "y", [5], [round])], [(5, "k", str(round))]
        )
    recorder.write_events(5, [(None, "failed", "round 5")])
    recorder.set("note", {"a": [1, None]})
    recorder.close()

    recorder = Recorder(path)
    recorder.truncate_after(2)
    assert run_table(path) == {"rounds_done": 2, "note": {"a": [1, None]}}
    recorder.write_round(3, {("a", "x"): 33.0})
    recorder.close()
    assert [(r[0], r[4]) for r in rows(path)] == [(1, 1), (1, 1), (2, 2), (2, 2), (3, 33)]
    with reading(path) as db:
        assert [r[0] for r in db.execute("SELECT round FROM events")] == [1, 2]
    assert run_table(path)["rounds_done"] == 3


def test_readers_and_the_writer_do_not_wait(path: Path) -> None:
    recorder = Recorder(path)
    recorder.write_round(1, {("a", "x"): 1.0})
    with reading(path) as db:
        db.execute("BEGIN")
        assert db.execute("SELECT count(*) FROM metrics").fetchone() == (1,)
        recorder.write_round(2, {("a", "x"): 2.0})
        recorder.sync()
        assert db.execute("SELECT count(*) FROM metrics").fetchone() == (1,)
        db.execute("COMMIT")
        assert db.execute("SELECT count(*) FROM metrics").fetchone() == (2,)
        recorder.close()
        assert db.execute("SELECT count(*) FROM metrics").fetchone() == (2,)
    assert len(rows(path)) == 2


def test_a_closed_file_stands_alone(path: Path) -> None:
    recorder = Recorder(path)
    recorder.write_round(1, {("a", "x"): 1.0})
    recorder.close()
    assert [p.name for p in path.parent.iterdir()] == ["metrics.db"]


def test_readers_cannot_write(path: Path) -> None:
    Recorder(path).close()
    with reading(path) as db, pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.execute("DELETE FROM events")


KILLED = """
import os, sys
from pathlib import Path
from fedsim.runs.recorder import Recorder
recorder = Recorder(Path(sys.argv[1]))
for round in range(1, 4):
    recorder.write_round(round, {("a", "x"): round}, [("a", "y", range(9), [round] * 9)])
recorder._db.execute("BEGIN")
recorder._db.execute("DELETE FROM cells")
os.kill(os.getpid(), 9)
"""


def test_a_killed_writer_loses_no_round(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert done.returncode == -signal.SIGKILL
    assert len(rows(path)) == 30
    recorder = Recorder(path)
    recorder.write_round(4, {("a", "x"): 4.0})
    recorder.close()
    assert len(rows(path)) == 31


def test_full_disk(path: Path) -> None:
    recorder = Recorder(path)
    recorder.write_round(1, {("a", "x"): 1.0})
    log = path.with_name("metrics.db-wal").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log + 8192, hard))
    try:
        with pytest.raises(RunFailed, match=r"cannot write .*metrics\.db: "):
            recorder.write_round(2, {("a", "x"): 2.0}, [("a", "y", range(9999), [0.0] * 9999)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert len(rows(path)) == 1
    recorder.write_round(2, {("a", "x"): 2.0})
    recorder.close()
    assert len(rows(path)) == 2


def test_not_a_database(path: Path) -> None:
    path.write_bytes(b"something else" * 100)
    with pytest.raises(RunFailed, match=r"metrics\.db: file is not a database"):
        Recorder(path)
