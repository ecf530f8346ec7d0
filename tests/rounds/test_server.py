"""Servers: which clients a strategy of ours draws, and which methods of it are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.errors import InputError, RunFailed
from tests.support.runs import FAULTY, events, measured, model_bits, tiny


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
    with pytest.raises(RunFailed, match=r"round 1: .*Rule must draw distinct clients of 0\.\.7"):
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


@pytest.mark.parametrize("member", ["server_only", "pooled"])
def test_a_replaced_member_is_refused_by_name(member: str, tmp_path: Path) -> None:
    strategy = rule(tmp_path, f"{member} = True")
    with pytest.raises(InputError, match=rf"Rule\.{member} has no effect: use"):
        fedsim.run(tiny(strategy=strategy), out=tmp_path)


@pytest.mark.parametrize("method", ["configure_train", "aggregate_evaluate"])
def test_a_changed_method_of_flowers_leaves_the_bits(method: str, tmp_path: Path) -> None:
    """A strategy of ours that needs only the mean of the updates is given their mean either way."""
    body = f"def {method}(self, *arguments):\n    return super().{method}(*arguments)"
    changes = {"partition": {"name": "dirichlet", "clients": 12, "alpha": 0.5}, "rounds": 2}
    driven = fedsim.run(tiny(strategy=rule(tmp_path, body), **changes), out=tmp_path / "a")
    called = fedsim.run(tiny(**changes), out=tmp_path / "b")
    assert model_bits(driven) == model_bits(called)
    assert measured(driven) == measured(called)


def test_lists_among_a_strategys_metrics_are_not_recorded(tmp_path: Path) -> None:
    body = """
def aggregate(self, state, updates):
    state, _ = super().aggregate(state, updates)
    return state, {"hist": [1.0, 2.0], "mine": 3}
"""
    run = fedsim.run(tiny(strategy=rule(tmp_path, body), rounds=1), out=tmp_path)
    assert run.final["train/mine"] == 3.0
    assert "train/hist" not in run.final


def test_failures_before_a_strategy_that_raises_are_recorded(tmp_path: Path) -> None:
    body = "def aggregate(self, state, updates):\n    raise RuntimeError('a bug')"
    client = {"name": FAULTY, "fault": "raise"}
    with pytest.raises(RuntimeError, match="a bug"):
        fedsim.run(tiny(strategy=rule(tmp_path, body), client=client), out=tmp_path)
    run = fedsim.load_run(next(tmp_path.glob("*/seed-0")))
    assert [(e[0], e[1], e[2]) for e in events(run)] == [(1, 3, "raised")]
