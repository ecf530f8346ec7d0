"""Reading runs back: settings, metrics, events and the model, from files only.

Everything here is read-only and works while a run writes.
"""

from __future__ import annotations

import glob
import json
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fedsim.components import trained
from fedsim.components.build import trained_model
from fedsim.config.experiment import Experiment
from fedsim.config.reading import load_experiment
from fedsim.data.partition import Manifest
from fedsim.errors import InputError, RunFailed
from fedsim.evaluate.metric_names import Metric, Unit
from fedsim.runs import checkpoint
from fedsim.runs.folder import RunFolder
from fedsim.runs.recorder import reading
from fedsim.runs.summary import summary_table

if TYPE_CHECKING:
    from torch import Tensor, nn


class Run:
    """One run, read from its folder.

    Data frames are read at first use and again when the run has written more. Their order is
    by round; a NaN in `value` was measured as NaN.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a run.

        Raises:
            InputError: the folder is not a run.
        """
        self._folder = RunFolder.open(Path(folder))
        self._frames: dict[str, tuple[object, pd.DataFrame]] = {}
        self._config: Experiment | None = None

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._folder.path

    @property
    def config(self) -> Experiment:
        """The experiment with all defaults written out."""
        if self._config is None:
            self._config = load_experiment(self.path / "config.yaml")
        return self._config

    @property
    def status(self) -> str:
        """running, finished, failed or interrupted."""
        return self._folder.status

    @property
    def rounds_done(self) -> int:
        """The last recorded round; 0 before the first."""
        return self._folder.rounds_done

    @property
    def metrics(self) -> pd.DataFrame:
        """Global values: round, split, name, value."""
        return self._frame("metrics", self._read_global)

    @property
    def clients(self) -> pd.DataFrame:
        """Values of single clients: round, client, split, name, value."""
        return self._frame("clients", self._read_clients)

    @property
    def events(self) -> pd.DataFrame:
        """What happened: round, client (missing where it concerns none), kind, text."""
        return self._frame("events", self._read_events)

    @property
    def final(self) -> dict[str, float]:
        """The last global value of each metric, by ``split/name``."""
        last = self.metrics.drop_duplicates(["split", "name"], keep="last")
        keys = last["split"] + "/" + last["name"]
        return dict(zip(keys.tolist(), last["value"].tolist(), strict=True))

    def names(self) -> list[str]:
        """Return the global metrics as ``split/name``, in the order in which they came."""
        with self._database() as db:
            if db is None:
                return []
            query = (
                "SELECT split, name FROM series WHERE id IN (SELECT series FROM globals) "
                "ORDER BY id"
            )
            return [f"{split}/{name}" for split, name in db.execute(query)]

    def values(self, split: str, name: str) -> pd.DataFrame:
        """Return round and value of one global metric, without reading the others."""
        rows: list[Any] = []
        with self._database() as db:
            if db is not None:
                query = (
                    "SELECT round, value FROM globals WHERE series = "
                    "(SELECT id FROM series WHERE split = ? AND name = ?) ORDER BY round"
                )
                rows = db.execute(query, (split, name)).fetchall()
        rounds, values = zip(*rows, strict=True) if rows else ((), ())
        return pd.DataFrame(
            {"round": np.array(rounds, np.int64), "value": np.array(values, np.float64)}
        )

    def client_values(
        self, split: str, name: str, *, last: bool = False, rounds: Sequence[int] | None = None
    ) -> pd.DataFrame:
        """Return round, client, value of one metric, without reading the others.

        `last` keeps the last round only in which it was measured, `rounds` these alone.
        """
        with self._database() as db:
            key = None
            if db is not None:
                key = db.execute(
                    "SELECT id FROM series WHERE split = ? AND name = ?", (split, name)
                ).fetchone()
            rows: list[Any] = []
            if db is not None and key is not None:
                query = "SELECT series, round, cell FROM cells WHERE series = ?"
                if rounds is not None:
                    query += f" AND round IN ({', '.join(str(int(r)) for r in rounds)})"
                query += " ORDER BY round DESC LIMIT 1" if last else " ORDER BY round"
                rows = db.execute(query, key).fetchall()
        _, *columns = _cells(rows)
        return pd.DataFrame(dict(zip(("round", "client", "value"), columns, strict=True)))

    @property
    def headline(self) -> str:
        """The metric that models are told apart by, accuracy unless their scorer has another."""
        return str(self._recorded("headline", "accuracy"))

    def unit(self, name: str) -> Unit:
        """Return the unit of a metric, with or without its split: as its scorer declared it."""
        units = self._recorded("units", {})
        return Metric.parse(name).unit({key: Unit(*unit) for key, unit in units.items()})

    def _recorded(self, key: str, default: Any) -> Any:
        with self._database() as db:
            query = "SELECT value FROM run WHERE key = ?"
            row = None if db is None else db.execute(query, (key,)).fetchone()
        return default if row is None else json.loads(row[0])

    def check(self) -> int:
        """Read enough of the run to know that it is not damaged; return its rounds.

        Raises:
            InputError: settings or metrics that cannot be read, or fewer rounds than a finished
                run has.
        """
        rounds = self.config.rounds
        with self._database() as db:
            if db is not None:
                db.execute("SELECT count(*) FROM series, run").fetchone()
                db.execute("SELECT * FROM globals, cells LIMIT 1").fetchone()
        done = self.rounds_done
        if self.status == "finished" and done != rounds:
            raise InputError(
                f"run {self.path} is damaged: it has finished, but {done} of {rounds} rounds are "
                "recorded"
            )
        return done

    @cached_property
    def partition_digest(self) -> str:
        """What tells the run's partition from others.

        Raises:
            InputError: ``partition.npz`` is missing or damaged.
        """
        return Manifest.load(self.path / "partition.npz").digest()

    def summary(self) -> list[tuple[str, str]]:
        """Return the final table as (label, text): headline metric, spread over clients, time."""
        found = {}
        split, headline = self.config.evaluation.split, self.headline
        for model in ("generic", "personal"):
            values = self.client_values(split, f"{model}/{headline}", last=True)
            if len(values):
                found[model] = values["value"].tolist()
        metrics = self.metrics
        seconds = metrics[(metrics["split"] == "train") & (metrics["name"] == "seconds")]
        return summary_table(
            self.final.get(f"{split}/generic/{headline}"),
            found,
            self.rounds_done,
            float(seconds["value"].sum()),
            headline,
        )

    def arrays(self) -> dict[str, Tensor]:
        """Return the final global model's tensors by state-dict name.

        Raises:
            InputError: the run has not finished, or the file is damaged.
        """
        self._check_model()
        return trained.read_arrays(self.path)

    def model(self) -> nn.Module:
        """Return the final global model, in evaluation mode.

        Raises:
            InputError: as `arrays`; or the server has a part of a model only; or the frozen part is
                no longer what it was.
        """
        self._check_model()
        return trained_model(self.path, self._frozen_digest).module

    def _check_model(self) -> None:
        if not (self.path / trained.FILE).is_file():
            raise InputError(f"run {self.path} has no {trained.FILE}; it is {self.status}")

    def _frozen_digest(self) -> str | None:
        """Return what the frozen part of the model was, None where no intact checkpoint tells."""
        try:
            found = checkpoint.load_latest(self.path)
        except RunFailed:
            return None
        return None if found is None else found[1].get("frozen")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.status}, {self.rounds_done} rounds)"

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection | None]:
        """Open the metrics, in one consistent view; None where nothing was recorded yet."""
        path = self.path / "metrics.db"
        try:
            if not path.is_file():
                self._must_be_new(path)
                yield None
                return
            with reading(path) as db:
                db.execute("BEGIN")
                made = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'cells'").fetchone()
                if not made:
                    self._must_be_new(path)
                yield db if made else None
        except sqlite3.Error as error:
            raise InputError(f"{path} cannot be read: {error}") from error

    def _must_be_new(self, path: Path) -> None:
        if self.status == "finished":
            raise InputError(f"{path} is missing or empty, though the run has finished")

    def _frame(self, name: str, read: Any) -> pd.DataFrame:
        stamp = tuple(_stamp(self.path / f"metrics.db{tail}") for tail in ("", "-wal"))
        if name not in self._frames or self._frames[name][0] != stamp:
            with self._database() as db:
                self._frames[name] = stamp, read(db)
        # A shallow copy: columns that a caller adds stay the caller's.
        return self._frames[name][1].copy(deep=False)

    def _read_global(self, db: sqlite3.Connection | None) -> pd.DataFrame:
        rows: list[Any] = []
        if db is not None:
            query = "SELECT series, round, value FROM globals ORDER BY round, series"
            rows = db.execute(query).fetchall()
        series, rounds, values = zip(*rows, strict=True) if rows else ((), (), ())
        return pd.DataFrame(
            {
                "round": np.array(rounds, np.int64),
                **_names(db, np.array(series, np.int64)),
                "value": np.array(values, np.float64),  # a NaN for None
            }
        )

    def _read_clients(self, db: sqlite3.Connection | None) -> pd.DataFrame:
        rows: list[Any] = []
        if db is not None:
            query = "SELECT series, round, cell FROM cells ORDER BY round, series"
            rows = db.execute(query).fetchall()
        series, rounds, clients, values = _cells(rows)
        names = _names(db, series)
        return pd.DataFrame({"round": rounds, "client": clients, **names, "value": values})

    def _read_events(self, db: sqlite3.Connection | None) -> pd.DataFrame:
        rows: list[Any] = []
        if db is not None:
            query = "SELECT round, client, kind, text FROM events ORDER BY round, rowid"
            rows = db.execute(query).fetchall()
        columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
        return pd.DataFrame(
            {
                "round": pd.Series(columns[0], dtype="int64"),
                "client": pd.Series(columns[1], dtype="Int64"),
                "kind": pd.Series(columns[2], dtype="str"),
                "text": pd.Series(columns[3], dtype="str"),
            }
        )


def load_run(path: str | Path) -> Run:
    """Return the run in a folder.

    Raises:
        InputError: it is not a run.
    """
    return Run(path)


def load_runs(patterns: str | Path | Iterable[str | Path]) -> list[Run]:
    """Return the runs that paths or globs name, each once, in the order of their paths.

    A folder that holds ``seed-*`` folders, or folders that do, stands for these. What is not a run
    or is damaged is named in a warning and left out; an unfinished run is named and kept.

    Raises:
        InputError: no run is left.
    """
    given = [patterns] if isinstance(patterns, str | Path) else list(patterns)
    runs: dict[Path, Run] = {}
    for pattern in given:
        found = sorted(glob.glob(str(pattern), recursive=True)) or [str(pattern)]
        for place in chain.from_iterable(_expand(Path(p)) for p in found):
            key = place.resolve()
            if key in runs:
                continue
            try:
                run = Run(place)
                done, status = run.check(), run.status
            except InputError as error:
                warnings.warn(f"left out: {error}", stacklevel=2)
                continue
            if status != "finished":
                warnings.warn(f"run {place} is {status} after round {done}", stacklevel=2)
            runs[key] = run
    if not runs:
        raise InputError(f"no runs in {', '.join(map(str, given)) or 'an empty list'}")
    return [runs[key] for key in sorted(runs)]


def _expand(place: Path) -> list[Path]:
    if (place / "config.yaml").is_file():
        return [place]
    for pattern in ("seed-*", "*/seed-*"):
        if found := sorted(p for p in place.glob(pattern) if p.is_dir()):
            return found
    return [place]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _cells(rows: list[tuple[int, int, str]]) -> tuple[np.ndarray, ...]:
    """Return series, round, client and value of all values in rows (series, round, cell)."""
    cells = [json.loads(row[2]) for row in rows]
    sizes = [len(cell) for cell in cells]
    clients = [int(client) for cell in cells for client in cell]
    values = [value for cell in cells for value in cell.values()]
    return (
        np.repeat(np.array([row[0] for row in rows], np.int64), sizes),
        np.repeat(np.array([row[1] for row in rows], np.int64), sizes),
        np.array(clients, np.int64),
        np.array(values, np.float64),  # a NaN for None
    )


def _names(db: sqlite3.Connection | None, keys: np.ndarray) -> dict[str, Any]:
    """Return the columns `split` and `name` of these series."""
    series = [] if db is None else db.execute("SELECT * FROM series ORDER BY id").fetchall()
    rows = np.searchsorted(np.array([s[0] for s in series], np.int64), keys)
    columns = {"split": [s[1] for s in series], "name": [s[2] for s in series]}
    return {k: pd.Series(v, dtype="str").array.take(rows) for k, v in columns.items()}
