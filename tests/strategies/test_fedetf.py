"""FedETF: its loss by hand, the head that follows from the projection, and fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.engine.jobs import Block, ClientJob
from fedsim.errors import InputError
from fedsim.maths.etf import sparse_etf
from fedsim.maths.heads import BIAS, WEIGHT
from tests.support.played import Player
from tests.support.runs import tiny


def played(**changes: Any) -> Player:
    return Player(**{"strategy": {"name": "fedetf"}, **changes})


def test_the_loss_of_a_step_by_hand() -> None:
    scene = played(partition={"alpha": 0.1}, client={"steps": 1, "batch_size": 10_000})
    payload = scene.payload(1, 0)
    view = scene.worker.data(ClientJob(0, scene.manifest.client(0))).train
    module: Any = scene.worker.model.module
    scene.worker.model.load(payload["model"])
    z = module.body(view.inputs()).detach().double().numpy()
    p, b = (payload["feature"][name].double().numpy() for name in ("weight", "bias"))
    s = sparse_etf(10, 16, beta=0.0, gamma=1.0, seed=0).double().numpy()
    u = z @ p.T + b
    v = u / np.linalg.norm(u, axis=1, keepdims=True)
    y = view.labels().numpy()
    counts = np.bincount(y, minlength=10)
    assert (counts == 0).any()  # an absent class takes no share
    weights = counts * np.exp(10.0 * v @ s.T)
    loss = -np.log(weights[np.arange(len(y)), y] / weights.sum(1)).mean()
    update = scene.update(0, payload)
    assert update.metrics["train_loss"] == pytest.approx(loss, rel=1e-5)


def test_what_is_trained_and_what_is_not() -> None:
    scene = played()
    payload = scene.payload(1, 0)
    update = scene.update(0, payload)
    sent: Any = payload["model"]
    model = update.tensors["model"]
    for name in sent:
        assert torch.equal(model[name], sent[name]) == name.startswith("head."), name
    assert set(update.tensors["feature"]) == {"temperature", "weight", "bias"}
    for name, tensor in update.tensors["feature"].items():
        assert not torch.equal(tensor, payload["feature"][name]), name


def test_the_generic_head_classifies_by_the_projection() -> None:
    scene = played()
    updates = scene.updates(1)
    state, metrics = scene.strategy.aggregate(scene.strategy.state, updates)
    total = sum(u.weight for u in updates)
    mean = {
        name: sum(u.weight * u.tensors["feature"][name].double() for u in updates) / total
        for name in ("temperature", "weight", "bias")
    }
    assert metrics["temperature"] == pytest.approx(float(mean["temperature"]), rel=1e-6)
    s = sparse_etf(10, 16, beta=0.0, gamma=1.0, seed=0).double()
    z = torch.rand(20, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (z @ mean["weight"].T + mean["bias"]) @ s.T
    found = z @ state.model[WEIGHT].double().T + state.model[BIAS].double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_personal_scores_are_those_of_a_tuned_head(tmp_path: Path) -> None:
    tuned = fedsim.run(tiny(strategy={"name": "fedetf"}, name="a"), out=tmp_path)
    plain = fedsim.run(
        tiny(strategy={"name": "fedetf"}, client={"finetune_epochs": 0}, name="b"), out=tmp_path
    )
    names = set(tuned.clients["name"])
    assert {"personal/accuracy", "personal/loss", "generic/accuracy"} <= names
    assert not any(name.startswith("personal/") for name in plain.clients["name"])
    # Tuning is for scores alone: what is trained is the same.
    for name, tensor in plain.arrays().items():
        assert torch.equal(tensor, tuned.arrays()[name])


def test_tuning_moves_the_head_alone() -> None:
    scene = played(partition={"name": "iid", "clients": 2, "test": 0.2})
    payload = scene.payload(1, 0)
    ctx = scene.worker.context(Block(0, 1, "evaluate"), 0)
    data = scene.worker.data(ClientJob(0, scene.manifest.client(0)))
    found = scene.client.evaluate(payload, None, data, ctx)
    after = ctx.model.params()
    for name in after:
        assert torch.equal(after[name], payload["model"][name]) == name.startswith("body.")
    assert found["personal/loss"] < found["generic/loss"]
    assert found == scene.client.evaluate(payload, None, data, ctx)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "mlp", "hidden": [8]}}, "needs at least 10 features, .* has 8"),
        ({"strategy": {"name": "fedetf", "gamma": -1.0}}, "gamma must be > 0"),
        ({"strategy": {"name": "fedetf", "temperature": 0.0}}, "temperature must be > 0"),
        ({"client": {"finetune_epochs": -1}}, "finetune_epochs must be >= 0"),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        fedsim.run(tiny(**{"strategy": {"name": "fedetf"}, **changes}), out=tmp_path)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
