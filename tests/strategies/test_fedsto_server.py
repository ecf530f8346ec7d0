"""FedSTO's server: its training and penalty, what is recorded, options and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from clients.fedsto import FedSTO as Client
from fedsim.client import Update
from fedsim.data.views import View
from fedsim.errors import InputError
from fedsim.maths.orthogonality import Orthogonality
from fedsim.params.filters import in_backbone
from strategies.fedsto import FedSTO
from tests.support.fedsto_scenes import Scene, in_rest, moved, sections
from tests.support.played import assert_weights
from tests.support.runs import prepared


def test_the_server_trains_all_parameters_on_its_labels() -> None:
    scene = Scene(0)
    state, metrics = scene.strategy.aggregate(scene.strategy.state, [])
    assert state.round == 1
    assert len(moved(scene.w, state.model)) > 0.95 * len(scene.w)
    module: Any = scene.player.module(scene.w)
    rate = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.937, weight_decay=5e-4)
    rng = scene.context.generator("fedsto/server", 1)
    losses = []
    for order in scene.server.index_batches(8, rng):
        boxes, labels = (scene.server.column(c, order) for c in ("boxes", "box_labels"))
        rate.zero_grad()
        loss = module.loss(module(scene.server.inputs(order)), boxes, labels)
        loss.backward()
        rate.step()
        losses.append(float(loss.detach()) * len(order))
    assert len(losses) == 3
    assert_weights(state.model, module, 1e-5)
    assert metrics == {"server_loss": pytest.approx(sum(losses) / 24, rel=1e-5)}


def test_the_server_adds_the_penalty_in_stage_2() -> None:
    found = {}
    for stage, lam in ((2, 0.0), (2, 10.0), (1, 0.0), (1, 10.0)):
        scene = Scene(stage, {"lam": lam, "steps": 1, "momentum": 0.0, "weight_decay": 0.0})
        scene.strategy.state.round = scene.round - 1
        state, metrics = scene.strategy.aggregate(scene.strategy.state, [])
        found[stage, lam] = state.model
        assert ("ortho" in metrics) == (stage == 2 and lam > 0)
    assert not moved(found[1, 0.0], found[1, 10.0])
    parameters = scene.w.layout.names[: scene.w.layout.num_parameters]
    filters = {n for n in parameters if in_rest(n) and scene.w[n].ndim > 1}
    assert moved(found[2, 0.0], found[2, 10.0]) == filters


def test_the_server_draws_other_batches_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(0)
    drawn: list[list[int]] = []
    original = View.batches

    def batches(self: View, *given: Any, **options: Any) -> Iterator[tuple[Any, Any]]:
        drawn.append([])
        images = list(self.inputs())
        for x, y in original(self, *given, **options):
            drawn[-1] += [i for seen in x for i, image in enumerate(images) if image.equal(seen)]
            yield x, y

    monkeypatch.setattr(View, "batches", batches)
    states = [
        scene.strategy.aggregate(replace(scene.strategy.state, round=done), [])[0]
        for done in (0, 1, 0)
    ]
    assert [state.round for state in states] == [1, 2, 1]
    assert [sorted(order) for order in drawn] == [list(range(24))] * 3
    assert drawn[0] == drawn[2] != drawn[1]
    assert states[0].model.flat.equal(states[2].model.flat)


@pytest.mark.parametrize("stage", [1, 2])
def test_how_far_the_clients_moved_the_model_is_recorded(stage: int) -> None:
    """One tensor of n elements moves by 1 and by 3, with these weights: by 10/4 in the mean."""
    scene = Scene(stage, {"steps": 1})
    scene.strategy.state.round = scene.round - 1
    name = next(n for n in scene.w if in_backbone(n))
    updates = []
    for far in (1.0, 3.0):
        sent = scene.payload["model"].clone()
        sent[name].add_(far)
        updates.append(Update({"model": sent}, far))
    _, metrics = scene.strategy.aggregate(scene.strategy.state, updates)
    assert metrics["update_norm"] == pytest.approx(2.5 * scene.w[name].numel() ** 0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("ortho", "square", "oblong"), [("srip_min", 2.0, 2.0), ("srip_two_sided", 4.0, 3.0)]
)
@pytest.mark.parametrize("c", [1.0, 3.0**0.5])
def test_the_penalty_is_recorded_less_its_floor(
    ortho: str, square: float, oblong: float, c: float
) -> None:
    """Filters are c times orthogonal ones: M M^T - I is (c^2 - 1) I on the shorter side.

    With c^2 = 3 that is 2 on both sides; where M is not square, the longer side's floor is 1. With
    c = 1 all is floor.
    """
    still = {"steps": 1, "lr": 1e-12, "momentum": 0.0, "weight_decay": 0.0}
    scene = Scene(2, {"ortho": ortho, "lam": 1e-6, **still})
    scene.strategy.state.round = scene.round - 1
    draw = torch.Generator().manual_seed(0)
    shapes = []
    w = scene.w.clone()
    for name in w.layout.names[: w.layout.num_parameters]:
        if in_rest(name) and w[name].ndim > 1:
            rows, columns = w[name].flatten(1).shape
            long, short = max(rows, columns), min(rows, columns)
            q = torch.linalg.qr(torch.randn(long, short, generator=draw)).Q
            w[name].copy_((c * (q if rows >= columns else q.T)).reshape(w[name].shape))
            shapes.append(rows == columns)
    assert 0 < sum(shapes) < len(shapes)
    state = replace(scene.strategy.state, model=w)
    found = scene.strategy.aggregate(state, [])[1]["ortho"]
    expected = sum(square if same else oblong for same in shapes) if c > 1 else 0.0
    assert found == pytest.approx(expected, abs=2e-3)


def test_defaults_are_those_of_the_paper_as_far_as_known() -> None:
    client, server = Client.Config(), FedSTO.Config()
    assert (client.alpha, client.tau_low, client.tau_high) == (0.999, 0.1, 0.6)
    assert (client.nms_iou, client.unsupervised_weight, client.mu) == (0.65, 1.0, 0.0)
    assert (client.epochs, client.uploads) == (1, "student")
    assert (server.warm_up_rounds, server.stage1_rounds) == (50, 100)
    assert (server.ortho, server.lam, server.penalised) == ("srip_min", 1e-4, "non-backbone")
    assert (server.epochs, server.steps, server.batch_size) == (1, None, 32)
    assert (server.lr, server.lr_decay) == (0.01, 1.0)
    assert (server.momentum, server.weight_decay) == (0.937, 5e-4)
    assert Orthogonality().iterations == 3


def test_stages_follow_each_other() -> None:
    strategy = FedSTO(FedSTO.Config(warm_up_rounds=2, stage1_rounds=3))
    assert [strategy.stage(t) for t in range(1, 8)] == [0, 0, 1, 1, 1, 2, 2]
    assert [strategy.stage(t) == 0 for t in range(1, 5)] == [True, True, False, False]
    assert FedSTO(FedSTO.Config(warm_up_rounds=0, stage1_rounds=0)).stage(1) == 2


def test_a_server_alone_is_warm_up_all_along(tmp_path: Path) -> None:
    run = fedsim.run(sections(strategy={"warm_up_rounds": 9}), out=tmp_path)
    assert run.client_values("train", "weight").empty
    assert run.final["train/bytes_up"] == 0
    picture = run.path / "pictures" / "generic.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_metrics_of_a_run(tmp_path: Path) -> None:
    run = fedsim.run(sections(), out=tmp_path)
    domains = ("clear", "fog", "snow")
    expected = {f"test/generic/mAP50/{d}" for d in domains} | {"test/generic/mAP50_total"}
    assert expected <= set(run.final)
    mean = sum(run.final[f"test/generic/mAP50/{d}"] for d in domains) / 3
    assert run.final["test/generic/mAP50_total"] == pytest.approx(mean)
    apart = (run.final["test/generic/mAP50/fog"] + run.final["test/generic/mAP50/snow"]) / 2
    assert run.final["test/generic/mAP50_shifted"] == pytest.approx(apart)
    own = run.client_values("test", "generic/mAP50")
    assert {2, 3} <= set(own["round"])  # in stage 1 too, where the payload's model is a part
    rows = run.client_values("train", "pseudo_recall")
    assert set(rows["round"]) == {2, 3, 4}
    assert rows["value"].between(0, 1).all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": {"name": "cnn", "channels": [4], "kernel": 3, "hidden": 8}}, "backbone"),
        ({"partition": {"name": "iid", "clients": 8}}, "labelled samples to the server"),
        (
            {
                "dataset": {"name": "emoji", "vendors": ["noto"]},
                "partition": {"name": "server-labelled", "clients": 8, "server_share": 0.5},
            },
            "needs a detection set",
        ),
        ({"strategy": {"name": "fedsto", "lam": -1.0}}, "lam must be >= 0"),
        ({"strategy": {"name": "fedsto", "stage1_rounds": -1}}, "stage1_rounds"),
        ({"strategy": {"name": "fedsto", "lr": 0.0}}, "lr must be > 0"),
        ({"strategy": {"name": "fedsto", "ortho": "srip"}}, "ortho"),
        ({"client": {"name": "fedsto", "alpha": 1.5}}, "alpha"),
        ({"client": {"name": "fedsto", "tau_low": 0.7}}, "tau_high must be >= tau_low"),
        ({"client": {"name": "fedsto", "unsupervised_weight": 0.0}}, "unsupervised_weight"),
        ({"client": {"name": "local-sgd"}, "strategy": {"name": "fedsto"}}, ""),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    tree = {**sections(rounds=1), **changes}
    if named == "":
        assert prepared(**tree)  # supervised clients under the same schedule
        return
    with pytest.raises(InputError, match=named):
        fedsim.run(tree, out=tmp_path)
    assert not list(tmp_path.iterdir())
