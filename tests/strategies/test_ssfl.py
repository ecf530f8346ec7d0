"""FedDyn, FedOpt and FedBN over semi-supervised clients: their rules by hand, and what is kept."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedsim.cli import main
from fedsim.client import Update
from fedsim.components import build
from fedsim.errors import InputError
from fedsim.params import FlatModel, Layout, Params
from fedsim.params.filters import batch_norm, in_backbone
from fedsim.strategy import ServerContext
from strategies.ssfl_feddyn import SSFLFedDyn
from strategies.ssfl_fedopt import SSFLFedOpt
from tests.support.played import Player, changed
from tests.support.runs import SCENES, tiny

LAYOUT = Layout(("w", "b", "running"), ((1,), (1,), (1,)), 2, ("count",))


def params(w: float, b: float, running: float = 0.0, count: int = 0) -> Params:
    return Params(LAYOUT, torch.tensor([w, b, running]), {"count": torch.tensor(count)})


def bound(strategy: Any, clients: int = 4) -> Any:
    context = ServerContext(0, 1, clients, clients, 2, None, None)  # type: ignore[arg-type]
    strategy.bind(params(1.0, 2.0), context)
    return strategy


UPDATES = [
    Update({"model": params(2.0, 0.0, 4.0, 7)}, weight=1.0),
    Update({"model": params(6.0, 4.0, 0.0, 9)}, weight=3.0),
]


def test_feddyn_by_hand() -> None:
    strategy = bound(SSFLFedDyn(SSFLFedDyn.Config(a=0.5)))
    state = strategy.join(strategy.state, UPDATES)
    # Changes (1, -2) and (5, 2) sum to (6, 0): h = 0 - 0.5 / 4 (6, 0) = (-0.75, 0). The plain mean
    # (4, 2) less h / 0.5 is (5.5, 2); the statistics' is 2, the larger counter 9.
    assert state.h.tolist() == [-0.75, 0.0]
    assert state.model.flat.tolist() == [5.5, 2.0, 2.0]
    assert int(state.model.integers["count"]) == 9
    again = strategy.join(state, UPDATES[:1])
    # Change (2 - 5.5, 0 - 2): h = (-0.75, 0) - 0.125 (-3.5, -2) = (-0.3125, 0.25).
    assert again.h.tolist() == [-0.3125, 0.25]
    assert again.model.flat.tolist() == [2 + 0.625, 0 - 0.5, 4.0]
    assert strategy.state.h.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("optimizer", ["adam", "yogi", "adagrad"])
def test_fedopt_by_hand(optimizer: str) -> None:
    config = SSFLFedOpt.Config(optimizer=optimizer, eta=0.1, beta_1=0.5, beta_2=0.75, tau=0.2)  # type: ignore[arg-type]
    strategy = bound(SSFLFedOpt(config))
    state = strategy.join(strategy.state, UPDATES)
    # The mean is (5, 3, 1), the change d = (4, 1); m = d / 2; v starts at 0.04.
    expected = []
    for w, d in ((1.0, 4.0), (2.0, 1.0)):
        v = {
            "adam": 0.75 * 0.04 + 0.25 * d * d,
            "yogi": 0.04 + 0.25 * d * d,
            "adagrad": 0.04 + d * d,
        }
        expected.append(w + 0.1 * (d / 2) / (math.sqrt(v[optimizer]) + 0.2))
    assert state.model.flat.tolist() == pytest.approx([*expected, 1.0])
    assert state.m.tolist() == [2.0, 0.5]
    assert strategy.state.v.tolist() == pytest.approx([0.04, 0.04])


def test_fedopt_becomes_averaging_with_a_large_tau() -> None:
    config = SSFLFedOpt.Config(eta=1e4, beta_1=0.0, tau=1e4)
    strategy = bound(SSFLFedOpt(config))
    state = strategy.join(strategy.state, UPDATES)
    # v is tau^2 all but, so the step is half of the change: eta d / (tau + tau).
    assert state.model.flat.tolist() == pytest.approx([1 + 4 / 2, 2 + 1 / 2, 1.0], rel=1e-2)


@pytest.mark.parametrize("cls", [SSFLFedDyn, SSFLFedOpt])
def test_they_have_no_stage_1(cls: Any) -> None:
    with pytest.raises(InputError, match="stage1_rounds must be 0, got 3"):
        cls.Config(stage1_rounds=3)
    assert not cls.Config().stage1_rounds
    assert cls.Config().ortho == "none"


@pytest.mark.parametrize("name", ["ssfl-feddyn", "ssfl-fedopt"])
def test_a_wrong_penalty_is_refused_before_any_work(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tiny(**SCENES, strategy={"name": name, "ortho": "sripmin"}, client={"name": "fedsto"})
    experiment = tmp_path / "wrong.yaml"
    experiment.write_text(yaml.safe_dump(tree))
    assert main(["run", str(experiment), "--out", str(tmp_path / "runs")]) == 2
    told = capsys.readouterr().err
    assert "strategy.ortho" in told
    assert "sripmin" in told
    assert "srip_min" in told
    assert not (tmp_path / "runs").exists()


class Scene:
    """A strategy with its client in the second stage."""

    def __init__(self, name: str, options: dict[str, Any] | None = None, **client: Any) -> None:
        given = {"batch_size": 2, "lr": 0.05, "tau_low": 0.01, "tau_high": 0.03, **client}
        section = {"name": name, "warm_up_rounds": 0, **(options or {})}
        self.player = Player(**SCENES, strategy=section, client={"name": name, **given})
        worker = self.player.worker
        self.strategy: Any = build.build_strategy(self.player.experiment)
        model = FlatModel(copy.deepcopy(worker.model.module))
        context = ServerContext(0, 9, 8, 8, 2, model, worker.dataset)
        self.strategy.bind(changed(self.player.initial, 0.01), context)
        self.w: Params = self.strategy.state.model

    def train(self, state: Any = None, round: int = 9) -> tuple[Any, Update]:
        payload = self.strategy.configure(self.strategy.state, round, range(8))
        context = self.player.context(0, round)
        state = self.player.client.init_state(context) if state is None else state
        rng = self.player.rng(0, round)
        found: tuple[Any, Update] = self.player.client.train(
            payload, state, self.player.data(), rng, context
        )
        return found


def test_feddyns_client_steps_along_the_tilted_gradient() -> None:
    """With w = w_t the first step is lr (g - h_k); then h_k <- h_k - a (w_k - w_t)."""
    plain = Scene("ssfl-feddyn", {"a": 0.3}, steps=1)
    size = plain.w.layout.parameter_size
    h = torch.randn(size, generator=torch.Generator().manual_seed(3))
    zero, first = plain.train()
    state, second = plain.train({"h": h})
    without, tilted = (u.tensors["model"].flat[:size] for u in (first, second))
    torch.testing.assert_close(tilted - without, 0.05 * h, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(state["h"], h - 0.3 * (tilted - plain.w.flat[:size]))
    torch.testing.assert_close(zero["h"], -0.3 * (without - plain.w.flat[:size]))


def test_feddyns_drift_is_that_of_the_model_it_sends() -> None:
    """The teacher after one step, 3/4 w_t + 1/4 w_k, has gone a quarter of the way."""
    found = {}
    for who in ("student", "teacher"):
        scene = Scene("ssfl-feddyn", {"a": 0.3}, steps=1, lr=1.0, alpha=0.75, uploads=who)
        found[who] = scene.train()
        state, update = found[who]
        size = len(state["h"])
        away = update.tensors["model"].flat[:size] - scene.w.flat[:size]
        torch.testing.assert_close(state["h"], -0.3 * away)
    quarter = found["student"][0]["h"] / 4
    torch.testing.assert_close(found["teacher"][0]["h"], quarter, rtol=1e-3, atol=1e-6)
    assert float(quarter.norm()) > 5e-3


def test_fedbn_keeps_the_batch_norm_of_the_model_it_sends() -> None:
    options: dict[str, Any] = {"steps": 1, "alpha": 0.75}
    student, teacher = (
        Scene("ssfl-fedbn", uploads=who, **options).train()[0]["own"]
        for who in ("student", "teacher")
    )
    start = Scene("ssfl-fedbn").w
    for name in student.layout.names:
        expected = 0.75 * start[name] + 0.25 * student[name]
        torch.testing.assert_close(teacher[name], expected, rtol=1e-5, atol=1e-6)


def test_feddyns_regulariser_pulls_to_the_broadcast_model() -> None:
    ends = []
    for a in (1e-6, 5.0):
        scene = Scene("ssfl-feddyn", {"a": a}, steps=4)
        _, update = scene.train()
        size = scene.w.layout.parameter_size
        ends.append(float((update.tensors["model"].flat - scene.w.flat)[:size].norm()))
    assert ends[1] < 0.9 * ends[0]


def test_batch_norm_neither_leaves_the_client_nor_comes_back() -> None:
    scene = Scene("ssfl-fedbn", {"stage1_rounds": 0})
    own = batch_norm(scene.player.worker.model.module)
    state, update = scene.train()
    sent, kept = set(update.tensors["model"]), set(state["own"])
    assert sent == {n for n in scene.w if not own(n)}
    assert kept == {n for n in scene.w if own(n)}
    moved = {n for n in kept if not state["own"][n].equal(scene.w[n])}
    assert len(moved) > 0.9 * len(kept)  # it began with the server's, and went its own way
    joined = scene.strategy.join(scene.strategy.state, [update]).model
    assert all(joined[n].equal(scene.w[n]) for n in kept)
    assert all(joined[n].equal(update.tensors["model"][n]) for n in sent)


def test_a_client_goes_on_from_its_own_batch_norm() -> None:
    """Its second round, without a step, has its own tensors in the personal model."""
    scene = Scene("ssfl-fedbn", {"stage1_rounds": 0})
    state, _ = scene.train()
    payload = scene.strategy.configure(scene.strategy.state, 10, range(8))
    context = scene.player.context(0, 10)
    personal = scene.player.client.personal_model(payload, state, context)
    for name in scene.w:
        expected = state["own"] if name in set(state["own"]) else scene.w
        assert personal[name].equal(expected[name]), name
    fresh = scene.player.client.personal_model(payload, {}, context)
    assert fresh.flat.equal(scene.w.flat)
    scene.player.client.start(payload, state, context)
    assert context.model.params().flat.equal(personal.flat)


def test_selective_training_leaves_the_batch_norm_of_the_neck() -> None:
    scene = Scene("ssfl-fedbn", {"stage1_rounds": 9})
    own = batch_norm(scene.player.worker.model.module)
    state, update = scene.train()
    assert set(update.tensors["model"]) == {n for n in scene.w if in_backbone(n) and not own(n)}
    moved = {n for n in state["own"] if not state["own"][n].equal(scene.w[n])}
    assert moved
    assert all(map(in_backbone, moved))
