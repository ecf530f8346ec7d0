"""Servers: which clients a strategy of ours draws, and which methods of it are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.errors import RunFailed
from tests.support.runs import tiny


def rule(tmp_path: Path, body: str) -> dict[str, Any]:
    """Return the section of a strategy that is FedAvg with other methods."""
    file = tmp_path / "rule.py"
    methods = "\n".join(f"    {line}" for line in body.splitlines())
    file.write_text(f"from strategies.fedavg import FedAvg\n\nclass Rule(FedAvg):\n{methods}\n")
    return {"name": f"{file}:Rule"}


def test_a_strategy_may_draw_its_own_cohort(tmp_path: Path) -> None:
    body = "def cohort(self, round, population):\n    return [population - round, 1]"
    run = fedsim.run(tiny(strategy=rule(tmp_path, body), rounds=3), out=tmp_path)
    weights = run.client_values("train", "weight")
    drawn = weights.groupby("round")["client"].apply(sorted).tolist()
    assert drawn == [[1, 7], [1, 6], [1, 5]]


@pytest.mark.parametrize("cohort", ["[1, 8]", "[-1, 1]", "[3, 3]"])
def test_a_wrong_cohort_ends_the_run(cohort: str, tmp_path: Path) -> None:
    strategy = rule(tmp_path, f"def cohort(self, round, population):\n    return {cohort}")
    with pytest.raises(RunFailed, match=r"round 1: .*Rule' must draw distinct clients of 0\.\.7"):
        fedsim.run(tiny(strategy=strategy), out=tmp_path)


def test_a_changed_method_of_flowers_is_called(tmp_path: Path) -> None:
    body = """
def aggregate_train(self, server_round, replies):
    arrays, metrics = super().aggregate_train(server_round, replies)
    return arrays, type(metrics)({**metrics, "mine": 2.5 * server_round})
"""
    run = fedsim.run(tiny(strategy=rule(tmp_path, body), rounds=2), out=tmp_path)
    assert run.values("train", "mine")["value"].tolist() == [2.5, 5.0]


def test_a_metric_that_is_no_number_is_named(tmp_path: Path) -> None:
    body = """
def aggregate(self, state, updates):
    state, _ = super().aggregate(state, updates)
    return state, {"speed": "fast"}
"""
    with pytest.raises(TypeError, match="metric 'speed' must be a number, got 'fast'"):
        fedsim.run(tiny(strategy=rule(tmp_path, body)), out=tmp_path)
