"""Recorder of a run's metrics and events: one SQLite file, one transaction a round.

Readers find the view ``metrics(round, client, split, name, value)``, in which `client` is NULL for
global values, and the tables ``events(round, client, kind, text)`` and ``run(key, value)``, whose
values are JSON. The view joins ``series(id, split, name)`` with ``globals``, one row for each
value, and ``cells``, one row for all clients of a series and round: a JSON object
``{"client": value}`` in ascending order of clients. Writing cells takes a third of the time of a
row for each client, and reading one metric reads its own cells only. Python reads such a value back
to the bit; SQLite's own parser, which the view uses, may be off by the last one.

SQLite has no NaN: a NaN is stored as NULL, which means nothing else, as every row of `metrics` has
a value. Infinities are stored as such, in a cell as ``9e999``, which every parser reads as one.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import RunFailed, os_errors_as

SCHEMA = """
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY, split TEXT NOT NULL, name TEXT NOT NULL, UNIQUE (split, name)
);
CREATE TABLE IF NOT EXISTS globals (
    series INTEGER NOT NULL, round INTEGER NOT NULL, value REAL, PRIMARY KEY (series, round)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cells (
    series INTEGER NOT NULL, round INTEGER NOT NULL, cell TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS cell_places ON cells (series, round);
CREATE TABLE IF NOT EXISTS events (
    round INTEGER NOT NULL, client INTEGER, kind TEXT NOT NULL, text TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS run (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE VIEW IF NOT EXISTS metrics AS
    SELECT round, NULL AS client, split, name, value
    FROM globals JOIN series ON series.id = globals.series
    UNION ALL SELECT round, CAST(key AS INTEGER), split, name, json_each.value
    FROM cells JOIN series ON series.id = cells.series, json_each(cell);
"""

ClientRows = tuple[str, str, Sequence[int] | np.ndarray, Sequence[float] | np.ndarray]
"""(split, name, clients, values); clients and values have the same length."""

Event = tuple[int | None, str, str]
"""(client or None, kind, text)."""


class Recorder:
    """Writer of a run's metrics; the lock of the run folder ensures that there is only one."""

    def __init__(self, path: Path) -> None:
        """Open or create `path`.

        Raises:
            RunFailed: it cannot be opened or is not a database.
        """
        self.path = Path(path)
        self._series: dict[tuple[str, str], int] = {}
        with self._failures():
            self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            # One transaction: a reader sees all of the tables or none.
            self._db.executescript(f"BEGIN;{SCHEMA}COMMIT;")
            for key, split, name in self._db.execute("SELECT id, split, name FROM series"):
                self._series[split, name] = key

    def write_round(
        self,
        round: int,
        global_rows: Mapping[tuple[str, str], float],
        client_rows: Iterable[ClientRows] = (),
        events: Iterable[Event] = (),
    ) -> None:
        """Write the metrics of a round in one transaction and mark it as done.

        `global_rows` maps (split, name) to the value.

        Raises:
            RunFailed: the disk is full or fails, or the round has a value already; nothing of the
                round is written.
        """
        with self._transaction() as db:
            values = [
                (self._id(split, name), round, float(value))
                for (split, name), value in global_rows.items()
            ]
            db.executemany("INSERT INTO globals VALUES (?, ?, ?)", values)
            cells = [
                (self._id(split, name), round, self._cell(*columns))
                for split, name, *columns in client_rows
            ]
            db.executemany("INSERT INTO cells VALUES (?, ?, ?)", cells)
            db.executemany(
                "INSERT INTO events VALUES (?, ?, ?, ?)",
                [(round, client, kind, text) for client, kind, text in events],
            )
            self._put("rounds_done", round)

    def write_events(self, round: int, events: Iterable[Event]) -> None:
        """Write events without metrics, such as those of a round that failed.

        Raises:
            RunFailed: the disk is full or fails.
        """
        rows = [(round, client, kind, text) for client, kind, text in events]
        with self._transaction() as db:
            db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", rows)

    def truncate_after(self, round: int) -> None:
        """Delete what was recorded for later rounds, which a resume repeats.

        Raises:
            RunFailed: the disk is full or fails.
        """
        with self._transaction() as db:
            for key in self._series.values():
                for table in ("globals", "cells"):
                    query = f"DELETE FROM {table} WHERE series = ? AND round > ?"
                    db.execute(query, (key, round))
            db.execute("DELETE FROM events WHERE round > ?", (round,))
            row = db.execute("SELECT value FROM run WHERE key = 'rounds_done'").fetchone()
            if row is not None and json.loads(row[0]) > round:
                self._put("rounds_done", round)

    def set(self, key: str, value: Any) -> None:
        """Set an entry of the table ``run`` to a JSON-able value.

        Raises:
            RunFailed: the disk is full or fails.
        """
        with self._transaction():
            self._put(key, value)

    def sync(self) -> None:
        """Make the record survive a power cut; call it before writing a checkpoint.

        Otherwise a checkpoint could outlive the rows of the rounds before it.

        Raises:
            RunFailed: the disk fails.
        """
        log = self.path.with_name(self.path.name + "-wal")
        try:
            descriptor = os.open(log, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            with os_errors_as(RunFailed, f"cannot write {self.path}"):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close the database, as a single file that can be read from a read-only folder.

        Raises:
            RunFailed: the disk is full or fails.
        """
        with self._failures():
            try:
                # Refused while another connection reads; then the log stays beside the file.
                self._db.execute("PRAGMA busy_timeout=0")
                self._db.execute("PRAGMA journal_mode=DELETE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
            finally:
                self._db.close()

    def _id(self, split: str, name: str) -> int:
        key = self._series.get((split, name))
        if key is None:
            cursor = self._db.execute(
                "INSERT INTO series (split, name) VALUES (?, ?)", (split, name)
            )
            assert cursor.lastrowid is not None
            key = self._series[split, name] = cursor.lastrowid
        return key

    def _cell(self, clients: Any, values: Any) -> str:
        clients = np.asarray(clients, np.int64).tolist()
        values = np.asarray(values, np.float64).tolist()
        pairs = sorted(zip(clients, values, strict=True))
        if len(set(clients)) < len(clients):
            raise RunFailed(f"cannot write {self.path}: a client with two values in one round")
        text = ",".join([f'"{client}":{value!r}' for client, value in pairs])
        if "n" in text:  # of nan or inf; no finite number has it
            text = text.replace("nan", "null").replace("inf", "9e999")
        return f"{{{text}}}"

    def _put(self, key: str, value: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO run VALUES (?, ?)", (key, json.dumps(value)))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        series = dict(self._series)
        with self._failures():
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                self._series = series  # ids assigned in the transaction are rolled back too
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise RunFailed(f"cannot write {self.path}: {error}") from error
