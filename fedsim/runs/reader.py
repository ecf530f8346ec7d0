"""Queries over a run's ``metrics.db``, read-only and also while the run writes it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedsim.errors import InputError
from fedsim.runs.recorder import SCHEMA


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open `path` read-only, also while a run writes it.

    Raises:
        sqlite3.Error: it is missing, damaged or not a database.
    """
    uri = Path(path).resolve().as_uri()
    db = sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=30)
    try:
        try:
            db.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            log = Path(f"{path}-wal")
            if not Path(path).is_file() or (log.exists() and log.stat().st_size > 0):
                raise
            # A read-only folder has no room for the files that WAL readers share; with an empty
            # log the database file alone is complete.
            db.close()
            db = sqlite3.connect(f"{uri}?immutable=1", uri=True)
        yield db
    finally:
        db.close()


@contextmanager
def snapshot(path: Path, is_finished: Callable[[], bool]) -> Iterator[sqlite3.Connection]:
    """Open one consistent view of a run's metrics, empty if nothing is recorded yet.

    Raises:
        InputError: the file cannot be read, or it is missing or empty though the run has finished.
    """
    try:
        if path.is_file():
            with reading(path) as db:
                db.execute("BEGIN")
                if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'cells'").fetchone():
                    yield db
                    return
        if is_finished():
            raise InputError(f"{path} is missing or empty, though the run has finished")
        with closing(sqlite3.connect(":memory:")) as db:
            db.executescript(SCHEMA)
            yield db
    except sqlite3.Error as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def entry(db: sqlite3.Connection, key: str, default: Any) -> Any:
    """Return a value of the table ``run``."""
    row = db.execute("SELECT value FROM run WHERE key = ?", (key,)).fetchone()
    return default if row is None else json.loads(row[0])


def global_metrics(db: sqlite3.Connection) -> pd.DataFrame:
    """Return the global values: round, split, name, value."""
    rows = db.execute("SELECT series, round, value FROM globals ORDER BY round, series").fetchall()
    series, rounds, values = _columns(rows, 3)
    names = _names(db, np.array(series, np.int64))
    return pd.DataFrame({"round": _integers(rounds), **names, "value": _floats(values)})


def client_metrics(db: sqlite3.Connection) -> pd.DataFrame:
    """Return the values of single clients: round, client, split, name, value."""
    rows = db.execute("SELECT series, round, cell FROM cells ORDER BY round, series").fetchall()
    series, rounds, clients, values = _unpack_cells(rows)
    names = _names(db, series)
    return pd.DataFrame({"round": rounds, "client": clients, **names, "value": values})


def events(db: sqlite3.Connection) -> pd.DataFrame:
    """Return the events: round, client (missing where it concerns none), kind, text."""
    query = "SELECT round, client, kind, text FROM events ORDER BY round, rowid"
    columns = _columns(db.execute(query).fetchall(), 4)
    dtypes = {"round": "int64", "client": "Int64", "kind": "str", "text": "str"}
    series = zip(dtypes.items(), columns, strict=True)
    return pd.DataFrame({name: pd.Series(c, dtype=dtype) for (name, dtype), c in series})


def global_names(db: sqlite3.Connection) -> list[str]:
    """Return the global metrics as ``split/name``, in the order of their first values."""
    query = "SELECT split, name FROM series WHERE id IN (SELECT series FROM globals) ORDER BY id"
    return [f"{split}/{name}" for split, name in db.execute(query)]


def global_series(db: sqlite3.Connection, split: str, name: str) -> pd.DataFrame:
    """Return round and value of one global metric."""
    query = (
        "SELECT round, value FROM globals WHERE series = "
        "(SELECT id FROM series WHERE split = ? AND name = ?) ORDER BY round"
    )
    rounds, values = _columns(db.execute(query, (split, name)).fetchall(), 2)
    return pd.DataFrame({"round": _integers(rounds), "value": _floats(values)})


def client_series(
    db: sqlite3.Connection, split: str, name: str, last: bool, rounds: Sequence[int] | None
) -> pd.DataFrame:
    """Return round, client and value of one metric: of all rounds, the last, or these."""
    query = (
        "SELECT series, round, cell FROM cells WHERE series = "
        "(SELECT id FROM series WHERE split = ? AND name = ?)"
    )
    if rounds is not None:
        query += f" AND round IN ({', '.join(str(int(r)) for r in rounds)})"
    query += " ORDER BY round DESC LIMIT 1" if last else " ORDER BY round"
    _, *columns = _unpack_cells(db.execute(query, (split, name)).fetchall())
    return pd.DataFrame(dict(zip(("round", "client", "value"), columns, strict=True)))


def _columns(rows: list[Any], count: int) -> list[tuple[Any, ...]]:
    """Return the columns of rows, `count` empty ones if there are none."""
    return list(zip(*rows, strict=True)) or [()] * count


def _integers(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int64)


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array(values, np.float64)  # a NaN for None


def _unpack_cells(rows: list[tuple[int, int, str]]) -> tuple[np.ndarray, ...]:
    """Return series, round, client and value of all values in rows (series, round, cell)."""
    cells = [json.loads(row[2]) for row in rows]
    sizes = [len(cell) for cell in cells]
    return (
        np.repeat(_integers([row[0] for row in rows]), sizes),
        np.repeat(_integers([row[1] for row in rows]), sizes),
        _integers([int(client) for cell in cells for client in cell]),
        _floats([value for cell in cells for value in cell.values()]),
    )


def _names(db: sqlite3.Connection, keys: np.ndarray) -> dict[str, Any]:
    """Return the columns `split` and `name` of these series."""
    series = db.execute("SELECT * FROM series ORDER BY id").fetchall()
    rows = np.searchsorted(_integers([s[0] for s in series]), keys)
    columns = {"split": [s[1] for s in series], "name": [s[2] for s in series]}
    return {k: pd.Series(v, dtype="str").array.take(rows) for k, v in columns.items()}
