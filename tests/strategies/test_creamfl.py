"""CreamFL: what travels, and what a client trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fedsim
from fedsim.params import Params
from fedsim.runs.codec import to_bytes
from tests.support.pairs import DIM, KINDS, PUBLIC, Scene, batch_normed, small, unit
from tests.support.runs import events, tiny

# What travels


def test_messages_hold_representations_and_no_parameter(tmp_path: Path) -> None:
    scene = Scene()
    payload = scene.payload(0)
    assert {k: tuple(v.shape) for k, v in payload.items()} == {
        "global_img": (PUBLIC, DIM), "global_txt": (PUBLIC, DIM),
    }  # fmt: skip
    for client, kind in KINDS.items():
        found = scene.train(client).tensors
        shapes = {k: tuple(v.shape) for k, v in found.items()}
        assert shapes == {
            "local_img": (PUBLIC if kind != "text" else 0, DIM),
            "local_txt": (PUBLIC if kind != "image" else 0, DIM),
        }
        for rep in found.values():
            assert bool((rep.norm(dim=1) - 1).abs().lt(1e-5).all())
    run = fedsim.run(tiny(**small()), out=tmp_path)
    matrix = 4 * DIM * PUBLIC
    round_number = 8
    assert run.final["train/bytes_down"] == 6 * (2 * matrix + round_number)
    assert run.final["train/bytes_up"] == (2 + 2 + 2 * 2) * matrix
    assert events(run) == []


def test_uploads_are_in_the_order_of_the_public_pairs() -> None:
    scene = Scene()
    sent = scene.train(4).tensors
    context = scene.context(4)
    context.model.load(scene.states[4]["model"])
    part: Any = context.model.module.get_submodule("pairs").eval()
    assert context.public is not None
    assert context.public.indices.tolist() == scene.manifest.server.tolist()
    with torch.no_grad():
        torch.testing.assert_close(sent["local_img"], part.images(context.public.inputs()))
        torch.testing.assert_close(sent["local_txt"], part.texts(context.public.tokens()))


@pytest.mark.parametrize("client", [0, 4])
def test_what_travels_is_of_evaluation_mode(client: int) -> None:
    """With BatchNorm, whose output in training depends on the batch."""
    scene = Scene(model=batch_normed())
    payload, sent = scene.payload(client), scene.train(client).tensors
    for kind, params, found in (
        ("server", scene.strategy.state.ahead, payload["global_img"]),
        (KINDS[client], scene.states[client]["model"], sent["local_img"]),
    ):
        context = scene.context(client)
        assert context.public is not None
        context.model.load(params)
        part: Any = context.model.module.get_submodule(kind)
        inputs = context.public.inputs()
        with torch.no_grad():
            torch.testing.assert_close(found, part.eval().images(inputs))
            assert float((part.train().images(inputs) - found).abs().max()) > 1e-3


def test_steps_are_in_training_mode() -> None:
    """BatchNorm's statistics move with private and with public pairs, and not in evaluation."""
    scene = Scene(model=batch_normed(), client={"gamma": 0.0})
    for client in (0, 4):
        scene.train(client)
    scene.payload(0)
    for kept in (scene.states[0]["model"], scene.states[4]["model"], scene.strategy.state.ahead):
        means = [name for name in kept if name.endswith("running_mean")]
        assert len(means) == 1
        assert not kept[means[0]].equal(scene.initial[means[0]])


def test_contrast_trains_against_what_evaluation_mode_gave_before() -> None:
    scene = Scene(model=batch_normed(), client={"inter": False})
    payload = {"global_img": unit(PUBLIC, DIM, 1), "global_txt": unit(PUBLIC, DIM, 2)}
    rows = torch.tensor([3, 17, 31])
    context = scene.context(0)
    part: Any = context.model.module.get_submodule("image")
    assert context.public is not None
    inputs = context.public.inputs(rows)
    with torch.no_grad():
        context.model.load(scene.initial)
        previous, x = part.eval().images(inputs), part.train().images(inputs)
    apart = (x * previous).sum(1) - (x * payload["global_img"][rows]).sum(1)
    expected = float((1 + (apart / 0.5).exp()).log().mean())
    found = regulariser(scene, 0, payload, rows)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


# The client


def same_weights(one: Params, two: Params, only: str = "") -> bool:
    return all(one[n].equal(two[n]) for n in one if n.startswith(only))


def test_only_the_clients_own_part_moves_and_its_state_goes_on() -> None:
    scene = Scene()
    for client, kind in KINDS.items():
        scene.train(client)
        kept = scene.states[client]["model"]
        assert set(kept) == {n for n in scene.initial if n.startswith(f"{kind}.")}
        assert not same_weights(kept, scene.initial)
        first = to_bytes(scene.states[client])
        scene.train(client, round=2)
        assert to_bytes(scene.states[client]) != first
        steps = scene.states[client]["optimiser"]["steps"]
        batches = -(-len(scene.data(client).train) // 8)
        assert max(steps.values()) == 2 * (batches + -(-PUBLIC // 16))


@pytest.mark.parametrize("client", [0, 2, 4])
def test_with_gamma_zero_the_public_pairs_are_left_alone(client: int) -> None:
    """As plain local training written out here with torch's own Adam."""
    scene = Scene(client={"gamma": 0.0, "retrieval_loss": "infonce", "pairs_clip_norm": None})
    scene.train(client)
    kept = scene.states[client]["model"]
    reference = Scene()
    context = reference.context(client)
    part: Any = context.model.module.get_submodule(KINDS[client])
    optimiser = torch.optim.Adam(part.parameters(), lr=0.01)
    view = reference.data(client).train
    generator = fedsim.rng.torch_generator(0, "client", 1, client)
    part.train()
    for order in torch.randperm(len(view), generator=generator).split(8):
        if KINDS[client] == "pairs":
            x, y = part.images(view.inputs(order)), part.texts(view.tokens(order))
            logits = x @ y.T / part.log_temperature.exp()
            rows = torch.arange(len(order))
            loss = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
        else:
            x = view.inputs(order) if client == 0 else view.tokens(order)
            tower = part.image if client == 0 else part.text
            loss = F.cross_entropy(part.head(tower(x)), view.labels(order))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for name, tensor in part.state_dict().items():
        found = kept[f"{KINDS[client]}.{name}"]
        torch.testing.assert_close(found, tensor, rtol=1e-4, atol=1e-6)
    other = unit(PUBLIC, DIM, 3)
    scene.states.clear()
    scene.train(client, {"global_img": other, "global_txt": other})
    assert scene.states[client]["model"].flat.equal(kept.flat)


def regulariser(scene: Scene, client: int, payload: dict[str, Any], rows: Tensor) -> Tensor:
    """Return inter + intra of a client that has just got a payload."""
    from clients.creamfl import Regularised

    data, context = scene.data(client), scene.context(client)
    generator = torch.Generator().manual_seed(0)
    task = Regularised(scene.client.config, {}, data, generator, context, payload)
    return task.regulariser(rows)


@pytest.mark.parametrize(
    ("client", "own", "other"), [(0, "global_img", "global_txt"), (2, "global_txt", "global_img")]
)
def test_the_terms_of_a_client_with_one_modality(client: int, own: str, other: str) -> None:
    """By the formulas; and inter is against the other modality, intra against its own."""
    payload = {"global_img": unit(PUBLIC, DIM, 1), "global_txt": unit(PUBLIC, DIM, 2)}
    rows = torch.tensor([3, 17, 31])
    scene = Scene()
    context = scene.context(client)
    part: Any = context.model.module.get_submodule(KINDS[client]).eval()
    assert context.public is not None
    with torch.no_grad():
        x = (
            part.images(context.public.inputs(rows))
            if client == 0
            else part.texts(context.public.tokens(rows))
        ).double()
    logits = x @ payload[other].double().T / 0.5
    inter = (logits.logsumexp(1) - logits[torch.arange(3), rows]).mean()
    p = ((x * payload[own][rows].double()).sum(1) / 0.5).exp()
    # As the round begins the client's representation is its previous one: cosine 1.
    n = torch.tensor(1 / 0.5).exp()
    intra = -(p / (p + n)).log().mean()
    for options, expected in (
        ({}, inter + intra), ({"intra": False}, inter), ({"inter": False}, intra),
        ({"loss_scale": True}, 2 * intra),
    ):  # fmt: skip
        found = regulariser(Scene(client=options), client, payload, rows)
        assert float(found) == pytest.approx(float(expected), rel=1e-4)
    swapped = {own: payload[own], other: payload[own]}
    assert float(regulariser(Scene(client={"intra": False}), client, swapped, rows)) != (
        pytest.approx(float(inter), rel=1e-3)
    )


def test_the_terms_of_a_client_with_pairs() -> None:
    """Its inter terms are a sum over modalities, its intra term one mean over both."""
    payload = {"global_img": unit(PUBLIC, DIM, 1), "global_txt": unit(PUBLIC, DIM, 2)}
    rows = torch.tensor([0, 5, 6, 39])
    scene = Scene()
    context = scene.context(4)
    part: Any = context.model.module.get_submodule("pairs").eval()
    assert context.public is not None
    with torch.no_grad():
        x, y = part.images(context.public.inputs(rows)), part.texts(context.public.tokens(rows))
    inter, intra = 0.0, 0.0
    for rep, own, other in ((x, "global_img", "global_txt"), (y, "global_txt", "global_img")):
        inter += float(F.cross_entropy(rep @ payload[other].T / 0.5, rows))
        positive = (rep * payload[own][rows]).sum(1) / 0.5
        intra += float(F.softplus(2 - positive).mean()) / 2
    found = regulariser(scene, 4, payload, rows)
    assert float(found) == pytest.approx(inter + intra, rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"regulariser": "distance"}])
def test_no_gradient_reaches_what_is_constant(options: dict[str, Any]) -> None:
    scene = Scene(client=options)
    payload = {
        "global_img": unit(PUBLIC, DIM, 1).requires_grad_(),
        "global_txt": unit(PUBLIC, DIM, 2).requires_grad_(),
    }
    before = {k: v.detach().clone() for k, v in payload.items()}
    given = {k: v.detach() for k, v in payload.items()}
    loss = regulariser(scene, 0, given, torch.arange(8))
    part: Any = scene.worker.model.module.get_submodule("image")
    found = torch.autograd.grad(loss, list(part.parameters()), allow_unused=True)
    named = dict(zip((n for n, _ in part.named_parameters()), found, strict=True))
    assert {n for n, g in named.items() if g is None} == {"head.weight", "head.bias"}
    assert all(bool(g.any()) for n, g in named.items() if g is not None and "bias" in n)
    scene.train(0, given)
    assert all(given[k].equal(before[k]) for k in given)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"intra": False},
        {"inter": False},
        {"regulariser": "distance"},
        {"lcr_mode": "joint"},
    ],
)
def test_two_epochs_by_hand(options: dict[str, Any]) -> None:
    """Steps of plain SGD on all private, then on all public samples; jointly they are one step.

    gamma weighs a single term too, and what came before is from before the first epoch.
    """
    fixed = {"epochs": 2, "batch_size": 512, "public_batch_size": PUBLIC, "momentum": 0.0}
    scene = Scene(client={"optimiser": "sgd", "lr": 0.5, "gamma": 0.7, **fixed, **options})
    payload = {"global_img": unit(PUBLIC, DIM, 1), "global_txt": unit(PUBLIC, DIM, 2)}
    scene.train(0, payload)
    kept = scene.states[0]["model"]
    context, view = scene.context(0), scene.data(0).train
    context.model.load(scene.initial)
    part: Any = context.model.module.get_submodule("image").train()
    assert context.public is not None
    inputs = context.public.inputs()
    previous = part.images(inputs).detach()

    def task() -> Tensor:
        return F.cross_entropy(part.head(part.image(view.inputs())), view.labels())

    def contrast() -> Tensor:
        x = part.images(inputs)
        if options.get("regulariser") == "distance":
            return 0.7 * (x - payload["global_img"]).square().mean()
        logits = x @ payload["global_txt"].T / 0.5
        inter = (logits.exp().sum(1).log() - logits.diagonal()).mean()
        p, n = ((x * rep).sum(1) / 0.5 for rep in (payload["global_img"], previous))
        intra = -(p.exp() / (p.exp() + n.exp())).log().mean()
        return 0.7 * (options.get("inter", True) * inter + options.get("intra", True) * intra)

    def step(loss: Tensor) -> None:
        parameters = list(part.parameters())
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    parameter -= 0.5 * gradient

    for _ in range(2):
        if options.get("lcr_mode") == "joint":
            step(task() + contrast())
        else:
            step(task())
            step(contrast())
    for name, tensor in part.state_dict().items():
        torch.testing.assert_close(kept[f"image.{name}"], tensor, rtol=1e-4, atol=1e-5)


def test_joint_batches_go_round_in_an_order_of_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    from clients.creamfl import Regularised

    def rows(round: int) -> list[int]:
        scene = Scene(client={"lcr_mode": "joint", "batch_size": 1})
        data, context = scene.data(0), scene.context(0, round)
        draw = torch.Generator().manual_seed(0)
        task = Regularised(scene.client.config, {}, data, draw, context, scene.payload(0))
        seen: list[int] = []

        def noted(batch: Tensor) -> Tensor:
            seen.extend(batch.tolist())
            return torch.zeros(())

        monkeypatch.setattr(task, "regulariser", noted)
        task.joint_epoch()
        return seen

    first = rows(1)
    assert len(first) >= 2 * PUBLIC
    once, again = first[:PUBLIC], first[PUBLIC : 2 * PUBLIC]
    assert sorted(once) == sorted(again) == list(range(PUBLIC))
    assert once != again
    assert rows(1) == first
    assert rows(2)[:PUBLIC] != once


def test_joint_steps_are_one_a_private_batch() -> None:
    scene = Scene(client={"lcr_mode": "joint"})
    scene.train(0)
    batches = -(-len(scene.data(0).train) // 8)
    assert set(scene.states[0]["optimiser"]["steps"].values()) == {batches}


def test_scores_of_the_margin_classifier_are_of_what_was_trained() -> None:
    """Weights >= 0 and no bias, as the head's is never trained; and in evaluation mode."""
    scene = Scene(model=batch_normed(), client={"classifier": "margin"})
    scene.train(0)
    state, data, context = scene.states[0], scene.data(0), scene.context(0)
    found = scene.client.evaluate(scene.payload(0), state, data, context)
    context.model.load(state["model"])
    part: Any = context.model.module.get_submodule("image").eval()
    with torch.no_grad():
        logits = part.features(data.test.inputs()) @ part.head.weight.clamp_min(0).T
    y = data.test.labels()
    assert found["personal/loss"] == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)
    assert found["personal/accuracy"] == float((logits.argmax(1) == y).double().mean())
    other = F.cross_entropy(part.head(part.features(data.test.inputs())), y)
    assert found["personal/loss"] != pytest.approx(float(other.detach()), rel=1e-3)


def test_the_margin_loss_by_hand() -> None:
    from clients._modality_task import margin_loss

    head = torch.nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, -3.0], [0.0, 2.0]]))
    features, labels = torch.tensor([[1.0, 1.0]]), torch.tensor([1])
    # W clamped is [[1, 0], [0, 2]]: logits (1, 2 - 4); W W^T = diag(1, 4).
    own = F.cross_entropy(torch.tensor([[1.0, -2.0]]), labels)
    apart = F.cross_entropy(torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 1]))
    assert float(margin_loss(head, features, labels).detach()) == pytest.approx(
        float(own + 0.5 * apart), rel=1e-6
    )
