"""pFedHN: what the hypernetwork makes, its gradient, and where its steps lead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedsim
from fedsim.client import Update
from fedsim.errors import InputError
from fedsim.params import Params
from fedsim.strategy import ServerContext
from strategies.pfedhn import PFedHN, network
from tests.support.played import Player
from tests.support.runs import TESTS, tiny

NORMED = f"{TESTS}/models.py:normed"


def player(**changes: Any) -> Player:
    return Player(strategy={"name": "pfedhn"}, **changes)


def bound(scene: Player, **options: Any) -> PFedHN:
    strategy = PFedHN(PFedHN.Config(**options))
    worker = scene.worker
    strategy.bind(scene.initial, ServerContext(0, 10, 8, 8, 10, worker.model, worker.dataset))
    return strategy


def train(scene: Player, model: Params, client: int) -> Update:
    _, update = scene.train(model, client=client)
    update.client = client
    return update


def test_the_network_is_a_perceptron() -> None:
    scene = player()
    strategy = bound(scene, hidden=5, layers=2, embedding=4, start="random")
    w = strategy.state.weights
    sizes = [4, 5, 5, 5, scene.initial.flat.numel()]
    layers: list[nn.Module] = []
    names = ["weight0", "weight1", "weight2", "out"]
    for i, name in enumerate(names):
        linear = nn.Linear(sizes[i], sizes[i + 1])
        bias = "out_bias" if name == "out" else name.replace("weight", "bias")
        with torch.no_grad():
            linear.weight.copy_(w[name])
            linear.bias.copy_(w[bias])
        # No nonlinearity before the outputs, as in the authors' code.
        layers += [linear, nn.ReLU()] if i < 2 else [linear]
    expected = nn.Sequential(*layers)(w["embeddings"][[3, 1]])
    made = strategy.configure(strategy.state, 1, [3, 1])
    torch.testing.assert_close(made.own[3]["model"].flat, expected[0].detach())
    torch.testing.assert_close(made.own[1]["model"].flat, expected[1].detach())
    assert made.shared == {}
    assert float(w["out"].abs().max()) <= 5**-0.5


def test_it_begins_at_the_initial_model() -> None:
    scene = player()
    strategy = bound(scene)
    made = strategy.configure(strategy.state, 1, range(8))
    assert all(made.own[c]["model"].flat.equal(scene.initial.flat) for c in range(8))
    assert strategy.state.weights["embeddings"].shape == (8, 3)  # 1 + 8 // 4


def tiny_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "embeddings": (3, 2), "weight0": (4, 2), "bias0": (4,), "weight1": (4, 4), "bias1": (4,),
        "out": (6, 4), "out_bias": (6,),
    }  # fmt: skip
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


class Recorded(PFedHN):
    """A step of rate 1 without momentum or bound is minus the gradient."""

    def gradients(self, state: Any, updates: list[Update]) -> dict[str, Tensor]:
        new, _ = self.aggregate(state, updates)
        return {n: state.weights[n] - new.weights[n] for n in state.weights}


def test_the_gradient_is_the_vector_jacobian_product() -> None:
    """Against finite differences of mean_n <h(v_n), theta_n - theta~_n>, in every weight."""
    w, clients = tiny_weights(), [2, 0]
    layout = player(model={"name": "mlp", "hidden": [1]}).initial.layout
    like = Params(layout.only(lambda n: n == "head.bias")[0], torch.zeros(10))
    strategy = Recorded(PFedHN.Config(lr=1.0, momentum=0.0, clip_norm=None))
    w["out"], w["out_bias"] = w["out"].repeat(2, 1)[:10], w["out_bias"].repeat(2)[:10]
    trained = torch.randn(2, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    updates = [
        Update({"model": like.replace(trained[i])}, 1.0, client=c) for i, c in enumerate(clients)
    ]
    state = strategy_state(like, w)
    found = strategy.gradients(state, updates)
    g = network(w, w["embeddings"][clients]) - trained

    def surrogate(weights: dict[str, Tensor]) -> float:
        return float((network(weights, weights["embeddings"][clients]) * g).sum() / 2)

    for name, weight in w.items():
        for place in range(weight.numel()):
            ends = []
            for h in (1e-6, -1e-6):
                moved = weight.clone()
                moved.view(-1)[place] += h
                ends.append(surrogate({**w, name: moved}))
            numeric = (ends[0] - ends[1]) / 2e-6
            assert float(found[name].view(-1)[place]) == pytest.approx(numeric, abs=1e-6)
    assert not found["embeddings"][1].any()  # a client that was not asked


def strategy_state(like: Params, weights: dict[str, Tensor]) -> Any:
    from strategies.pfedhn import State

    return State(like, weights)


def test_a_step_moves_each_client_to_where_it_went() -> None:
    scene = player(client={"epochs": 1, "batch_size": 512, "lr": 0.5, "momentum": 0.0})
    strategy = bound(scene, lr=0.01, momentum=0.0, clip_norm=None)
    state = strategy.state
    for _ in range(3):
        made = strategy.configure(state, 1, range(8))
        updates = [train(scene, made.own[c]["model"], c) for c in range(8)]
        state, metrics = strategy.aggregate(state, updates)
        assert metrics["weight_movement"] > 0
    after = strategy.configure(state, 2, range(8))
    flats = torch.stack([after.own[c]["model"].flat for c in range(8)])
    assert not flats[0].equal(flats[1])
    before, later = losses(scene, scene.initial, None), losses(scene, scene.initial, flats)
    assert later < before


def losses(scene: Player, like: Params, flats: Tensor | None) -> float:
    total = 0.0
    for client in range(8):
        module = scene.module(like if flats is None else like.replace(flats[client])).eval()
        view = scene.data(client).train
        with torch.no_grad():
            total += float(F.cross_entropy(module(view.inputs()), view.labels()))
    return total


def test_a_local_head_never_travels(tmp_path: Path) -> None:
    settings = tiny(strategy={"name": "pfedhn", "head": "local"}, client={"adapt_epochs": 1})
    run = fedsim.run(settings, out=tmp_path)
    assert set(run.arrays()) == {"body.1.weight", "body.1.bias"}
    up = run.clients[run.clients["name"] == "bytes_up"]["value"]
    assert set(up) == {4.0 * (64 * 16 + 16)}
    names = set(run.clients[run.clients["split"] == "test"]["name"])
    assert {"personal/accuracy", "personal-adapted/accuracy"} <= names
    assert "generic/accuracy" not in set(run.metrics["name"])


def test_batch_norms_statistics_stay_with_the_client(tmp_path: Path) -> None:
    run = fedsim.run(tiny(strategy={"name": "pfedhn"}, model={"name": NORMED}), out=tmp_path)
    assert run.arrays()
    assert not any("running" in name for name in run.arrays())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lr": 0.0}, "lr must be > 0"),
        ({"embedding_lr": -1.0}, "embedding_lr must be > 0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"clip_norm": 0.0}, "clip_norm must be > 0"),
        ({"embedding": 0}, "embedding must be >= 1"),
        ({"hidden": 0}, "hidden must be >= 1"),
        ({"layers": -1}, "layers must be >= 0"),
    ],
)
def test_bad_options(options: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=text):
        fedsim.run(tiny(strategy={"name": "pfedhn", **options}), out=tmp_path)


def test_nothing_to_make_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = {"name": "vit", "width": 16, "heads": 2, "layers": 2, "prompts": 0}
    with pytest.raises(InputError, match="needs a model with weights to make"):
        fedsim.run(tiny(strategy={"name": "pfedhn", "head": "local"}, model=model), out=tmp_path)
