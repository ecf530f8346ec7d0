"""Every data set that needs no files of the user's trains a few rounds of FedAvg."""

from pathlib import Path
from typing import Any

import pytest

import fedsim
from tests.support.runs import tiny

SETS: dict[str, dict[str, Any]] = {
    "digits": {"model": {"name": "mlp", "hidden": [32]}},
    "mnist5k": {},
    "emoji": {"partition": {"name": "domain", "clients": 4, "test": "domain"}},
    "digit-domains": {"partition": {"name": "domain", "clients": 10}, "dataset": {"share": 0.2}},
    "emoji-scenes": {
        "dataset": {"size": 64, "train": 100, "test": 30},
    },
    "scene-questions": {"dataset": {"size": 64, "train": 400, "test": 100}},
}


@pytest.mark.parametrize("name", SETS)
def test_fedavg_learns_something(name: str, tmp_path: Path) -> None:
    changes = {
        "model": {"name": "cnn"},
        "partition": {"name": "dirichlet", "clients": 6, "alpha": 1},
    }
    changes |= SETS[name]
    changes["dataset"] = {"name": name, **changes.get("dataset", {})}
    client = {"epochs": 2, "batch_size": 32, "lr": 0.05, "momentum": 0.9}
    run = fedsim.run(tiny(**changes, client=client, rounds=3), out=tmp_path)
    losses = run.metrics.query("split == 'train' and name == 'train_loss'")["value"].tolist()
    assert losses[-1] < losses[0]
    scores = run.metrics.query("split == 'test' and name == 'generic/accuracy'")["value"].tolist()
    assert len(scores) == 3
    if name in ("digits", "mnist5k"):
        assert scores[-1] > 0.6
