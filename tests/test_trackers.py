"""Trackers log every value once, in the libraries' own files."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.cli.commands import main
from fedsim.errors import InputError
from fedsim.trackers import Tracked, Tracker, make_trackers
from tests.support.interruptions import StopAt
from tests.support.runs import TESTS, tiny


class Seen(Tracker):
    def __init__(self) -> None:
        self.rounds: list[int] = []
        self.values: dict[tuple[int, str], float] = {}
        self.calls: list[Any] = []

    def begin(self, experiment: Any, folder: Path, first_round: int) -> None:
        self.calls.append(("begin", experiment.name, first_round))

    def log(self, round: int, metrics: Mapping[str, float]) -> None:
        self.rounds.append(round)
        for name, value in metrics.items():
            assert (round, name) not in self.values
            self.values[round, name] = value

    def end(self, finished: bool) -> None:
        self.calls.append(("end", finished))


def test_a_tracker_gets_what_is_recorded(tmp_path: Path) -> None:
    seen = Seen()
    run = fedsim.run(tiny(), out=tmp_path, progress=Tracked([seen], clients=True))
    assert seen.calls == [("begin", "tiny", 1), ("end", True)]
    assert seen.rounds == [1, 2, 3, 3]  # the clients' come last
    for name in ("generic/accuracy", "generic/loss"):
        recorded = run.values("test", name)
        for round, value in zip(recorded["round"], recorded["value"], strict=True):
            assert seen.values[round, name] == value
    last = run.client_values("test", "generic/accuracy", last=True)
    for client, value in zip(last["client"], last["value"], strict=True):
        assert seen.values[3, f"client-{client}/generic/accuracy"] == value


def test_a_resumed_run_goes_on(tmp_path: Path) -> None:
    first, second = Seen(), Seen()
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(tiny(), out=tmp_path, progress=Tracked([first], StopAt(2)))
    fedsim.resume(tmp_path / "tiny/seed-0", progress=Tracked([second]))
    assert first.calls[-1] == ("end", False)
    assert second.calls[0][2] == first.rounds[-1] + 1 or second.calls[0][2] == first.rounds[-1]
    assert second.rounds[-1] == 3


@pytest.mark.slow
def test_tensorboard_files_hold_the_values(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = fedsim.run(tiny(), out=tmp_path, progress=Tracked(make_trackers(["tensorboard"])))
    events = accumulators.EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    found = [(e.step, e.value) for e in events.Scalars("generic/accuracy")]
    recorded = run.values("test", "generic/accuracy")
    assert [step for step, _ in found] == [1, 2, 3]
    assert [value for _, value in found] == pytest.approx(recorded["value"].tolist(), rel=1e-6)


@pytest.mark.slow
def test_mlflow_runs_hold_the_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    try:
        progress = Tracked(make_trackers(["mlflow"]), StopAt(2))
        with pytest.raises(KeyboardInterrupt):
            fedsim.run(tiny(), out=tmp_path, progress=progress)
        client = mlflow.MlflowClient()
        parent = client.get_experiment_by_name("tiny")
        (stopped,) = client.search_runs([parent.experiment_id])
        assert stopped.info.status == "KILLED"
        folder = tmp_path / "tiny/seed-0"
        run = fedsim.resume(folder, progress=Tracked(make_trackers(["mlflow"])))
        (found,) = client.search_runs([parent.experiment_id])  # the same one
        assert found.info.status == "FINISHED"
        assert found.data.params["strategy.name"] == "fedavg"
        assert found.data.params["client.lr"] == "0.1"
        history = {
            m.step: m.value
            for m in client.get_metric_history(found.info.run_id, "generic/accuracy")
        }
        recorded = run.values("test", "generic/accuracy")
        assert history[3] == pytest.approx(recorded["value"].iloc[-1])
    finally:
        mlflow.set_tracking_uri(before)


@pytest.mark.slow
def test_wandb_keeps_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = fedsim.run(tiny(rounds=1), out=tmp_path, progress=Tracked(make_trackers(["wandb"])))
    (file,) = (run.path / "wandb").glob("offline-run-*/run-*.wandb")
    # The library's own process writes the file, and may be behind when `finish` returns.
    for _ in range(100):
        if b"generic/accuracy" in file.read_bytes():
            break
        time.sleep(0.1)
    assert b"generic/accuracy" in file.read_bytes()


def test_what_cannot_be_tracked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    with pytest.raises(InputError, match="one of tensorboard, mlflow, wandb, got 'tensorbord'"):
        make_trackers(["tensorbord"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    file = TESTS.parent / "experiments/quickstart.yaml"
    assert main(["run", str(file), "--track", "wandb", "--out", str(tmp_path)]) == 2
    assert "pip install 'fedsim[wandb]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
