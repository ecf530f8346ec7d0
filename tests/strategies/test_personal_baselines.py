"""LG-FedAvg, APFL, pFedMe, Per-FedAvg and PartialFed against loops written out here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fedsim
from fedsim.errors import InputError
from tests.support.played import Player, assert_weights, changed
from tests.support.runs import model_bits, tiny

SMOOTH = f"{Path(__file__).resolve()}:smooth"
NORMED = f"{Path(__file__).resolve()}:normed"


def smooth(input_shape: Any, num_classes: int) -> torch.nn.Module:
    """A network without kinks, so that differences of gradients are close to derivatives."""
    from fedsim.models.blocks.body_head import BodyHead

    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 12), torch.nn.Tanh())
    return BodyHead(body, 12, num_classes)


def normed(input_shape: Any, num_classes: int) -> torch.nn.Module:
    """A network with BatchNorm."""
    from fedsim.models.blocks.body_head import BodyHead

    body = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 12), torch.nn.BatchNorm1d(12), torch.nn.ReLU()
    )
    return BodyHead(body, 12, num_classes)


def plain(tmp_path: Path, **changes: Any) -> fedsim.Run:
    client = {"vectorise": False, **changes.pop("client", {})}
    return fedsim.run(tiny(name="plain", client=client, **changes), out=tmp_path)


# LG-FedAvg


def test_lg_fedavg_sends_the_named_layers_only(tmp_path: Path) -> None:
    head = fedsim.run(tiny(strategy={"name": "lg-fedavg"}, name="head"), out=tmp_path)
    assert set(head.arrays()) == {"head.weight", "head.bias"}
    up = head.clients[head.clients["name"] == "bytes_up"]["value"]
    assert set(up) == {4.0 * (16 * 10 + 10)}
    model = {"name": "mlp", "hidden": [16, 12]}
    strategy = {"name": "lg-fedavg", "shared": ["body.3", "head"]}
    more = fedsim.run(tiny(strategy=strategy, model=model, name="more"), out=tmp_path)
    assert set(more.arrays()) == {"body.3.weight", "body.3.bias", "head.weight", "head.bias"}
    with pytest.raises(InputError, match=r"it has body\.1, head.*'tail'"):
        fedsim.run(tiny(strategy={"name": "lg-fedavg", "shared": ["tail"]}), out=tmp_path)


def test_lg_fedavg_that_shares_all_is_fedavg(tmp_path: Path) -> None:
    strategy = {"name": "lg-fedavg", "shared": ["body.1", "head"]}
    ours = fedsim.run(tiny(strategy=strategy), out=tmp_path)
    assert model_bits(ours) == model_bits(plain(tmp_path))


# APFL


def test_apfl_leaves_the_global_model_to_fedavg(tmp_path: Path) -> None:
    ours = fedsim.run(tiny(strategy={"name": "apfl"}), out=tmp_path)
    reference = plain(tmp_path)
    for name, tensor in reference.arrays().items():
        torch.testing.assert_close(ours.arrays()[name], tensor, rtol=0, atol=1e-6)


def test_apfl_at_alpha_zero_is_fedavg(tmp_path: Path) -> None:
    client = {"alpha": 0.0, "adaptive": False}
    run = fedsim.run(tiny(strategy={"name": "apfl"}, client=client), out=tmp_path)
    own = run.client_values("test", "personal/accuracy", last=True)["value"].tolist()
    assert own == run.client_values("test", "generic/accuracy", last=True)["value"].tolist()


def test_apfl_at_alpha_one_trains_alone() -> None:
    player = Player(strategy={"name": "apfl"}, client={"alpha": 1.0, "adaptive": False})
    state, _ = player.train(changed(player.initial))
    module = player.module(player.initial)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for x, y in player.batches():
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    assert_weights(state["own"], module)


def test_apfl_steps_follow_the_paper() -> None:
    """Two models and alpha, with ordinary modules and backward passes."""
    player = Player(strategy={"name": "apfl"}, client={"alpha": 0.3}, model={"name": NORMED})
    start = changed(player.initial)
    state, update = player.train(start)
    w, v, u = player.module(start), player.module(player.initial), player.module(player.initial)
    alpha = 0.3
    for x, y in player.batches():
        pairs = list(zip(w.parameters(), v.parameters(), u.parameters(), strict=True))
        with torch.no_grad():
            for a, b, mixed in pairs:
                mixed.copy_(alpha * b + (1 - alpha) * a)
        for module in (w, u):
            module.zero_grad()
            F.cross_entropy(module(x), y).backward()
        with torch.no_grad():
            slope = sum(float(((b - a) * m.grad).sum()) for a, b, m in pairs)
            for a, b, mixed in pairs:
                a -= 0.1 * a.grad
                b -= 0.1 * alpha * mixed.grad
        alpha = min(1.0, max(0.0, alpha - 0.1 * slope))
    assert state["alpha"] == pytest.approx(alpha, abs=1e-5)
    assert state["alpha"] != pytest.approx(0.3, abs=1e-4)
    assert_weights(update.tensors["model"], w)
    v.load_state_dict({**v.state_dict(), **dict(u.named_buffers())})  # statistics are those of u
    assert_weights(state["own"], v)
    personal = player.client.personal_model({"model": start}, state, player.context())
    kept = player.client.personal_model({"model": start}, {"alpha": 0.3}, player.context())
    assert kept is start
    name = "body.1.weight"
    expected = state["alpha"] * state["own"][name] + (1 - state["alpha"]) * start[name]
    torch.testing.assert_close(personal[name], expected)
    assert personal["body.2.running_mean"].equal(state["own"]["body.2.running_mean"])


# pFedMe


def test_pfedme_with_one_inner_step_can_be_sgd(tmp_path: Path) -> None:
    """K = 1 and eta lam = 1: theta is one SGD step from w, and w goes there."""
    client = {"lr": 0.1, "lam": 4.0, "outer_lr": 0.25, "inner_steps": 1}
    ours = fedsim.run(tiny(strategy={"name": "pfedme"}, client=client), out=tmp_path)
    reference = plain(tmp_path)
    for name, tensor in reference.arrays().items():
        torch.testing.assert_close(ours.arrays()[name], tensor, rtol=0, atol=2e-6)


def test_pfedme_steps_follow_the_paper() -> None:
    client = {"lr": 0.05, "lam": 3.0, "outer_lr": 0.1, "inner_steps": 3}
    player = Player(strategy={"name": "pfedme"}, client=client)
    start = changed(player.initial)
    state, update = player.train(start)
    w, theta = player.module(start), player.module(start)
    for x, y in player.batches():
        for _ in range(3):
            theta.zero_grad()
            distance = sum(
                ((a - b.detach()) ** 2).sum()
                for a, b in zip(theta.parameters(), w.parameters(), strict=True)
            )
            (F.cross_entropy(theta(x), y) + 3.0 / 2 * distance).backward()
            with torch.no_grad():
                for a in theta.parameters():
                    a -= 0.05 * a.grad
        with torch.no_grad():
            for a, b in zip(theta.parameters(), w.parameters(), strict=True):
                b -= 0.1 * 3.0 * (b - a)
    assert_weights(update.tensors["model"], w)
    assert_weights(state["own"], theta)


def test_pfedme_goes_a_share_of_the_way(tmp_path: Path) -> None:
    whole = fedsim.run(tiny(strategy={"name": "pfedme"}, rounds=1, name="whole"), out=tmp_path)
    half = fedsim.run(
        tiny(strategy={"name": "pfedme", "beta": 0.5}, rounds=1, name="half"), out=tmp_path
    )
    start = Player(strategy={"name": "pfedme"}).initial
    for name, tensor in half.arrays().items():
        torch.testing.assert_close(tensor, (start[name] + whole.arrays()[name]) / 2)


# Per-FedAvg


def gradient(module: torch.nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(module(x), y), list(module.parameters())))


@pytest.mark.parametrize("variant", ["fo", "hf"])
def test_per_fedavg_steps_along_the_meta_gradient(variant: str) -> None:
    """One step against exact derivatives: HF is the gradient of f(w - alpha grad f(w))."""
    client = {"variant": variant, "inner_lr": 0.2, "lr": 0.1, "steps": 1, "delta": 1e-3}
    player = Player(strategy={"name": "per-fedavg"}, client=client, model={"name": SMOOTH})
    start = changed(player.initial)
    _, update = player.train(start)
    view, rng = player.data().train, player.rng()
    inner, outer, third = (next(iter(view.batches(32, rng, 1))) for _ in range(3))
    module = player.module(start)
    w = list(module.parameters())
    moved = copy.deepcopy(module)
    step = gradient(module, *inner)
    with torch.no_grad():
        for p, g in zip(moved.parameters(), step, strict=True):
            p -= 0.2 * g
    g = gradient(moved, *outer)
    if variant == "hf":
        loss = F.cross_entropy(module(third[0]), third[1])
        first = torch.autograd.grad(loss, w, create_graph=True)
        product = torch.autograd.grad(sum((a * b).sum() for a, b in zip(first, g, strict=True)), w)
        curved = [a - 0.2 * b for a, b in zip(g, product, strict=True)]
        assert max(float((a - b).abs().max()) for a, b in zip(g, curved, strict=True)) > 1e-3
        g = curved
    with torch.no_grad():
        for p, slope in zip(w, g, strict=True):
            p -= 0.1 * slope
    assert_weights(update.tensors["model"], module, 2e-5 if variant == "hf" else 1e-6)


def test_per_fedavg_is_scored_after_adaptation(tmp_path: Path) -> None:
    def run(name: str, **client: Any) -> fedsim.Run:
        return fedsim.run(
            tiny(strategy={"name": "per-fedavg"}, client=client, name=name), out=tmp_path
        )

    def last(result: fedsim.Run, name: str) -> list[float]:
        return result.client_values("test", name, last=True)["value"].tolist()

    still = run("still", adapt_steps=0)
    assert last(still, "personal/loss") == last(still, "generic/loss")
    adapted = run("adapted", inner_lr=0.1, adapt_steps=20)
    better = zip(last(adapted, "personal/loss"), last(adapted, "generic/loss"), strict=True)
    assert sum(a < b for a, b in better) >= 7  # of 8 clients with skewed labels


# PartialFed


def test_partialfed_that_keeps_nothing_is_fedavg(tmp_path: Path) -> None:
    client = {"loading": "fixed", "keep_layers": []}
    ours = fedsim.run(tiny(strategy={"name": "partialfed"}, client=client), out=tmp_path)
    assert model_bits(ours) == model_bits(plain(tmp_path))


def test_partialfed_that_keeps_all_trains_alone() -> None:
    client = {"loading": "fixed", "keep_layers": ["body", "head"]}
    player = Player(strategy={"name": "partialfed"}, client=client)
    state, _ = player.train(player.initial)
    far, _ = player.train(changed(player.initial, 1.0), state, round=2)
    near, _ = player.train(state["own"], state, round=2)
    assert far["own"].flat.equal(near["own"].flat)


def test_partialfed_keeps_batch_norm_by_type() -> None:
    client = {"loading": "fixed"}
    player = Player(strategy={"name": "partialfed"}, client=client, model={"name": NORMED})
    state, first = player.train(player.initial)
    assert first.metrics["kept_layers"] == 0.0
    _, second = player.train(player.initial, state, round=2)
    assert second.metrics["kept_layers"] == pytest.approx(1 / 3)


def test_partialfed_learns_which_layers_to_keep() -> None:
    """A spoilt layer of the global model is kept out, one that is no worse is not."""
    client = {"gate_steps": 20, "gate_lr": 5.0, "epochs": 5}
    player = Player(strategy={"name": "partialfed"}, client=client)
    state, _ = player.train(player.initial)
    spoilt = state["own"].merged({"head.weight": -3 * state["own"]["head.weight"]})
    after, update = player.train(spoilt, state, round=2)
    assert after["gates"][1] < -1
    assert after["gates"][0] == pytest.approx(0.0, abs=1e-6)  # the same weights on both sides
    assert update.metrics["kept_layers"] == 0.5
    good = state["own"].replace(state["own"].flat.clone())
    worse = {**state, "own": state["own"].merged({"head.weight": -3 * good["head.weight"]})}
    after, _ = player.train(good, worse, round=2)
    assert after["gates"][1] > 1


@pytest.mark.parametrize(
    ("strategy", "client", "text"),
    [
        ("apfl", {"alpha": 1.5}, r"alpha must be in \[0, 1\]"),
        ("pfedme", {"lr": 0.5, "lam": 15.0}, r"lr \* lam must be < 2"),
        ("pfedme", {"inner_steps": 0}, "inner_steps must be >= 1"),
        ("per-fedavg", {"variant": "so"}, "variant"),
        ("per-fedavg", {"delta": 0.0}, "delta must be > 0"),
        ("partialfed", {"temperature": 0.0}, "temperature must be > 0"),
        ("partialfed", {"loading": "some"}, "loading"),
    ],
)
def test_bad_options_are_refused(
    strategy: str, client: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=text):
        fedsim.run(tiny(strategy={"name": strategy}, client=client), out=tmp_path)
    assert not list(tmp_path.iterdir())
