"""What a run shows: lines, events and the final table."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from fedsim.config.experiment import Experiment
from fedsim.config.reading import load_experiment
from fedsim.rounds import progress
from fedsim.rounds.progress import (
    PlainProgress,
    Progress,
    TerminalProgress,
    format_metrics,
    make_progress,
)
from fedsim.runs.summary import format_seconds, format_table, summary_table


def experiment(rounds: int, every: int) -> Experiment:
    return load_experiment(
        {
            "name": "small",
            "rounds": rounds,
            "dataset": {"name": "digits"},
            "partition": {"name": "iid", "clients": 4},
            "model": {"name": "cnn"},
            "strategy": {"name": "fedavg"},
            "participation": 0.5,
            "evaluation": {"every": every},
        }
    )


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def rounds_shown(
    monkeypatch: pytest.MonkeyPatch, rounds: int, every: int, seconds: float, first: int = 1
) -> list[str]:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    stream = io.StringIO()
    shown = PlainProgress(stream)
    shown.start(experiment(rounds, every), Path("runs/small/seed-0"), first)
    for round in range(first, rounds + 1):
        clock.now += seconds
        shown.round_end(round, {"generic/accuracy": 0.5}, seconds)
    return [line for line in stream.getvalue().splitlines() if line.startswith("round")]


def numbers(lines: list[str]) -> list[int]:
    return [int(line.split()[1].partition("/")[0]) for line in lines]


def test_plain_lines_at_the_first_last_and_evaluated_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = rounds_shown(monkeypatch, rounds=12, every=5, seconds=1.0)
    assert numbers(lines) == [1, 5, 10, 12]
    assert lines[1] == "round 5/12  generic/accuracy 0.5  1.0 s/round  ETA 7.0 s"
    assert lines[-1] == "round 12/12  generic/accuracy 0.5  1.0 s/round"


def test_plain_lines_of_fast_rounds_are_at_most_two_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = rounds_shown(monkeypatch, rounds=100, every=1, seconds=0.125)
    # 12.5 seconds: the first, then every fourth, then the last.
    assert numbers(lines) == [*range(1, 98, 4), 100]


def test_plain_lines_of_slow_rounds_that_are_not_evaluated_still_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert numbers(rounds_shown(monkeypatch, rounds=9, every=100, seconds=5.0)) == [1, 3, 5, 7, 9]


def test_eta_of_a_resumed_run_counts_its_own_rounds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = rounds_shown(monkeypatch, rounds=10, every=5, seconds=2.0, first=4)
    assert numbers(lines) == [4, 5, 10]
    assert lines[0].endswith("ETA 12.0 s")


def test_events_are_shown_up_to_a_number_a_round() -> None:
    stream = io.StringIO()
    shown = PlainProgress(stream)
    shown.start(experiment(2, 1), Path("run"), 1)
    for client in range(8):
        shown.event(1, client, "non-finite", "update has NaN\ntraceback")
    shown.round_end(1, {}, 1.0)
    shown.event(2, None, "worker", "replaced")
    lines = stream.getvalue().splitlines()[1:]
    assert lines[:5] == [f"round 1: client {c} non-finite: update has NaN" for c in range(5)]
    assert lines[5] == "round 1: 3 more events, see metrics.db"
    assert lines[7] == "round 2: worker: replaced"


@pytest.mark.parametrize("make", [PlainProgress, TerminalProgress])
def test_the_end_is_the_table_and_the_folder(make: type[PlainProgress | TerminalProgress]) -> None:
    stream = io.StringIO()
    shown = make(stream)
    shown.start(experiment(3, 1), Path("runs/small/seed-0"), 1)
    shown.cohort(1, 1, 2)
    shown.round_end(1, {"generic/accuracy": 0.25}, 0.1)
    shown.event(2, 3, "dropped", "[not] markup")
    shown.end(Path("runs/small/seed-0"), [("rounds", "3"), ("time", "1.0 s")], 1.0)
    shown.close()
    assert stream.getvalue().endswith("rounds      3\ntime    1.0 s\n\nruns/small/seed-0\n")
    assert "round 2: client 3 dropped: [not] markup" in stream.getvalue()
    assert shown.folder == Path("runs/small/seed-0")


def test_the_display_follows_the_stream() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert type(make_progress(Terminal())) is TerminalProgress
    assert type(make_progress(io.StringIO())) is PlainProgress


def test_the_base_class_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress()
    shown.start(experiment(1, 1), Path("run"), 1)
    shown.round_end(1, {"a": 1.0}, 1.0)
    shown.end(Path("run"), [("a", "b")], 1.0)
    assert capsys.readouterr() == ("", "")
    assert shown.folder == Path("run")


def test_summary_table() -> None:
    # Deviations from the mean 0.6: -0.4, -0.1, 0, 0.1, 0.4; variance 0.34 / 5 = 0.068.
    table = summary_table(0.75, {"generic": [1.0, 0.5, 0.2, 0.6, 0.7]}, 30, 75.0)
    assert table == [
        ("generic accuracy", "75.00 %"),
        ("client mean", "60.00 %"),
        ("client spread", "26.08 %"),
        ("worst client", "20.00 %"),
        ("worst 10 %", "20.00 %"),
        ("rounds", "30"),
        ("time", "1 m 15 s"),
    ]


def test_summary_of_personal_models_missing_values_and_the_worst_tenth() -> None:
    nan = float("nan")
    values = [i / 20 for i in range(20)]  # the worst two: 0 and 0.05
    table = dict(summary_table(None, {"generic": [nan], "personal": [*values, nan]}, 1, 0.25))
    assert table == {
        "generic accuracy": "-",
        "personal client mean": "47.50 %",
        "personal client spread": "28.83 %",  # sqrt((20^2 - 1) / 12) / 20
        "personal worst client": "0.00 %",
        "personal worst 10 %": "2.50 %",
        "rounds": "1",
        "time": "250 ms",
    }


def test_formats() -> None:
    assert format_table([("a", "1"), ("long", "22")]) == "a      1\nlong  22"
    metrics = {"norm": 1.0, "train/loss": 0.123456, "generic/accuracy": 0.5}
    assert format_metrics(metrics, limit=2) == "generic/accuracy 0.5  train/loss 0.1235"
    assert [format_seconds(s) for s in (0.0421, 59.94, 125, 3725)] == [
        "42 ms",
        "59.9 s",
        "2 m 05 s",
        "1 h 02 m",
    ]
