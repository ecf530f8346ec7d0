"""Runs read back hold what was recorded."""

from __future__ import annotations

import math
import sqlite3
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import fedsim
from fedsim.components import build
from fedsim.config.reading import load_experiment
from fedsim.errors import InputError
from fedsim.runs.recorder import Recorder
from fedsim.runs.results import Run, load_run, load_runs
from tests.support.folders import EXPERIMENT, make
from tests.support.runs import tiny


def test_metrics(tmp_path: Path) -> None:
    run = Run(make(tmp_path).path)
    frame = run.metrics
    assert list(frame.columns) == ["round", "split", "name", "value"]
    assert frame["round"].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert frame["name"].tolist() == ["generic/accuracy", "loss", "seconds"] * 3
    loss = frame[frame["name"] == "loss"]
    assert loss["value"].tolist()[0::2] == [1.0, 1 / 3]
    assert math.isnan(loss["value"].tolist()[1])
    assert run.final == {
        "test/generic/accuracy": 0.1 * 3,
        "train/loss": 1 / 3,
        "train/seconds": 1.5,
    }


def test_clients_and_events(tmp_path: Path) -> None:
    run = load_run(make(tmp_path).path)
    frame = run.clients
    assert list(frame.columns) == ["round", "client", "split", "name", "value"]
    assert len(frame) == 3 * 22
    assert frame["round"].is_monotonic_increasing
    loss = frame[(frame["split"] == "train") & (frame["round"] == 1)]
    assert loss["client"].tolist() == [3, 9]
    assert math.isnan(loss["value"].iloc[0])
    assert loss["value"].iloc[1] == 0.25
    events = run.events
    assert events.to_dict("records") == [
        {"round": 2, "client": 9, "kind": "nan", "text": "dropped"}
    ]


def test_one_metric_of_clients(tmp_path: Path) -> None:
    run = Run(make(tmp_path).path)
    pd.testing.assert_frame_equal(
        run.client_values("train", "loss"),
        pd.DataFrame(
            {
                "round": [1, 1, 2, 2, 3, 3],
                "client": [3, 9] * 3,
                "value": [math.nan, 0.25] * 3,
            }
        ),
    )
    assert run.client_values("train", "loss", last=True)["round"].tolist() == [3, 3]
    assert len(run.client_values("train", "unknown")) == 0


def test_values_of_clients_are_exact_to_the_bit(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**64, size=5000, dtype=np.uint64)
    values = np.concatenate([bits.view(np.float64), generator.normal(size=5000), [-0.0, 5e-324]])
    clients = generator.permutation(len(values))
    folder = make(tmp_path, recorded=False)
    recorder = Recorder(folder.path / "metrics.db")
    recorder.write_round(1, {}, [("train", "loss", clients, values)])
    recorder.close()
    run = Run(folder.path)
    for frame in (run.clients, run.client_values("train", "loss", last=True)):
        assert frame["client"].tolist() == list(range(len(values)))
        got, wanted = frame["value"].to_numpy(), values[np.argsort(clients)]
        assert np.array_equal(np.isnan(got), np.isnan(wanted))
        numbers = ~np.isnan(wanted)
        assert got[numbers].tobytes() == wanted[numbers].tobytes()


def test_summary(tmp_path: Path) -> None:
    table = dict(Run(make(tmp_path).path).summary())
    assert table["generic accuracy"] == "30.00 %"
    assert table["client mean"] == "69.00 %"
    # Twenty steps of 0.02: 0.02 * sqrt((400 - 1) / 12) = 0.1153.
    assert table["client spread"] == "11.53 %"
    assert table["worst client"] == "50.00 %"
    assert table["worst 10 %"] == "51.00 %"
    assert table["rounds"] == "3"
    assert table["time"] == "4.5 s"
    assert "personal client mean" not in table


def test_summary_shows_personal_models_too(tmp_path: Path) -> None:
    folder = make(tmp_path)
    recorder = Recorder(folder.path / "metrics.db")
    recorder.write_round(4, {}, [("test", "personal/accuracy", [0, 1], [0.25, 0.75])])
    recorder.close()
    table = dict(Run(folder.path).summary())
    assert table["client mean"] == "69.00 %"
    assert table["personal client mean"] == "50.00 %"
    assert table["personal client spread"] == "25.00 %"


def test_config_status_and_repr(tmp_path: Path) -> None:
    folder = make(tmp_path, status="failed")
    run = Run(folder.path)
    assert run.config == load_experiment(EXPERIMENT)
    assert (run.status, run.rounds_done, run.path) == ("failed", 3, folder.path)
    assert repr(run) == f"Run({str(folder.path)!r}, failed, 3 rounds)"


def test_a_run_is_read_while_it_is_written(tmp_path: Path) -> None:
    folder = make(tmp_path, recorded=False, status="running")
    run = Run(folder.path)
    assert len(run.metrics) == len(run.clients) == len(run.events) == run.rounds_done == 0
    assert run.final == {}
    assert dict(run.summary())["generic accuracy"] == "-"
    recorder = Recorder(folder.path / "metrics.db")
    for round in (1, 2):
        recorder.write_round(round, {("a", "x"): round})
        assert run.metrics["value"].tolist() == [1.0, 2.0][:round]
        assert run.rounds_done == round
    recorder.close()
    assert len(run.metrics) == 2


def test_frames_can_be_changed_by_the_caller(tmp_path: Path) -> None:
    run = Run(make(tmp_path).path)
    frame = run.metrics
    frame["extra"] = 1
    frame.loc[0, "value"] = 7.0
    assert "extra" not in run.metrics
    assert run.metrics["value"].iloc[0] == 0.1


def test_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path)
    run = Run(folder.path)
    with pytest.raises(InputError, match=r"has no model\.safetensors; it is finished"):
        run.model()
    source = torch.nn.Linear(2, 3)
    folder.save_model(source.state_dict())
    monkeypatch.setattr(build, "build_model", lambda *_: torch.nn.Linear(2, 3))
    assert torch.equal(run.arrays()["weight"], source.weight)
    model = run.model()
    assert torch.equal(dict(model.named_parameters())["bias"], source.bias)
    assert not model.training
    (folder.path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        run.arrays()


def test_damaged_metrics_are_an_input_error(tmp_path: Path) -> None:
    folder = make(tmp_path)
    (folder.path / "metrics.db").write_bytes(b"x" * 5000)
    with pytest.raises(InputError, match=r"metrics\.db cannot be read: file is not a database"):
        _ = Run(folder.path).metrics


def test_load_runs_names_what_it_leaves_out(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    good, unfinished, damaged = make(out, 0), make(out, 2, "interrupted"), make(out, 10)
    (damaged.path / "metrics.db").write_bytes(b"x" * 5000)
    (out / "b" / "pictures").mkdir(parents=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs = load_runs([out / "*", str(good.path), f"{out}/a/seed-?"])
    assert [r.path for r in runs] == [good.path, unfinished.path]
    texts = sorted(str(w.message) for w in caught)
    assert len(texts) == 3
    assert texts[0].startswith(f"left out: {damaged.path / 'metrics.db'} cannot be read")
    assert texts[1].startswith(f"left out: {out / 'b'} is not a run: it has no status.json")
    assert texts[2] == f"run {unfinished.path} is interrupted after round 3"


def test_no_runs_at_all(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="there is no run folder"),
        pytest.raises(InputError, match=r"no runs in .*nothing"),
    ):
        load_runs(tmp_path / "nothing*")


def test_a_finished_run_that_lacks_rounds_is_damaged(tmp_path: Path) -> None:
    run = fedsim.run(tiny(rounds=2), out=tmp_path)
    assert run.check() == 2
    with sqlite3.connect(run.path / "metrics.db") as db:
        db.execute("UPDATE run SET value = '1' WHERE key = 'rounds_done'")
    with pytest.raises(InputError, match="it has finished, but 1 of 2 rounds are recorded"):
        run.check()
    with pytest.raises(InputError, match="it has finished, but 1 of 2 rounds are recorded"):
        fedsim.resume(run.path)
    (run.path / "metrics.db").unlink()
    for read in (lambda: run.metrics, run.names, run.check):
        with pytest.raises(InputError, match=r"metrics\.db is missing or empty, though"):
            read()
