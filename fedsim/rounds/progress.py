"""What a run shows while it goes: an observer that the round loop calls and that changes nothing.

start(experiment, folder, first_round)      before the first round of this process
cohort(round, done, total)                  clients of the round finished so far
event(round, client, kind, text)            a client failed, an update was screened, ...
round_end(round, metrics, seconds)          after a round is recorded
end(folder, table, seconds)                 after the last round
close()                                     always, however the run ends
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fedsim.runs.summary import Table, format_seconds, format_table

if TYPE_CHECKING:
    from fedsim.config.experiment import Experiment


MAX_EVENTS = 5
"""Events of one round that are shown; the others are counted."""


class Progress:
    """Shows nothing, and remembers where the run is; the base of the others."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.rounds = 0
        self._every = 1
        self._events = 0
        self._first = 1
        self._started = 0.0

    def start(self, experiment: Experiment, folder: Path, first_round: int) -> None:
        self.folder = Path(folder)
        self.rounds = experiment.rounds
        self._every = experiment.evaluation.every
        self._events = 0
        self._first = first_round
        self._started = time.monotonic()

    def cohort(self, round: int, done: int, total: int) -> None:
        pass

    def round_end(self, round: int, metrics: Mapping[str, float], seconds: float) -> None:
        pass

    def event(self, round: int, client: int | None, kind: str, text: str) -> None:
        pass

    def end(self, folder: Path, table: Table, seconds: float) -> None:
        pass

    def close(self) -> None:
        pass

    def _time_left(self, round: int) -> str:
        """Return ``ETA 3.0 s`` from the mean of this process's rounds, empty after the last."""
        if round >= self.rounds:
            return ""
        elapsed = time.monotonic() - self._started
        left = elapsed / (round - self._first + 1) * (self.rounds - round)
        return f"  ETA {format_seconds(left)}"

    def _is_evaluated(self, round: int) -> bool:
        return round % self._every == 0 or round == self.rounds

    def _event_line(self, round: int, client: int | None, kind: str, text: str) -> str | None:
        """Return the line to show, None once the round has had `MAX_EVENTS`."""
        self._events += 1
        if self._events > MAX_EVENTS:
            return None
        who = "" if client is None else f" client {client}"
        return f"round {round}:{who} {kind}: {next(iter(text.splitlines()), '')}"

    def _hidden_events(self, round: int) -> str | None:
        """Return the line that counts the round's events not shown, and forget them."""
        hidden, self._events = self._events - MAX_EVENTS, 0
        return f"round {round}: {hidden} more events, see metrics.db" if hidden > 0 else None


class PlainProgress(Progress):
    """Lines of text: the first, the last and every evaluated round, at most two a second."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream
        self._printed = -math.inf

    def start(self, experiment: Experiment, folder: Path, first_round: int) -> None:
        super().start(experiment, folder, first_round)
        self._printed = -math.inf
        self._print(_headline(experiment, first_round))

    def round_end(self, round: int, metrics: Mapping[str, float], seconds: float) -> None:
        hidden = self._hidden_events(round)
        if hidden:
            self._print(hidden)
        now = time.monotonic()
        since = now - self._printed
        always = round in (self._first, self.rounds)
        # A run that is never evaluated still shows that it lives.
        if always or since >= (0.5 if self._is_evaluated(round) else 10):
            self._printed = now
            shown = format_metrics(metrics)
            self._print(
                f"round {round}/{self.rounds}  {shown}{'  ' if shown else ''}"
                f"{format_seconds(seconds)}/round{self._time_left(round)}"
            )

    def event(self, round: int, client: int | None, kind: str, text: str) -> None:
        line = self._event_line(round, client, kind, text)
        if line:
            self._print(line)

    def end(self, folder: Path, table: Table, seconds: float) -> None:
        self._print(f"\n{format_table(table)}\n\n{folder}")

    def _print(self, text: str) -> None:
        print(text, file=self._stream or sys.stdout, flush=True)


class TerminalProgress(Progress):
    """Live bars: rounds, clients of the round, latest metrics and time left."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream
        self._bars: Any = None
        self._rounds_bar: Any = None
        self._clients_bar: Any = None
        self._metrics: dict[str, float] = {}

    def start(self, experiment: Experiment, folder: Path, first_round: int) -> None:
        from rich import progress as rich
        from rich.console import Console

        self.close()
        super().start(experiment, folder, first_round)
        self._metrics = {}
        console = Console(file=self._stream or sys.stdout, highlight=False)
        console.print(_headline(experiment, first_round), markup=False)
        self._bars = rich.Progress(
            rich.TextColumn("{task.description:<7}"),
            rich.BarColumn(bar_width=24),
            rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[note]}", markup=False),
            console=console,
            refresh_per_second=4,
            transient=True,
        )
        self._rounds_bar = self._bars.add_task(
            "rounds", total=self.rounds, completed=first_round - 1, note=""
        )
        self._clients_bar = self._bars.add_task(
            "clients", total=experiment.cohort_size, note=f"of round {first_round}"
        )
        self._bars.start()

    def cohort(self, round: int, done: int, total: int) -> None:
        if self._bars is not None:
            self._bars.update(
                self._clients_bar, completed=done, total=total, note=f"of round {round}"
            )

    def round_end(self, round: int, metrics: Mapping[str, float], seconds: float) -> None:
        self._metrics |= metrics
        if self._bars is None:
            return
        hidden = self._hidden_events(round)
        if hidden:
            self._bars.console.print(hidden, markup=False)
        self._bars.update(
            self._rounds_bar,
            completed=round,
            note=format_metrics(self._metrics, limit=2) + self._time_left(round),
        )

    def event(self, round: int, client: int | None, kind: str, text: str) -> None:
        line = self._event_line(round, client, kind, text)
        if line and self._bars is not None:
            self._bars.console.print(line, markup=False)
        elif line:  # a resumed run finds damaged checkpoints before it starts
            print(line, file=self._stream or sys.stdout, flush=True)

    def end(self, folder: Path, table: Table, seconds: float) -> None:
        self.close()
        print(f"{format_table(table)}\n\n{folder}", file=self._stream or sys.stdout, flush=True)

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def make_progress(stream: TextIO | None = None) -> Progress:
    """Return live bars if `stream` (standard output) is a terminal, else plain lines."""
    is_terminal = (stream or sys.stdout).isatty()
    return TerminalProgress(stream) if is_terminal else PlainProgress(stream)


def format_metrics(metrics: Mapping[str, float], limit: int = 4) -> str:
    """Return the first `limit` metrics as ``name value``, shares and losses first."""
    from fedsim.evaluate.metric_names import is_share

    def rank(name: str) -> int:
        return 0 if is_share(name) else 1 if name.endswith("loss") else 2

    names = sorted(metrics, key=rank)[:limit]
    return "  ".join(f"{name} {metrics[name]:.4g}" for name in names)


def _headline(experiment: Experiment, first_round: int) -> str:
    e = experiment
    resumed = f", from round {first_round}" if first_round > 1 else ""
    return (
        f"{e.name}, seed {e.seed}: {e.strategy.name} on {e.dataset.name}, "
        f"{e.partition.clients} clients ({e.partition.name}), {e.cohort_size} a round, "
        f"{e.rounds} rounds{resumed}"
    )
