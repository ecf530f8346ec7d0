"""The journal of a run: rows and events of a round, written while the next one trains."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.engine.jobs import Executor, RoundLog
from fedsim.evaluate.metric_names import Metric, Split
from fedsim.evaluate.scorer import Scorer
from fedsim.rounds.progress import Progress
from fedsim.rounds.rows import columns, round_costs, train_rows
from fedsim.runs.recorder import Recorder

Event = tuple[int | None, str, str]
"""Client (None for the run), kind and text."""


@dataclass
class RoundResult:
    """What a round has come to; `trained_seconds` are those of all but evaluation."""

    round: int
    log: RoundLog
    metrics: dict[str, float]
    trained_seconds: float
    seconds: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    features: dict[str, float] = field(default_factory=dict)
    evaluated: RoundLog | None = None


class Journal:
    """Writes results and events to ``metrics.db`` and shows them."""

    def __init__(
        self, folder: Path, scorer: Scorer, split: Split, executor: Executor, progress: Progress
    ) -> None:
        """Open the file; scores are of `scorer`, on the samples `split`."""
        self._recorder = Recorder(folder / "metrics.db")
        self._recorder.set("headline", scorer.headline)
        units: dict[str, Any] = getattr(scorer, "units_to_record", dict)()
        if units:
            self._recorder.set("units", units)
        self._split: Split = split
        self._executor = executor
        self._progress = progress
        self._events: list[Event] = []
        self._pending: tuple[RoundResult, list[Event]] | None = None
        executor.when_waiting = self.write

    def truncate_after(self, round: int) -> None:
        """Remove what is recorded of later rounds, which a resumed run makes again."""
        self._recorder.truncate_after(round)

    def event(self, round: int, client: int | None, kind: str, text: str) -> None:
        """Note an event of a round under way and show it."""
        self._events.append((client, kind, text))
        self._progress.event(round, client, kind, text.split("\n")[0])

    def note(self, round: int, log: RoundLog) -> None:
        """Note what befell the clients of a round, and the workers meanwhile."""
        for report in log.failures:
            if report.failure is not None:
                text = f"{report.failure.text}\n{report.failure.traceback}".strip()
                self.event(round, report.client, report.failure.kind, text)
        for report in log.reports:
            if report.note is not None:
                self.event(round, report.client, "clipped", report.note)
        self.note_engine(round)

    def note_engine(self, round: int) -> None:
        """Note what befell the workers."""
        while self._executor.events:
            event = self._executor.events.pop(0)
            self.event(round, None, event.kind, event.text)

    def round_failed(self, round: int) -> None:
        """Write the events of a round that has no result."""
        self.note_engine(round)
        self.write()
        self._recorder.write_events(round, self._events)

    def round_done(self, result: RoundResult) -> None:
        """Keep a result until `write`, which the executor calls when it waits for workers."""
        self._pending, self._events = (result, self._events), []

    def write(self) -> None:
        """Write the result that is kept, and show it."""
        if self._pending is None:
            return
        (done, events), self._pending = self._pending, None
        rows = {("train", name): value for name, value in done.metrics.items()}
        scores = {Metric.of(name, self._split): value for name, value in done.scores.items()}
        rows |= {(metric.split, metric.key): value for metric, value in scores.items()}
        rows |= {("features", name): value for name, value in done.features.items()}
        costs = round_costs(done.log, done.seconds, done.trained_seconds)
        rows |= {("train", name): value for name, value in costs.items()}
        client_rows = train_rows(done.log)
        if done.evaluated is not None:
            client_rows += columns(self._split, done.evaluated.reports)
        self._recorder.write_round(done.round, rows, client_rows, events)
        self._progress.round_end(done.round, {**done.metrics, **done.scores}, done.seconds)

    def sync(self) -> None:
        """Write everything, to the disk."""
        self.write()
        self._recorder.sync()

    def close(self) -> None:
        """Write everything and close the file."""
        self._executor.when_waiting = _nothing
        try:
            self.write()
        finally:
            self._recorder.close()


def _nothing() -> None:
    """Do nothing while workers are at work."""
