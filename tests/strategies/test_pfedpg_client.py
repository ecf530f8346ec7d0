"""pFedPG's client: what it trains, what it keeps, what it is scored with, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")

import fedsim
from fedsim.errors import InputError
from tests.support.pfedpg_scene import MODEL, K, L, player, train
from tests.support.runs import tiny


def test_messages_are_prompts_alone(tmp_path: Path) -> None:
    run = fedsim.run(tiny(strategy={"name": "pfedpg"}, model=MODEL), out=tmp_path)
    # With the prompts a client is told the number of the round.
    for name, size in (("bytes_up", 4.0 * K * L), ("bytes_down", 4.0 * K * L + 8)):
        assert set(run.clients[run.clients["name"] == name]["value"]) == {size}
    assert run.arrays() == {}
    names = set(run.clients[run.clients["split"] == "test"]["name"])
    assert {"personal/accuracy", "personal-generated/accuracy"} <= names


def test_only_the_head_stays_and_heads_differ() -> None:
    scene = player()
    prompts = torch.zeros(K, L)
    before = scene.worker.model.frozen_digest()
    one, first = train(scene, prompts, 0)
    two, _ = train(scene, prompts, 1)
    assert set(one) == {"head"}
    assert set(one["head"]) == {"head.weight", "head.bias"}
    assert not one["head"].flat.equal(two["head"].flat)
    assert set(first.tensors) == {"prompts"}
    assert scene.worker.model.frozen_digest() == before
    # The next round begins with the server's prompts and the own head.
    scene.client.start({"prompts": prompts + 1}, one, scene.context(0))
    held = scene.worker.model.params()
    assert held["body.prompts"].equal(prompts + 1)
    assert held["head.weight"].equal(one["head"]["head.weight"])


def test_local_training_is_sgd_on_prompts_and_head() -> None:
    scene = player(lr=0.1, momentum=0.9, weight_decay=0.01, epochs=2, batch_size=32)
    prompts = torch.randn(K, L, generator=torch.Generator().manual_seed(0))
    state, update = train(scene, prompts, 2)
    module = scene.module(scene.initial.merged({"body.prompts": prompts}))
    module.body.backbone.requires_grad_(False)
    chosen = [module.body.prompts, *module.head.parameters()]
    optimizer = torch.optim.SGD(chosen, lr=0.1, momentum=0.9, weight_decay=0.01)
    for x, y in scene.batches(2, client=2):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    moved = module.body.prompts.detach() - prompts
    torch.testing.assert_close(update.tensors["prompts"], moved, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state["head"]["head.weight"], module.head.weight.detach())


def test_prompts_and_head_are_what_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = player()
    fits: list[Any] = []
    monkeypatch.setattr(scene.client, "after_step", fits.append)
    train(scene, torch.zeros(K, L), 0)
    assert set(fits[0].names) == {"body.prompts", "head.weight", "head.bias"}
    backbone = scene.worker.model.module.body.backbone  # type: ignore[union-attr]
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())


def test_without_rate_and_decay_nothing_moves() -> None:
    scene = player(lr=1e-30, weight_decay=0.0)  # 0 is refused; this is lost in rounding
    prompts = torch.randn(K, L, generator=torch.Generator().manual_seed(0))
    _, update = train(scene, prompts, 0)
    assert not update.tensors["prompts"].any()


def test_adaptation_is_not_kept() -> None:
    scene = player(adapt_epochs=3, lr=0.1)
    prompts = torch.zeros(K, L)
    state, _ = train(scene, prompts, 0)
    kept = copy.deepcopy(state["head"].flat)
    found = scene.client.evaluate({"prompts": prompts}, state, scene.data(), scene.context())
    assert found["personal/loss"] != pytest.approx(found["personal-generated/loss"], abs=1e-4)
    assert state["head"].flat.equal(kept)
    still = player(adapt_epochs=0)
    found = still.client.evaluate({"prompts": prompts}, state, still.data(), still.context())
    assert found["personal/loss"] == found["personal-generated/loss"]


@pytest.mark.parametrize(("options", "epochs"), [({}, 2), ({"adapt_epochs": 3}, 3)])
def test_scores_with_the_servers_prompts_and_after_another_local_round(
    options: dict[str, Any], epochs: int
) -> None:
    """By a loop of torch's own over the client's *training* samples, from prompts and head."""
    scene = player(epochs=2, batch_size=16, lr=0.1, momentum=0.9, weight_decay=0.01, **options)
    prompts = torch.randn(K, L, generator=torch.Generator().manual_seed(0))
    state, _ = train(scene, prompts, 3)
    found = scene.client.evaluate({"prompts": prompts}, state, scene.data(3), scene.context(3))
    start = scene.initial.merged(state["head"]).merged({"body.prompts": prompts})
    module: Any = scene.module(start)
    test, learnt = scene.data(3).test, scene.data(3).train

    def measured() -> tuple[float, float]:
        with torch.no_grad():
            logits, labels = module(test.inputs()), test.labels()
        right = (logits.argmax(1) == labels).double().mean()
        return float(F.cross_entropy(logits, labels)), float(right)

    served = measured()
    chosen = [module.body.prompts, *module.head.parameters()]
    optimizer = torch.optim.SGD(chosen, lr=0.1, momentum=0.9, weight_decay=0.01)
    for x, y in learnt.batches(16, fedsim.rng.torch_generator(0, "client/adapt", 1, 3), epochs):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    for name, (loss, accuracy) in {"personal-generated": served, "personal": measured()}.items():
        assert found[f"{name}/loss"] == pytest.approx(loss, rel=1e-4)
        assert found[f"{name}/accuracy"] == pytest.approx(accuracy)
    assert found["personal/loss"] < found["personal-generated/loss"] - 0.01


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": {"name": "mlp"}}, "needs a model with shallow prompts"),
        ({"model": {**MODEL, "prompts": 0}}, "needs a model with shallow prompts"),
        ({"model": {**MODEL, "deep": True}}, "needs a model with shallow prompts"),
        ({"strategy": {"name": "pfedpg", "lr": 0.0}}, "lr must be > 0"),
        ({"strategy": {"name": "pfedpg", "dim": 0}}, "dim must be >= 1"),
        ({"strategy": {"name": "pfedpg", "momentum": 1.0}}, r"momentum must be in \[0, 1\)"),
        ({"strategy": {"name": "pfedpg", "clip_norm": 0.0}}, "clip_norm must be > 0"),
        ({"model": {**MODEL, "weights": "/nowhere"}}, "there is no folder /nowhere"),
        ({"model": {**MODEL, "weights": "emoji-vit"}}, r"width must be that of emoji-vit \(128\)"),
        ({"model": {**MODEL, "patch": 3}}, r"multiple of the patch \(3\), got 8"),
        ({"client": {"adapt_epochs": -1}}, "adapt_epochs must be >= 0"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    settings = {"strategy": {"name": "pfedpg"}, "model": MODEL, **changes}
    with pytest.raises(InputError, match=text):
        fedsim.run(tiny(**settings), out=tmp_path)
    assert not list(tmp_path.iterdir())
