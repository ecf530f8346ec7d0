"""FRAug's clients trained in a group: what each would have done alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fedsim
from clients.fraug import FRAug as Client
from fedsim.client import Task
from fedsim.data.partition import ClientIndices
from fedsim.data.views import ClientData
from fedsim.params import Params
from fedsim.strategy import ServerContext
from strategies.fraug import FRAug
from tests.support.played import Player, changed
from tests.support.runs import events, tiny

LENGTHS = (40, 33, 17, 5, 1, 16)
"""Samples of the clients: with batches of 8 some end in one sample, one has no more than that."""

MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "hidden": [16]},
    "cnn": {"name": "cnn", "channels": [4, 6], "kernel": 3, "padding": 1, "hidden": 16},
}
CLIENTS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.5, "generator_clip": 0.1, "clip_norm": 0.5, "weight_decay": 0.01},
    {"dist_g": "mse", "dist_r": "mse", "steps": 7},
    {"augment": "real", "noise": "gaussian"},
    {"augment": "prototype", "interpolate": True},
    {"augment": "none"},
    {"use_rtnet": False},
]


class Players:
    """Clients of several sizes, with their states after the rounds played so far."""

    def __init__(self, model: str, strategy: dict[str, Any], client: dict[str, Any]) -> None:
        options = {"batch_size": 8, "epochs": 2, "lr": 0.05, **client}
        self.player = Player(strategy={"name": "fraug"}, client=options, model=MODELS[model])
        worker = self.player.worker
        self.strategy = FRAug(FRAug.Config(**strategy))
        context = ServerContext(0, 10, 8, 8, 10, worker.model, worker.dataset)
        self.strategy.bind(changed(self.player.initial, 0.01), context)
        ends = np.cumsum(LENGTHS)
        nobody = np.array([], np.int32)
        self.data = [
            ClientData(
                worker.dataset.train,
                ClientIndices(np.arange(end - n, end, dtype=np.int32), nobody, nobody),
                worker.dataset.card,
            )
            for n, end in zip(LENGTHS, ends, strict=True)
        ]
        self.states: list[Any] = [{} for _ in LENGTHS]

    def tasks(self, round: int) -> list[Task]:
        payload = dict(self.strategy.configure(self.strategy.state, round, range(8)))
        return [
            Task(payload, state, data, self.player.rng(i, round), self.player.context(i, round))
            for i, (state, data) in enumerate(zip(self.states, self.data, strict=True))
        ]


def assert_close(found: Any, expected: Any, where: str = "") -> None:
    """Assert that two trees agree to 1e-5 of the largest element of each tensor."""
    if isinstance(expected, Params):
        assert found.layout == expected.layout, where
        for name, counter in expected.integers.items():
            assert found.integers[name].equal(counter)
        found, expected = found.flat, expected.flat
    if isinstance(expected, Tensor):
        if expected.numel():
            limit = 1e-5 * float(expected.abs().max())
            assert float((found - expected).abs().max()) <= limit, where
    elif isinstance(expected, dict):
        assert set(found) == set(expected), where
        for key in expected:
            assert_close(found[key], expected[key], f"{where}/{key}")
    else:
        assert found == pytest.approx(expected, rel=1e-5), where


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_group_equals_the_loop(model: str, client: dict[str, Any]) -> None:
    """Updates, states and metrics, over two rounds; no maximum is near a tie in these."""
    players = Players(model, {"gamma": 0.02}, client)
    check(players)


def test_a_group_equals_the_loop_with_a_generators_own_batch_norm() -> None:
    players = Players("mlp", {"generator_bn": "local"}, {})
    check(players)
    assert all("generator" in state for state in players.states)


def check(players: Players) -> None:
    client = players.player.client
    assert client.group_size(players.player.worker.model.module) >= len(LENGTHS)
    for round in (1, 2):
        together = client.train_group(players.tasks(round))
        updates, kept = together.split(), []
        for i, task in enumerate(players.tasks(round)):
            state, update = client.train(task.payload, task.state, task.data, task.rng, task.ctx)
            assert_close(updates[i].tensors, update.tensors, f"client {i}, update")
            assert_close(together.states[i], state, f"client {i}, state")
            assert_close(updates[i].metrics, update.metrics, f"client {i}, metrics")
            assert updates[i].weight == update.weight
            kept.append(state)
        players.states = kept


def test_payload_and_states_are_left_as_they_were() -> None:
    players = Players("mlp", {}, {})
    client = players.player.client
    players.states = client.train_group(players.tasks(1)).states
    tasks = players.tasks(2)
    payload = tasks[0].payload
    before = payload["model"].flat.clone(), payload["generator"].flat.clone()
    states = [
        (s["rtnet"].flat.clone(), s["prototypes"].clone(), s["steps"]) for s in players.states
    ]
    client.train_group(tasks)
    assert payload["model"].flat.equal(before[0])
    assert payload["generator"].flat.equal(before[1])
    for state, (rtnet, prototypes, steps) in zip(players.states, states, strict=True):
        assert state["rtnet"].flat.equal(rtnet)
        assert state["prototypes"].equal(prototypes)
        assert state["steps"] == steps


def test_clients_of_a_plain_cnn_are_trained_in_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the default options; nobody is trained alone, and all states are kept."""

    def alone(*args: Any) -> None:
        raise AssertionError("trained alone")

    monkeypatch.setattr(Client, "train", alone)
    run = fedsim.run(tiny(strategy={"name": "fraug"}, model=MODELS["cnn"]), out=tmp_path)
    assert run.status == "finished"
    assert events(run) == []
    assert run.final["train/clients"] == 8


def test_models_with_batch_norm_and_other_losses_are_trained_alone() -> None:
    module = Players("cnn", {}, {}).player.worker.model.module
    assert Client().group_size(module) > 1
    assert Client(Client.Config(loss="focal")).group_size(module) == 1
    assert Client(Client.Config(vectorise=False)).group_size(module) == 1
    normed = {**MODELS["cnn"], "norm": "batch"}
    player = Player(strategy={"name": "fraug"}, model=normed)
    assert player.client.group_size(player.worker.model.module) == 1


class Tilted(Client):
    def loss(self, fit: Any, x: Tensor, y: Tensor) -> Tensor:
        return 2 * super().loss(fit, x, y)


def test_a_subclass_with_another_loss_is_trained_alone() -> None:
    module = Players("cnn", {}, {}).player.worker.model.module
    assert Tilted().group_size(module) == 1


def test_a_client_that_spoils_a_group_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is then trained alone, from the state before."""
    original = Client.train

    def train(self: Any, payload: Any, state: Any, data: Any, rng: Any, ctx: Any) -> Any:
        state, update = original(self, payload, state, data, rng, ctx)
        if ctx.client_id == 3:
            update.tensors["generator"].flat.fill_(float("nan"))
        return state, update

    def train_group(self: Any, tasks: Any) -> Any:
        update = whole(self, tasks)
        for row, task in enumerate(tasks):
            if task.ctx.client_id == 3:
                update.tensors["generator"].flat[row] = float("nan")
        return update

    whole = Client.train_group
    monkeypatch.setattr(Client, "train", train)
    monkeypatch.setattr(Client, "train_group", train_group)
    run = fedsim.run(tiny(strategy={"name": "fraug"}, rounds=1), out=tmp_path)
    assert [(e[1], e[2]) for e in events(run)] == [(3, "screened")]
    assert run.final["train/clients"] == 7
    assert all(bool(torch.isfinite(t).all()) for t in run.arrays().values())
