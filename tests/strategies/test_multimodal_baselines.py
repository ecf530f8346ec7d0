"""FedAvg and FedIoT of towers, FedDF: whose weights are averaged with whose, and what stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fedsim
from fedsim.client import Update
from fedsim.errors import InputError
from fedsim.models.image_text import in_encoder
from fedsim.params import Params
from tests.support.interruptions import StopAt
from tests.support.pairs import KINDS, PUBLIC, Scene, alike, batch_normed, small
from tests.support.runs import assert_same, events, tiny

TOWERS = {"strategy": {"name": "multimodal-fedavg", "public_epochs": 0}, "model": alike()}
FEDDF = {"strategy": {"name": "feddf"}}


def constant(params: Params, value: float) -> Params:
    return params.replace(torch.full_like(params.flat, value))


def scene(base: dict[str, Any], **strategy: Any) -> Scene:
    """Return a scene of a strategy with further options."""
    return Scene(**{**base, "strategy": {**base["strategy"], **strategy}})


# Towers


def test_clients_get_and_send_the_towers_of_their_modalities() -> None:
    played = scene(TOWERS)
    for client, kind in KINDS.items():
        payload = played.payload(client)
        sent = played.train(client).tensors
        for modality in ("image", "text"):
            has = kind in (modality, "pairs")
            shared = played.strategy.state.model.inside(f"server.{modality}")
            assert set(payload[modality]) == set(sent[modality]) == (set(shared) if has else set())
            if has:
                assert payload[modality].flat.equal(shared.flat)
                assert not sent[modality].flat.equal(shared.flat)


def test_heads_and_scalars_stay_and_towers_are_not_kept() -> None:
    played = scene(TOWERS)
    played.train(0)
    played.train(4)
    assert set(played.states[0]["model"]) == {"image.head.weight", "image.head.bias"}
    assert set(played.states[4]["model"]) == {
        "pairs.scale", "pairs.shift", "pairs.log_temperature"
    }  # fmt: skip
    first = played.states[0]["model"].flat.clone()
    played.train(0, round=2)
    assert not played.states[0]["model"].flat.equal(first)


@pytest.mark.parametrize(("pairs_weight", "expected"), [(1.0, 4.0), (3.0, 56 / 11)])
def test_towers_are_averaged_by_samples_and_pairs_count_more(
    pairs_weight: float, expected: float
) -> None:
    """Image towers of 1 (2 samples) and 6 (3 samples, with pairs); text towers of 6 alone."""
    played = scene(TOWERS, pairs_weight=pairs_weight)
    model = played.strategy.state.model
    towers = {m: model.inside(f"server.{m}") for m in ("image", "text")}
    nothing = model.only(lambda name: False)
    updates = [
        Update({"image": constant(towers["image"], 1.0), "text": nothing}, 2.0, client=0),
        Update(
            {"image": constant(towers["image"], 6.0), "text": constant(towers["text"], 6.0)},
            3.0,
            client=4,
        ),
    ]
    # (2 x 1 + 3 x 6) / 5, and with pairs three times as heavy (2 x 1 + 9 x 6) / 11.
    state, metrics = played.strategy.aggregate(played.strategy.state, updates)
    image = state.model.inside("server.image").flat
    torch.testing.assert_close(image, torch.full_like(image, expected))
    assert set(state.model.inside("server.text").flat.tolist()) == {6.0}
    assert (metrics["clients_image"], metrics["clients_text"]) == (2.0, 1.0)
    for part in ("image", "text", "pairs"):
        assert state.model.inside(part).flat.equal(model.inside(part).flat)


def test_a_modality_that_nobody_sends_stays() -> None:
    played = scene(TOWERS)
    model = played.strategy.state.model
    state, metrics = played.strategy.aggregate(
        played.strategy.state, [played.train(c) for c in (2, 3)]
    )
    assert metrics["clients_image"] == 0.0
    assert state.model.inside("server.image").flat.equal(model.inside("server.image").flat)
    assert not state.model.inside("server.text").flat.equal(model.inside("server.text").flat)


def test_the_server_trains_on_the_public_pairs_after_averaging() -> None:
    """As CreamFL's server does without distillation, if nobody trains."""
    played = scene(TOWERS, public_epochs=1)
    nothing = played.strategy.state.model.only(lambda name: False)
    nobody = [Update({"image": nothing, "text": nothing}, 1.0, client=0)]
    state, metrics = played.strategy.aggregate(played.strategy.state, nobody)
    alone = Scene(model=alike(), strategy={"kd_weight": 0.0})
    expected = alone.strategy.state.ahead
    for name in expected:
        assert state.model[name].equal(expected[name]), name
    assert metrics["server_loss"] > 0
    state, _ = played.strategy.aggregate(state, nobody)
    assert max(state.moments["steps"].values()) == 2 * 3  # batches of 16 among 40 pairs


def test_personal_scores_are_of_the_servers_tower_and_the_own_head() -> None:
    played = scene(TOWERS)
    played.round()
    context, data = played.context(0), played.data(0)
    payload = played.payload(0, 2)
    found = played.client.evaluate(payload, played.states[0], data, context)
    context.model.load(played.states[0]["model"])
    context.model.load(payload["image"].put_under("image.image"))
    part: Any = context.model.module.get_submodule("image").eval()
    with torch.no_grad():
        logits = part.head(part.image(data.test.inputs()))
    y = data.test.labels()
    assert found["personal/accuracy"] == float((logits.argmax(1) == y).double().mean())
    assert found["personal/loss"] == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)


def test_towers_that_differ_are_refused(tmp_path: Path) -> None:
    text = "model.pairs_text must be as model.server_text"
    model = {**alike(), "pairs_text": {"name": "text", "width": 5, "hidden": 8}}
    with pytest.raises(InputError, match=text):
        fedsim.run(tiny(**small(**{**TOWERS, "model": model})), out=tmp_path)
    assert not list(tmp_path.iterdir())


# FedDF


def test_encoders_travel_within_a_kind() -> None:
    played = scene(FEDDF)
    for client, kind in KINDS.items():
        names = {n for n in played.initial if in_encoder(kind)(n)}
        assert set(played.payload(client)["encoder"]) == names
        sent = played.train(client).tensors
        assert set(sent) == {"encoder"}
        assert set(sent["encoder"]) == names
        assert not set(played.states[client]["model"]) & names


def test_a_kinds_encoder_is_its_mean_and_then_nears_the_ensemble() -> None:
    """A kind without clients keeps its encoder until it nears the ensemble."""
    near = scene(FEDDF, kd_weight=1e-9, optimiser="sgd", lr=1e-9)
    updates = [near.train(c) for c in (0, 1)]
    updates[0].weight, updates[1].weight = 1.0, 3.0
    state, metrics = near.strategy.aggregate(near.strategy.state, updates)
    first, second = (u.tensors["encoder"] for u in updates)
    mean = (first + second * 3.0) / 4.0
    found = state.model.only(in_encoder("image"))
    torch.testing.assert_close(found.flat, mean.flat, rtol=0, atol=1e-6)
    assert (metrics["clients_image"], metrics["clients_text"], metrics["clients_pairs"]) == (
        2,
        0,
        0,
    )
    unchanged = near.strategy.state.model.only(in_encoder("text")).flat
    assert state.model.only(in_encoder("text")).flat.equal(unchanged)
    assert "kd_loss/text" not in metrics


def test_the_ensemble_is_the_plain_mean_of_what_clients_represent() -> None:
    """The loss of the first step of distillation, for the kind of one client alone: zero."""
    played = scene(FEDDF, batch_size=PUBLIC, optimiser="sgd", lr=1e-6, kd_weight=0.5)
    update = played.train(0)
    _, metrics = played.strategy.aggregate(played.strategy.state, [update])
    assert metrics["kd_loss/image"] == pytest.approx(0.0, abs=1e-6)
    context = played.context(0)
    context.model.load(played.initial)
    context.model.load(update.tensors["encoder"])
    module: Any = context.model.module.eval()
    assert context.public is not None
    with torch.no_grad():
        target = module.get_submodule("image").images(context.public.inputs())
        context.model.load(played.initial)
        server = module.get_submodule("server").images(context.public.inputs())
    expected = 0.5 * float(F.mse_loss(server, target))
    assert metrics["kd_loss/server"] == pytest.approx(expected, rel=1e-2)


def test_every_client_counts_the_same_in_the_ensemble() -> None:
    """Weights of 1 and 3 are those of the encoder; the target is halfway between the two."""
    played = scene(FEDDF, batch_size=PUBLIC, optimiser="sgd", lr=1e-9, kd_weight=0.5)
    updates = [played.train(c) for c in (0, 1)]
    updates[0].weight, updates[1].weight = 1.0, 3.0
    _, metrics = played.strategy.aggregate(played.strategy.state, updates)
    first, second = (u.tensors["encoder"] for u in updates)
    context = played.context(0)
    assert context.public is not None
    found = []
    for encoder in (first, second, (first + second * 3.0) / 4.0):
        context.model.load(encoder)
        part: Any = context.model.module.get_submodule("image").eval()
        with torch.no_grad():
            found.append(part.images(context.public.inputs()))
    expected = 0.5 * float(F.mse_loss(found[2], (found[0] + found[1]) / 2))
    assert metrics["kd_loss/image"] == pytest.approx(expected, rel=1e-3)


def test_personal_scores_are_of_the_kinds_encoder_and_the_own_head() -> None:
    played = scene(FEDDF)
    played.round()
    context, data = played.context(2), played.data(2)
    payload = played.payload(2, 2)
    found = played.client.evaluate(payload, played.states[2], data, context)
    context.model.load(played.states[2]["model"])
    context.model.load(played.strategy.state.model.only(in_encoder("text")))
    part: Any = context.model.module.get_submodule("text").eval()
    with torch.no_grad():
        logits = part.head(part.text(data.test.tokens()))
    loss = float(F.cross_entropy(logits, data.test.labels()))
    assert found["personal/loss"] == pytest.approx(loss, rel=1e-5)


def test_moments_of_each_part_go_on() -> None:
    """Three batches an epoch; the server has two epochs a round, a kind one."""
    played = scene(FEDDF)
    for round in (1, 2):
        played.round(round=round)
    for name, moments in played.strategy.state.moments.items():
        assert all(key.startswith(f"{name}.") for key in moments["steps"])
        steps = max(moments["steps"].values())
        assert steps == 2 * 3 * (2 if name == "server" else 1)
    assert set(played.strategy.state.moments) == {"server", "image", "text", "pairs"}


def test_pairs_are_represented_in_both_modalities() -> None:
    played = scene(FEDDF)
    metrics = played.round([4, 5])
    assert {n for n in metrics if n.startswith("kd_loss")} == {
        f"kd_loss/{part}" for part in ("server", "image", "text", "pairs")
    }
    context = played.context(4)
    assert context.public is not None
    assert context.public.tokens().shape[0] == PUBLIC


@pytest.mark.parametrize("base", [{"model": batch_normed()}, TOWERS, FEDDF])
def test_a_run_of_three_kinds_goes_on_where_it_stopped(
    base: dict[str, Any], tmp_path: Path
) -> None:
    settings = tiny(**small(**base, rounds=3, participation=4))
    whole = fedsim.run(settings, out=tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(settings, out=tmp_path / "b", progress=StopAt(2))
    assert_same(fedsim.resume(tmp_path / "b/tiny/seed-0"), whole)


@pytest.mark.parametrize("base", [TOWERS, FEDDF])
def test_whole_runs(base: dict[str, Any], tmp_path: Path) -> None:
    run = fedsim.run(tiny(**small(**base)), out=tmp_path)
    assert events(run) == []
    assert {"test/generic/recall_sum", "test/clients/personal/accuracy"} <= set(run.final)


@pytest.mark.parametrize(
    ("base", "options", "text"),
    [
        (TOWERS, {"pairs_weight": 0.0}, "pairs_weight must be > 0"),
        (TOWERS, {"public_epochs": -1}, "public_epochs must be >= 0"),
        (FEDDF, {"kd_weight": 0.0}, "kd_weight must be > 0"),
    ],
)
def test_bad_options(base: dict[str, Any], options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        scene(base, **options)
