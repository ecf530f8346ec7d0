"""pFedPG: the generator's gradient, its sign, and what never leaves a client."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("transformers")

import clients.pfedpg
import fedsim
from fedsim.client import Update
from fedsim.params import Layout, Params
from fedsim.strategy import ServerContext
from strategies.pfedpg import PFedPG, generated, surrogate_gradients
from tests.support.pfedpg_scene import K, L, bound, player, train
from tests.support.played import Player
from tests.support.runs import tiny


def tiny_weights(rows: int = 1) -> dict[str, Tensor]:
    """K = 2 prompts of width 4 for 3 clients, in double precision."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "base": (2, 4), "descriptors": (3, rows, 4), "query": (4, 5), "key": (4, 5),
        "value": (4, 5), "out": (5, 4),
    }  # fmt: skip
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


# The generator


def test_the_generator_by_hand() -> None:
    w = tiny_weights()
    found = generated(w, [2, 0])
    assert found.shape == (2, 2, 4)
    for row, client in enumerate((2, 0)):
        d = w["descriptors"][client][0]
        scores = [(d @ w["query"]) @ (w["base"][k] @ w["key"]) / math.sqrt(5) for k in range(2)]
        e = [math.exp(float(s)) for s in scores]
        mixed = sum((e[k] / sum(e)) * (w["base"][k] @ w["value"]) for k in range(2))
        for k in range(2):
            torch.testing.assert_close(found[row, k], w["base"][k] + mixed @ w["out"])


def test_one_descriptor_row_moves_all_prompts_alike() -> None:
    w = tiny_weights()
    shift = generated(w, [0, 1]) - w["base"]
    torch.testing.assert_close(shift[:, 0], shift[:, 1])
    assert not torch.allclose(shift[0], shift[1])
    several = tiny_weights(rows=2)
    shift = generated(several, [0]) - several["base"]
    assert not torch.allclose(shift[0, 0], shift[0, 1])


def test_equal_descriptors_give_equal_prompts() -> None:
    w = tiny_weights()
    w["descriptors"][1] = w["descriptors"][0]
    found = generated(w, [0, 1, 2])
    assert found[0].equal(found[1])
    swapped = {**w, "descriptors": w["descriptors"][[2, 1, 0]]}
    torch.testing.assert_close(generated(swapped, [0, 1, 2]), found[[2, 1, 0]])


@pytest.mark.parametrize("rows", [1, 2])
def test_the_gradient_is_the_vector_jacobian_product(rows: int) -> None:
    """Against finite differences of mean_n <P_n, g_n>, in every weight."""
    w = tiny_weights(rows)
    clients = [0, 2]
    g = torch.randn(2, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = surrogate_gradients(w, clients, g)

    def surrogate(weights: dict[str, Tensor]) -> float:
        return float((generated(weights, clients) * g).sum() / 2)

    for name, weight in w.items():
        for place in range(weight.numel()):
            ends = []
            for step in (1e-6, -1e-6):
                changed = weight.clone()
                changed.view(-1)[place] += step
                ends.append(surrogate({**w, name: changed}))
            numeric = (ends[0] - ends[1]) / 2e-6
            assert float(found[name].view(-1)[place]) == pytest.approx(numeric, abs=1e-7)


@pytest.mark.parametrize("rows", [1, 2])
def test_the_gradient_from_explicit_jacobians(rows: int) -> None:
    w = tiny_weights(rows)
    clients = [1, 2]
    g = torch.randn(2, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = surrogate_gradients(w, clients, g)
    for name, weight in w.items():
        jacobian: Any = torch.autograd.functional.jacobian(
            lambda value, n=name: generated({**w, n: value}, clients), weight
        )
        expected = torch.tensordot(g, jacobian, dims=3) / 2
        torch.testing.assert_close(found[name], expected)


def test_attention_weights_sum_to_one() -> None:
    """Where all rows of the basis are alike, what is added is that row's value, for any client."""
    w = tiny_weights()
    w["base"] = w["base"][:1].expand(2, 4).clone()
    shift = w["base"][0] @ w["value"] @ w["out"]
    torch.testing.assert_close(generated(w, [0, 1]) - w["base"], shift.expand(2, 2, 4))


def test_a_client_that_did_not_move_has_no_gradient_of_its_descriptor() -> None:
    w = tiny_weights()
    g = torch.zeros(3, 2, 4, dtype=torch.float64)
    g[1] = 1.0
    found = surrogate_gradients(w, [0, 1, 2], g)
    moved = found["descriptors"].flatten(1).any(1)
    assert moved.tolist() == [False, True, False]
    assert all(bool(found[name].any()) for name in ("base", "query", "key", "value", "out"))


# What the server begins with


def test_the_defaults_are_the_papers() -> None:
    """Sections 4 and 9 of the specification: rates, decay and epochs stated, the rest as noted."""
    assert PFedPG.Config() == PFedPG.Config(
        lr=0.001, optimiser="adam", momentum=0.0, clip_norm=50.0, dim=None, descriptor_rows="one"
    )
    method = clients.pfedpg.PFedPG.Config
    assert method() == method(
        epochs=5, batch_size=64, lr=0.25, momentum=0.9, weight_decay=0.001, adapt_epochs=None
    )


def test_the_basis_begins_as_the_models_prompts_and_the_rest_as_linear_layers_do() -> None:
    scene = player()
    w = bound(scene).state.weights
    assert w["base"].equal(scene.initial["body.prompts"])
    for name in ("query", "key", "value", "out"):
        assert w[name].shape == (L, L)
        assert 0.9 * L**-0.5 < float(w[name].abs().max()) <= L**-0.5, name


def test_clients_begin_with_descriptors_and_prompts_of_their_own() -> None:
    strategy = bound(player())
    descriptors = strategy.state.weights["descriptors"]
    assert descriptors.shape == (8, 1, L)
    assert 0.9 < float(descriptors.abs().max()) <= 1.0
    own = strategy.configure(strategy.state, 1, range(8)).own
    for one, other in itertools.combinations(range(8), 2):
        assert not descriptors[one].equal(descriptors[other])
        assert not own[one]["prompts"].equal(own[other]["prompts"])


def test_a_descriptor_row_for_each_prompt() -> None:
    """Each of the K rows asks for itself, so that what is added differs between prompts."""
    strategy = bound(player(), descriptor_rows="prompts")
    assert strategy.state.weights["descriptors"].shape == (8, K, L)
    added = generated(strategy.state.weights, [4])[0] - strategy.state.weights["base"]
    assert not any(added[i].equal(added[j]) for i, j in itertools.combinations(range(K), 2))


def test_the_width_of_the_attention() -> None:
    scene = player()
    w = bound(scene, dim=5).state.weights
    shapes = {name: tuple(w[name].shape) for name in ("query", "key", "value", "out")}
    assert shapes == {"query": (L, 5), "key": (L, 5), "value": (L, 5), "out": (5, L)}
    assert 0.9 * 5**-0.5 < float(w["out"].abs().max()) <= 5**-0.5
    # By default that of the tokens, and at most 512.
    layout = Layout(("body.prompts",), ((2, 600),), num_parameters=1, integers=())
    prompts = Params(layout, torch.zeros(1200), {})
    context = ServerContext(0, 10, 8, 8, 10, scene.worker.model, scene.worker.dataset)
    wide = PFedPG(PFedPG.Config()).init(prompts, context)
    assert wide.weights["query"].shape == (600, 512)


# The server's step


def updates(scene: Player, strategy: PFedPG, scale: float = 1.0) -> list[Update]:
    made = strategy.configure(strategy.state, 1, range(8))
    found = []
    for client in range(8):
        _, update = train(scene, made.own[client]["prompts"], client)
        update.client = client
        update.tensors["prompts"] *= scale
        found.append(update)
    return found


def test_a_cohort_is_served_and_moved_by_client_and_not_by_place() -> None:
    """Three of eight clients take part; a step of SGD of rate 1 on 1/3 sum_n <P_n, P_n - P~_n>."""
    strategy = bound(player(), optimiser="sgd", lr=1.0, clip_norm=None)
    cohort, old = (2, 5, 7), strategy.state.weights
    leaves = {name: w.clone().requires_grad_() for name, w in old.items()}
    own = strategy.configure(strategy.state, 1, cohort).own
    assert set(own) == set(cohort)
    noise, made, total = torch.Generator().manual_seed(3), [], torch.zeros(())
    for client in cohort:
        prompts = generated(leaves, [client])[0]
        torch.testing.assert_close(own[client]["prompts"], prompts.detach())
        moved = torch.randn(K, L, generator=noise)
        made.append(Update({"prompts": moved}, 1.0, client=client))
        total = total - (prompts * moved).sum() / 3
    total.backward()
    new = strategy.aggregate(strategy.state, made)[0].weights
    for name, leaf in leaves.items():
        torch.testing.assert_close(new[name], old[name] - leaf.grad, msg=lambda m, n=name: n + m)
    descriptors = (new["descriptors"] != old["descriptors"]).flatten(1).any(1)
    assert descriptors.nonzero().flatten().tolist() == [2, 5, 7]


def test_no_movement_changes_nothing() -> None:
    scene = player()
    for optimiser in ("adam", "sgd"):
        strategy = bound(scene, optimiser=optimiser)
        still = [Update({"prompts": torch.zeros(K, L)}, 1.0, client=c) for c in range(8)]
        state, _ = strategy.aggregate(strategy.state, still)
        for name, weight in strategy.state.weights.items():
            assert state.weights[name].equal(weight), name


def test_one_sgd_step_is_the_chain_rule_and_lowers_the_clients_losses() -> None:
    """One local step without decay: g_n is the rate times the gradient, and the sign is descent."""
    client = {"epochs": 1, "steps": 1, "batch_size": 512, "lr": 0.05, "momentum": 0.0}
    scene = player(**client, weight_decay=0.0)
    strategy = bound(scene, optimiser="sgd", lr=0.5)
    before = generated(strategy.state.weights, range(8))

    def losses(prompts: Tensor) -> list[float]:
        found = []
        for c in range(8):
            scene.client.start(
                {"prompts": prompts[c]}, scene.client.init_state(scene.context(c)), scene.context(c)
            )
            view, module = scene.data(c).train, scene.worker.model.module.eval()
            with torch.no_grad():
                found.append(float(F.cross_entropy(module(view.inputs()), view.labels())))
        return found

    made = updates(scene, strategy)
    module = scene.module(scene.initial.merged({"body.prompts": before[3].clone()}))
    view = scene.data(3).train
    (slope,) = torch.autograd.grad(
        F.cross_entropy(module(view.inputs()), view.labels()), [module.body.prompts]
    )
    torch.testing.assert_close(made[3].tensors["prompts"], -0.05 * slope, rtol=1e-3, atol=1e-6)
    right, _ = strategy.aggregate(strategy.state, made)
    for update in made:
        update.tensors["prompts"] *= -1
    literal, _ = strategy.aggregate(strategy.state, made)
    start = sum(losses(before))
    assert sum(losses(generated(right.weights, range(8)))) < start
    assert sum(losses(generated(literal.weights, range(8)))) > start


def test_a_bound_on_the_gradient() -> None:
    scene = player()
    moved = torch.ones(8, K, L)
    made = [Update({"prompts": moved[c]}, 1.0, client=c) for c in range(8)]
    steps = []
    for bound_ in (1e-3, None):
        strategy = bound(scene, optimiser="sgd", lr=1.0, clip_norm=bound_)
        state, _ = strategy.aggregate(strategy.state, made)
        old, new = strategy.state.weights, state.weights
        steps.append(torch.cat([(new[n] - old[n]).flatten() for n in old]))
    assert float(steps[0].norm()) == pytest.approx(1e-3, rel=1e-3)
    torch.testing.assert_close(steps[0] * 1e3, steps[1] / steps[1].norm(), rtol=1e-2, atol=1e-3)


def test_adam_is_torchs() -> None:
    scene = player()
    strategy = bound(scene, lr=0.01)
    leaves = {n: w.clone().requires_grad_() for n, w in strategy.state.weights.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=0.01)
    state = strategy.state
    for seed in (1, 2, 3):
        moved = torch.randn(8, K, L, generator=torch.Generator().manual_seed(seed))
        made = [Update({"prompts": moved[c]}, 1.0, client=c) for c in range(8)]
        optimizer.zero_grad()
        (generated(leaves, range(8)) * -moved).sum().div(8).backward()
        optimizer.step()
        state, _ = strategy.aggregate(state, made)
    for name, leaf in leaves.items():
        torch.testing.assert_close(state.weights[name], leaf.detach(), rtol=1e-4, atol=1e-6)


# Whole runs


class LiteralSign(PFedPG):
    """The paper's text taken literally: the movement itself stands for the gradient."""

    def aggregate(self, state: Any, updates: Any) -> Any:
        turned = [
            Update({"prompts": -u.tensors["prompts"]}, u.weight, u.metrics, u.client)
            for u in updates
        ]
        return super().aggregate(state, turned)


@pytest.mark.slow
def test_the_literal_sign_does_far_worse(tmp_path: Path) -> None:
    """Served prompts (generated, with the client's own head) after 30 rounds, four vendors."""
    settings: dict[str, Any] = {
        "rounds": 30,
        "dataset": {"name": "emoji", "part": [0.6, 1.0], "share": 0.15},
        "partition": {"name": "domain", "clients": 4, "validation": 0.0, "test": "domain"},
        "model": {"name": "vit", "weights": "emoji-vit", "prompts": 4},
        "client": {"name": "pfedpg", "epochs": 1, "batch_size": 16, "lr": 0.1, "adapt_epochs": 0},
        "evaluation": {"every": 30},
    }
    served = {}
    for name in ("pfedpg", f"{Path(__file__).resolve()}:LiteralSign"):
        strategy = {"name": name, "lr": 0.01}
        run = fedsim.run(tiny(strategy=strategy, **settings), out=tmp_path / name[-11:])
        served[name[-11:]] = run.final["test/clients/personal-generated/accuracy"]
    assert served["pfedpg"] > served["LiteralSign"] + 0.05


@pytest.mark.slow
def test_uplink_is_a_thousandth_of_fedavgs_on_a_vit_s(tmp_path: Path) -> None:
    """From recorded bytes, on a random network of ViT-S's size."""
    size = {"name": "vit", "patch": 4, "width": 384, "layers": 12, "heads": 6}
    sent = {}
    for name, model in (
        ("pfedpg", {**size, "prompts": 10}),
        ("fedavg", {**size, "prompts": 0, "frozen": False}),
    ):
        settings = tiny(
            rounds=1,
            dataset={"name": "digits", "share": 0.02},
            partition={"name": "iid", "clients": 2},
            strategy={"name": name},
            client={"epochs": 1, "lr": 0.01},
            model=model,
        )
        sent[name] = fedsim.run(settings, out=tmp_path / name).final["train/bytes_up"]
    assert sent["pfedpg"] == 2 * 4 * 10 * 384
    assert sent["fedavg"] > 1000 * sent["pfedpg"]
