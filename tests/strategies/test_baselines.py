"""FedProx, Ditto, FedRep, FedBABU, FedROD, CReFF and both ends, against loops written out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fedsim
from fedsim import rng as streams
from fedsim.components import build
from fedsim.errors import InputError
from strategies.creff import CReFF, State, head_gradients
from tests.support.played import Player, assert_weights, changed
from tests.support.runs import model_bits, prepared, tiny


def plain(tmp_path: Path, **changes: Any) -> fedsim.Run:
    client = {"vectorise": False, **changes.pop("client", {})}
    return fedsim.run(tiny(name="plain", client=client, **changes), out=tmp_path)


def last(run: fedsim.Run, name: str) -> list[float]:
    return run.client_values("test", name, last=True)["value"].tolist()


def sgd(
    module: torch.nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    loss: Any = None,
    only: str = "",
    lr: float = 0.1,
) -> None:
    """Plain SGD by torch.optim on the parameters whose names begin with `only`."""
    chosen = [p for n, p in module.named_parameters() if n.startswith(only)]
    optimizer = torch.optim.SGD(chosen, lr=lr)
    for x, y in batches:
        module.zero_grad()
        (F.cross_entropy(module(x), y) if loss is None else loss(module, x, y)).backward()
        optimizer.step()


# FedProx


def test_fedprox_at_mu_zero_is_fedavg(tmp_path: Path) -> None:
    ours = fedsim.run(tiny(strategy={"name": "fedprox"}, client={"mu": 0.0}), out=tmp_path)
    assert model_bits(ours) == model_bits(plain(tmp_path))


def test_fedprox_minimises_the_penalised_loss() -> None:
    player = Player(strategy={"name": "fedprox"}, client={"mu": 0.7, "epochs": 2})
    start = changed(player.initial)
    _, update = player.train(start)
    module = player.module(start)

    def penalised(module: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
        away = sum(((p - start[n]) ** 2).sum() for n, p in module.named_parameters())
        return F.cross_entropy(module(x), y) + 0.7 / 2 * away

    sgd(module, player.batches(2), penalised)
    assert_weights(update.tensors["model"], module)


# Ditto


def test_dittos_global_model_is_fedavgs(tmp_path: Path) -> None:
    ours = fedsim.run(tiny(strategy={"name": "ditto"}), out=tmp_path)
    assert model_bits(ours) == model_bits(plain(tmp_path))


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_dittos_personal_model_is_pulled_to_the_global_one(lam: float) -> None:
    """At lambda 0 it trains alone, from the initial weights and not from the payload's."""
    player = Player(strategy={"name": "ditto"}, client={"lam": lam, "personal_epochs": 2})
    start = changed(player.initial)
    state, _ = player.train(start)
    module = player.module(player.initial)
    rng = streams.torch_generator(0, "client/personal", 1, 0)

    def pulled(module: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
        away = sum(((p - start[n]) ** 2).sum() for n, p in module.named_parameters())
        return F.cross_entropy(module(x), y) + lam / 2 * away

    sgd(module, list(player.data().train.batches(32, rng, 2)), pulled)
    assert_weights(state["own"], module)
    assert player.client.personal_model({"model": start}, state, player.context()) is state["own"]
    assert player.client.personal_model({"model": start}, {}, player.context()) is start


# FedRep


def test_fedrep_trains_the_head_and_then_the_body() -> None:
    player = Player(strategy={"name": "fedrep"}, client={"head_epochs": 2})
    payload = changed(player.initial).only(lambda n: n.startswith("body."))
    state, update = player.train(payload)
    module = player.module(player.initial.merged(payload))
    view, rng = player.data().train, player.rng()
    sgd(module, list(view.batches(32, rng, 2)), only="head.")
    sgd(module, list(view.batches(32, rng, 1)), only="body.")
    assert set(update.tensors["model"]) == set(payload)
    assert set(state["own"]) == {"head.weight", "head.bias"}
    assert_weights(player.initial.merged(update.tensors["model"]).merged(state["own"]), module)


# FedBABU


def test_fedbabu_never_changes_the_head(tmp_path: Path) -> None:
    run = fedsim.run(tiny(strategy={"name": "fedbabu"}, rounds=15), out=tmp_path)
    player = Player(strategy={"name": "fedbabu"})
    for name, tensor in run.arrays().items():
        assert tensor.equal(player.initial[name]) == name.startswith("head.")
    up = run.clients[run.clients["name"] == "bytes_up"]["value"]
    assert set(up) == {4.0 * (64 * 16 + 16)}
    model = player.module(player.initial.merged(run.arrays()))
    test = player.worker.dataset.test
    x = (torch.from_numpy(np.array(test.x)).float() / 255 - player.worker.dataset.card.mean[0]) / (
        player.worker.dataset.card.std[0]
    )
    right = model(x.permute(0, 3, 1, 2)).argmax(1).numpy() == test.y
    assert run.final["test/generic/accuracy"] == pytest.approx(right.mean(), abs=2e-3)
    assert run.final["test/generic/accuracy"] > 0.5


@pytest.mark.parametrize("part", ["head", "body", "all"])
def test_fedbabu_is_fine_tuned_before_it_is_scored(part: str) -> None:
    player = Player(strategy={"name": "fedbabu"}, client={"finetune": part, "finetune_epochs": 3})
    body = changed(player.initial).only(lambda n: n.startswith("body."))
    context = player.context(round=2)
    found = player.client.evaluate({"model": body}, None, player.data(), context)
    module = player.module(player.initial.merged(body))
    rng = streams.torch_generator(0, "client/finetune", 2, 0)
    batches = list(player.data().train.batches(32, rng, 3))
    test = player.data().test
    before = F.cross_entropy(module(test.inputs()), test.labels())
    assert found["generic/loss"] == pytest.approx(float(before), abs=1e-5)
    sgd(module, batches, only={"head": "head.", "body": "body.", "all": ""}[part])
    after = F.cross_entropy(module(test.inputs()), test.labels())
    assert found["personal/loss"] == pytest.approx(float(after), abs=1e-5)
    assert found["personal/loss"] != pytest.approx(found["generic/loss"], abs=1e-3)


# FedROD


def test_fedrods_generic_model_is_fedavgs_with_the_balanced_loss(tmp_path: Path) -> None:
    """The personal head is a passenger."""
    ours = fedsim.run(tiny(strategy={"name": "fedrod"}), out=tmp_path)
    same = plain(tmp_path, client={"loss": "balanced-softmax"})
    assert model_bits(ours) == model_bits(same)


def test_fedrods_personal_head_learns_what_the_generic_one_leaves() -> None:
    player = Player(strategy={"name": "fedrod"})
    start = changed(player.initial)
    state, _ = player.train(start)
    generic, weight, bias = player.module(start), torch.zeros(10, 16), torch.zeros(10)
    sizes = torch.bincount(player.data().train.labels(), minlength=10).float()
    for x, y in player.batches():
        with torch.no_grad():
            z = generic.body(x)
            p = F.softmax(generic.head(z) + z @ weight.T + bias, 1)
            error = (p - F.one_hot(y, 10)) / len(y)
            weight -= 0.1 * error.T @ z
            bias -= 0.1 * error.sum(0)

        def balanced(module: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
            shares = sizes * module(x).exp()
            return -(shares[range(len(y)), y] / shares.sum(1)).log().mean()

        sgd(generic, [(x, y)], balanced)
    torch.testing.assert_close(state["head.weight"], weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(state["head.bias"], bias, rtol=1e-4, atol=1e-6)
    personal = player.client.personal_model({"model": start}, state, player.context())
    torch.testing.assert_close(personal["head.weight"], start["head.weight"] + weight)
    assert personal["body.1.weight"].equal(start["body.1.weight"])


# CReFF


def test_creffs_gradients_are_those_of_each_class() -> None:
    player = Player(strategy={"name": "creff"})
    start = changed(player.initial)
    head = {"weight": torch.randn(10, 16) / 4, "bias": torch.randn(10)}
    context = player.context()
    payload = {"model": start, **head}
    _, update = player.client.train(payload, None, player.data(), player.rng(), context)
    view, module = player.data().train, player.module(start).eval()
    x, y = view.inputs(), view.labels()
    for c in range(10):
        assert update.tensors["present"][c] == float((y == c).any())
        if not (y == c).any():
            assert not update.tensors["gradients"][c].any()
            continue
        weight, bias = (
            head["weight"].clone().requires_grad_(),
            head["bias"].clone().requires_grad_(),
        )
        loss = F.cross_entropy(module.body(x[y == c]).detach() @ weight.T + bias, y[y == c])
        by_weight, by_bias = torch.autograd.grad(loss, (weight, bias))
        expected = torch.cat([by_weight, by_bias.unsqueeze(1)], 1)
        torch.testing.assert_close(update.tensors["gradients"][c], expected, rtol=1e-4, atol=1e-6)
    _, plain_update = Player(client={"vectorise": False}).train(start)
    assert update.tensors["model"].flat.equal(plain_update.tensors["model"].flat)


def test_creffs_features_come_to_match_real_ones() -> None:
    """Given the gradients of known features, others with the same gradients are found."""
    torch.manual_seed(0)
    weight, bias = torch.randn(4, 6) / 2, torch.zeros(4)
    real = torch.randn(4, 30, 6) + 2 * torch.randn(4, 1, 6)
    targets = head_gradients(weight, bias, real)
    strategy = CReFF(CReFF.Config(features_per_class=8, match_steps=500, match_lr=1.0))
    params = Player(model={"name": "mlp", "hidden": [6]}).initial
    state = State(params, weight, bias, torch.randn(4, 8, 6))
    known = torch.tensor([True, True, False, True])
    features, mismatch = strategy._match(state, targets, known)
    assert features[2].equal(state.features[2])  # nobody has the class
    found = head_gradients(weight, bias, features)[known]
    cosines = F.cosine_similarity(found, targets[known], dim=2)
    assert float(cosines.mean()) > 0.98
    before = head_gradients(weight, bias, state.features)[known]
    assert float(F.cosine_similarity(before, targets[known], dim=2).mean()) < 0.9
    assert mismatch == pytest.approx(float((1 - cosines).sum(1).mean()), abs=0.02)


def test_creff_retrains_by_gradient_descent() -> None:
    player = Player(strategy={"name": "creff"})
    strategy = CReFF(CReFF.Config(retrain_steps=20, retrain_lr=0.3))
    features = torch.randn(10, 5, 16, generator=torch.Generator().manual_seed(1))
    known = torch.ones(10, dtype=torch.bool)
    known[7] = False
    weight, bias = strategy._retrain(player.initial, features, known)
    head = torch.nn.Linear(16, 10)
    head.load_state_dict({n: player.initial[f"head.{n}"].clone() for n in ("weight", "bias")})
    labels = torch.arange(10).repeat_interleave(5).view(10, 5)[known].flatten()
    sgd(head, [(features[known].flatten(0, 1), labels)] * 20, lr=0.3)
    torch.testing.assert_close(weight, head.weight.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bias, head.bias.detach(), rtol=1e-4, atol=1e-5)


def test_creff_scores_both_heads(tmp_path: Path) -> None:
    run = fedsim.run(tiny(strategy={"name": "creff"}, rounds=10), out=tmp_path)
    reference = plain(tmp_path, rounds=10)
    before = run.final["test/generic-before/accuracy"]
    assert before == pytest.approx(reference.final["test/generic/accuracy"])
    assert run.final["test/generic/accuracy"] > before - 0.1


# Both ends


def test_local_sends_nothing(tmp_path: Path) -> None:
    run = fedsim.run(tiny(strategy={"name": "local"}), out=tmp_path)
    assert run.arrays() == {}
    assert set(run.clients[run.clients["name"] == "bytes_up"]["value"]) == {0.0}
    assert "generic/accuracy" not in set(run.metrics["name"])
    player = Player(strategy={"name": "local"})
    nothing = player.initial.only(lambda name: False)
    state, _ = player.train(nothing)
    state, _ = player.train(nothing, state, round=2)
    module = player.module(player.initial)
    view = player.data().train
    for round in (1, 2):
        sgd(module, list(view.batches(32, player.rng(round=round), 1)))
    assert_weights(state["own"], module)


def test_centralised_trains_on_the_union(tmp_path: Path) -> None:
    run = fedsim.run(tiny(strategy={"name": "centralised"}, rounds=1), out=tmp_path)
    experiment = prepared(strategy={"name": "centralised"})
    player = Player(strategy={"name": "centralised"})
    manifest = build.build_partition(experiment, player.worker.dataset)
    rows = sorted(int(r) for c in range(8) for r in manifest.client(c).train)
    assert manifest.pooled().client(0).train.tolist() == rows
    assert len(set(rows)) == len(rows) < len(player.worker.dataset.train)
    weights = run.client_values("train", "weight")
    assert weights.to_dict("list") == {"round": [1], "client": [0], "value": [float(len(rows))]}
    dataset = player.worker.dataset
    mean, std = dataset.card.mean[0], dataset.card.std[0]
    x = ((torch.from_numpy(np.array(dataset.train.x)) / 255 - mean) / std).permute(0, 3, 1, 2)
    y = torch.from_numpy(np.array(dataset.train.y))
    order = torch.tensor(rows)[torch.randperm(len(rows), generator=player.rng())]
    module = player.module(player.initial)
    sgd(module, [(x[rows], y[rows]) for rows in order.split(32)])
    for name, tensor in run.arrays().items():
        torch.testing.assert_close(tensor, module.state_dict()[name], rtol=1e-4, atol=1e-4)
    assert len(last(run, "generic/accuracy")) == 8  # scored like any other


# Losses of local SGD


@pytest.mark.parametrize("loss", ["balanced-softmax", "fedlc", "focal"])
def test_losses_by_hand(loss: str) -> None:
    """Two samples and three classes, of which the client has two."""
    from fedsim.training import losses

    z = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    y = torch.tensor([1, 0])
    sizes = torch.tensor([16.0, 81.0, 0.0])
    e = np.exp
    if loss == "balanced-softmax":
        value = losses.balanced_softmax(z, y, sizes)
        first = -np.log(81 * e(2) / (16 * e(1) + 81 * e(2)))
        second = -np.log(16 * e(0) / (16 * e(0) + 81 * e(-1)))
    elif loss == "fedlc":
        value = losses.calibrated(z, y, sizes, tau=3.0)
        a, b = 3 / 2, 3 / 3  # tau n^(-1/4)
        first = -np.log(e(2 - b) / (e(1 - a) + e(2 - b)))
        second = -np.log(e(0 - a) / (e(0 - a) + e(-1 - b)))
    else:
        value = losses.focal(z, y, gamma=2.0)
        p = e(2) / (e(1) + e(2) + e(0.5))
        q = e(0) / (e(0) + e(-1) + e(3))
        first, second = -((1 - p) ** 2) * np.log(p), -((1 - q) ** 2) * np.log(q)
    assert float(value) == pytest.approx((first + second) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("client", "same"),
    [
        ({"loss": "focal", "focal_gamma": 0.0}, True),
        ({"loss": "balanced-softmax", "tau": 1.0}, False),
        ({"loss": "fedlc", "tau": 1.0}, False),
        ({"loss": "focal"}, False),
    ],
)
def test_losses_in_training(client: dict[str, Any], same: bool) -> None:
    player, reference = Player(client=client), Player(client={"vectorise": False})
    (_, one), (_, two) = player.train(player.initial), reference.train(reference.initial)
    close = torch.allclose(one.tensors["model"].flat, two.tensors["model"].flat, atol=1e-6)
    assert close == same
    assert player.client.group_size(player.worker.model.module) == 1


@pytest.mark.parametrize(
    ("strategy", "client", "text"),
    [
        ("fedprox", {"mu": -1.0}, "mu must be >= 0"),
        ("ditto", {"lam": -1.0}, "lam must be >= 0"),
        ("ditto", {"personal_epochs": 0}, "personal_epochs must be >= 1"),
        ("fedrep", {"head_epochs": 0}, "head_epochs must be >= 1"),
        ("fedbabu", {"finetune": "tail"}, "finetune"),
        ("fedavg", {"loss": "hinge"}, "loss"),
        ("fedavg", {"tau": -1.0}, "tau must be >= 0"),
        ("fedavg", {"loss": "focal", "vectorise": True}, "client.loss is 'focal'"),
    ],
)
def test_bad_options_are_refused(
    strategy: str, client: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=text):
        fedsim.run(tiny(strategy={"name": strategy}, client=client), out=tmp_path)
    assert not list(tmp_path.iterdir())
