"""Finished and unfinished runs, read from their folders: settings, metrics, events, model.

Everything here is read-only and works while a run writes.
"""

from __future__ import annotations

import glob
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from fedsim.components import trained
from fedsim.components.build import trained_model
from fedsim.config.experiment import Experiment
from fedsim.config.reading import load_experiment
from fedsim.data.partition import Manifest
from fedsim.errors import InputError, RunFailed
from fedsim.runs import checkpoint, reader
from fedsim.runs.folder import RunFolder
from fedsim.runs.summary import summary_table

if TYPE_CHECKING:
    from torch import Tensor, nn


class Run:
    """One run, read from its folder.

    Data frames are read at first use, and again when the run has written more. They are sorted by
    round; a NaN in `value` was measured as NaN.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a run.

        Raises:
            InputError: the folder is not a run.
        """
        self._folder = RunFolder.open(Path(folder))
        self._frames: dict[object, tuple[object, pd.DataFrame]] = {}

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._folder.path

    @cached_property
    def config(self) -> Experiment:
        """The experiment with all defaults filled in."""
        return load_experiment(self.path / "config.yaml")

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
        return self._frame(reader.global_metrics)

    @property
    def clients(self) -> pd.DataFrame:
        """Values of single clients: round, client, split, name, value."""
        return self._frame(reader.client_metrics)

    @property
    def events(self) -> pd.DataFrame:
        """Failed clients, screened updates and the like: round, client (or missing), kind, text."""
        return self._frame(reader.events)

    @property
    def final(self) -> dict[str, float]:
        """The last global value of each metric, by ``split/name``."""
        last = self.metrics.drop_duplicates(["split", "name"], keep="last")
        keys = last["split"] + "/" + last["name"]
        return dict(zip(keys.tolist(), last["value"].tolist(), strict=True))

    def names(self) -> list[str]:
        """Return the global metrics as ``split/name``, in the order of their first values."""
        with self._database() as db:
            return reader.global_names(db)

    def values(self, split: str, name: str) -> pd.DataFrame:
        """Return round and value of one global metric, without reading the others."""
        with self._database() as db:
            return reader.global_series(db, split, name)

    def client_values(
        self, split: str, name: str, *, last: bool = False, rounds: Sequence[int] | None = None
    ) -> pd.DataFrame:
        """Return round, client, value of one metric, without reading the others.

        `last` keeps only the last round in which it was measured, `rounds` only these rounds.
        """
        with self._database() as db:
            return reader.client_series(db, split, name, last, rounds)

    @property
    def headline(self) -> str:
        """The metric that models are told apart by, accuracy unless their scorer has another."""
        with self._database() as db:
            return str(reader.entry(db, "headline", "accuracy"))

    def check(self) -> int:
        """Check settings and metrics for damage; return the number of rounds recorded.

        Raises:
            InputError: settings or metrics cannot be read, or rounds of a finished run are missing.
        """
        rounds = self.config.rounds
        with self._database() as db:
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
        """Digest of the run's partition, equal for equal partitions.

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
            InputError: as `arrays`; or the server has only a part of a model; or the frozen part
                has changed since.
        """
        self._check_model()
        return trained_model(self.path, self._frozen_digest).module

    def _check_model(self) -> None:
        if not (self.path / trained.FILE).is_file():
            raise InputError(f"run {self.path} has no {trained.FILE}; it is {self.status}")

    def _frozen_digest(self) -> str | None:
        """Return the digest of the model's frozen part, None without an intact checkpoint."""
        try:
            latest = checkpoint.load_latest(self.path)
        except RunFailed:
            return None
        return None if latest is None else latest[1].get("frozen")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.status}, {self.rounds_done} rounds)"

    def _database(self) -> AbstractContextManager[sqlite3.Connection]:
        return reader.snapshot(self.path / "metrics.db", lambda: self.status == "finished")

    def _frame(self, read: Callable[[sqlite3.Connection], pd.DataFrame]) -> pd.DataFrame:
        stamp = tuple(_stamp(self.path / f"metrics.db{tail}") for tail in ("", "-wal"))
        if read not in self._frames or self._frames[read][0] != stamp:
            with self._database() as db:
                self._frames[read] = stamp, read(db)
        # A shallow copy: columns that a caller adds stay the caller's.
        return self._frames[read][1].copy(deep=False)


def load_run(path: str | Path) -> Run:
    """Return the run in a folder.

    Raises:
        InputError: it is not a run.
    """
    return Run(path)


def load_runs(patterns: str | Path | Iterable[str | Path]) -> list[Run]:
    """Return the runs that match paths or globs, each once, sorted by path.

    A folder of ``seed-*`` folders, or of folders of these, means all runs in it. Damaged runs and
    other files are left out with a warning; unfinished runs are kept with a warning.

    Raises:
        InputError: no run is left.
    """
    patterns = [patterns] if isinstance(patterns, str | Path) else list(patterns)
    runs: dict[Path, Run] = {}
    for pattern in patterns:
        paths = sorted(glob.glob(str(pattern), recursive=True)) or [str(pattern)]
        for place in chain.from_iterable(_expand(Path(p)) for p in paths):
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
        raise InputError(f"no runs in {', '.join(map(str, patterns)) or 'an empty list'}")
    return [runs[key] for key in sorted(runs)]


def _expand(place: Path) -> list[Path]:
    if (place / "config.yaml").is_file():
        return [place]
    for pattern in ("seed-*", "*/seed-*"):
        if folders := sorted(p for p in place.glob(pattern) if p.is_dir()):
            return folders
    return [place]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
