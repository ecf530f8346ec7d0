"""CreamFL with a transformer as the server's text tower: trained, frozen, and on any engine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import fedsim
from tests.support.bert import save_bert
from tests.support.pairs import Scene, small
from tests.support.runs import assert_same, tiny


def encoder(folder: Path, **options: Any) -> dict[str, Any]:
    """Return the model of `small` with an encoder as the server's text tower."""
    tower = {"name": "text-encoder", "weights": str(folder), "pool": "mean", **options}
    return {**small()["model"], "server_text": tower}


def digest(module: torch.nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def test_a_frozen_encoder_stays_as_it_is_and_is_nowhere_written(tmp_path: Path) -> None:
    save_bert(tmp_path)
    scene = Scene(model=encoder(tmp_path, frozen=True))
    body = scene.ctx.model.module.get_submodule("server.text.body")
    before, first = digest(body), scene.strategy.state.texts
    scene.round()
    assert digest(body) == before
    assert not scene.strategy.state.texts.equal(first)  # the map behind it is trained
    state = scene.strategy.state
    for params in (state.model, state.ahead, state.moments["first"]):
        inside = [name for name in params if name.startswith("server.text")]
        assert inside == ["server.text.project.weight", "server.text.project.bias"]
    update = scene.train(2, round=2)
    assert set(update.tensors) == {"local_img", "local_txt"}


def test_an_encoder_is_trained_where_it_is_not_frozen(tmp_path: Path) -> None:
    save_bert(tmp_path)
    scene = Scene(model=encoder(tmp_path))
    body = scene.ctx.model.module.get_submodule("server.text.body")
    before = {name: p.detach().clone() for name, p in body.named_parameters()}
    scene.round()
    assert all(not p.equal(before[name]) for name, p in body.named_parameters()
               if "embeddings" not in name)  # fmt: skip
    assert "server.text.body.model.embeddings.word_embeddings.weight" in scene.strategy.state.model


@pytest.mark.parametrize("frozen", [False, True])
def test_checkpoints_hold_what_is_trained(frozen: bool, tmp_path: Path) -> None:
    saved = save_bert(tmp_path / "bert")
    model = encoder(tmp_path / "bert", frozen=frozen)
    run = fedsim.run(tiny(**small(model=model)), out=tmp_path)
    inside = {name for name in run.arrays() if name.startswith("server.text.body")}
    assert bool(inside) != frozen
    assert not any(name.endswith("position_ids") for name in inside)
    files = [path for path in (run.path / "checkpoint").rglob("*") if path.is_file()]
    kept = any(b"server.text.body" in path.read_bytes() for path in files)
    assert kept != frozen
    body: Any = run.model().get_submodule("server.text.body.model")
    states = saved.state_dict()
    same = [tensor.equal(states[name]) for name, tensor in body.state_dict().items()]
    assert all(same) == frozen


@pytest.mark.ray
def test_serial_and_ray_give_the_same_bits(tmp_path: Path) -> None:
    """Clients have encoders too: of pairs with weights, of texts with words of their own."""
    save_bert(tmp_path / "bert")
    own = {"name": "text-encoder", "width": 8, "layers": 1, "dropout": 0.1}
    model = {
        **encoder(tmp_path / "bert", dropout=0.1),
        "pairs_text": {"name": "text-encoder", "weights": str(tmp_path / "bert"), "frozen": True},
        "text": own,
    }
    settings = tiny(**small(model=model))
    serial = fedsim.run(settings, out=tmp_path / "serial")
    engine = {"name": "ray", "workers": 2}
    assert_same(fedsim.run({**settings, "engine": engine}, out=tmp_path / "ray"), serial)
