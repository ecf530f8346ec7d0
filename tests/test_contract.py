"""What every built-in strategy must keep, with the client method it comes with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fedsim.components import lookup
from fedsim.components.configure import default_client
from fedsim.testing import STRATEGY_CHECKS, Method, experiment
from tests.support.runs import SCENES, TESTS, assert_same

STRATEGIES = sorted(lookup.names("strategies"))

NORMED = {"name": f"{TESTS}/models.py:normed"}
"""For strategies that refuse a model without BatchNorm."""

PROMPTED = {"name": "vit", "width": 16, "heads": 2, "layers": 2, "prompts": 3}
"""For strategies that refuse a model without prompts."""

_TOWERS = {
    "image": {"name": "cnn", "channels": [3], "hidden": 6},
    "text": {"name": "text", "width": 6},
}
PAIRED = {
    "name": "image-text",
    "dim": 6,
    **{f"{part}{m}": _TOWERS[m] for m in _TOWERS for part in ("", "server_", "pairs_")},
}
"""For strategies that refuse a model without towers of images and texts."""

DETECTING = ("fedsto", "ssfl-fedbn", "ssfl-feddyn", "ssfl-fedopt")
"""Strategies of detectors whose server has labels and whose clients have none."""


def sections(strategy: str) -> dict[str, Any]:
    """Return the model, data and client of a strategy that cannot do with the usual ones."""
    if strategy in DETECTING:
        # Clients are in every round, and the server hardly moves their weights. An untrained
        # teacher's scores lie between the thresholds.
        stages = {} if strategy in ("ssfl-feddyn", "ssfl-fedopt") else {"stage1_rounds": 1}
        name = {"ssfl-fedopt": "fedsto"}.get(strategy, strategy)
        thresholds = {"tau_low": 0.01, "tau_high": 0.03}
        return {
            **copy.deepcopy(SCENES),
            "client": {"name": name, "epochs": 1, "batch_size": 4, "lr": 0.01, **thresholds},
            "warm_up_rounds": 0,
            "lr": 1e-4,
            **stages,
        }
    if strategy == "pfedpg":
        return {"model": PROMPTED}
    if strategy in ("fedbn", "silobn"):
        return {"model": NORMED}
    if strategy in ("creamfl", "feddf", "multimodal-fedavg"):
        within = {"name": "iid"}
        return {
            "dataset": {"name": "emoji", "vendors": ["noto"], "share": 0.12},
            "partition": {"name": "public", "size": 24, "clients": 8, "within": within},
            "model": PAIRED,
        }
    return {}


@pytest.fixture(scope="module", params=STRATEGIES)
def method(request: pytest.FixtureRequest) -> Iterator[Method]:
    """A strategy, and the one uninterrupted run that several checks compare with."""
    usual = {"name": "mlp", "hidden": [256]}
    changes = sections(request.param)
    with Method(experiment(request.param, **{"model": usual, **changes})) as method:
        yield method


def test_strategies_are_found_and_every_client_comes_with_one() -> None:
    assert "fedavg" in STRATEGIES
    methods = {lookup.resolve("clients", default_client(name)) for name in STRATEGIES}
    assert methods == {lookup.resolve("clients", name) for name in lookup.names("clients")}


@pytest.mark.parametrize("check", STRATEGY_CHECKS, ids=lambda check: check.__name__)
def test_a_strategy_passes(check: Callable[[Method], None], method: Method) -> None:
    check(method)


@pytest.mark.ray
@pytest.mark.slow
def test_serial_equals_parallel(method: Method, ray8: Any) -> None:
    parallel = method.run("parallel", engine={"name": "ray", "workers": 2})
    assert_same(parallel, method.whole)
