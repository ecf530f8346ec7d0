"""Clients of one kind with towers of several architectures: who has which, and what is shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from fedsim.errors import InputError
from fedsim.models.image_text import in_encoder
from fedsim.params.filters import under
from tests.support.pairs import DIM, PUBLIC, Scene, alike, small
from tests.support.runs import assert_same, events, tiny

WIDE = {"name": "cnn", "channels": [5], "hidden": 9}
BAG = {"name": "text", "width": 3, "hidden": 5}
PARTS = {0: "image", 1: "image2", 2: "text", 3: "text", 4: "pairs", 5: "pairs2"}
"""The clients of `mixed` and the part of the model that each has: in turn, by number."""


def mixed() -> dict[str, Any]:
    """Return the model of `small` with two architectures for clients with images and pairs."""
    model = small()["model"]
    return {
        **model,
        "image": [model["image"], WIDE],
        "pairs_image": [model["pairs_image"], WIDE],
        "pairs_text": [model["pairs_text"], BAG],
    }


def test_each_client_trains_and_keeps_its_own_part() -> None:
    scene = Scene(model=mixed())
    for client, part in PARTS.items():
        update = scene.train(client)
        images = 0 if part == "text" else PUBLIC
        texts = 0 if part.startswith("image") else PUBLIC
        assert update.tensors["local_img"].shape == (images, DIM)
        assert update.tensors["local_txt"].shape == (texts, DIM)
        kept = scene.states[client]["model"]
        assert set(kept) == {n for n in scene.initial if n.startswith(f"{part}.")}
        assert not kept.flat.equal(scene.initial.only(under((part,))).flat)
    hidden = scene.states[1]["model"]["image2.image.project.weight"].shape
    assert hidden == (DIM, 9)


def test_a_clients_score_is_of_its_own_part() -> None:
    scene = Scene(model=mixed())
    for client in (0, 1):
        scene.train(client)
        context, data = scene.context(client), scene.data(client)
        found = scene.client.evaluate({}, scene.states[client], data, context)
        context.model.load(scene.states[client]["model"])
        part: Any = context.model.module.get_submodule(PARTS[client]).eval()
        with torch.no_grad():
            logits = part.head(part.image(data.test.inputs()))
        right = (logits.argmax(1) == data.test.labels()).double().mean()
        assert found["personal/accuracy"] == float(right)


def test_feddf_averages_clients_of_one_architecture() -> None:
    """Clients 0 and 2 have the first of two, client 1 the second; three with images in all."""
    model = {**small()["model"], "image": [small()["model"]["image"], WIDE]}
    partition = {
        **small()["partition"], "within": {"name": "modality", "images": 3, "texts": 2, "pairs": 1}
    }  # fmt: skip
    still = {"name": "feddf", "kd_weight": 1e-9, "optimiser": "sgd", "lr": 1e-9}
    scene = Scene(model=model, partition=partition, strategy=still)
    updates = [scene.train(c) for c in (0, 1, 2)]
    for update, weight in zip(updates, (1.0, 5.0, 3.0), strict=True):
        update.weight = weight
    state, metrics = scene.strategy.aggregate(scene.strategy.state, updates)
    first, wide, third = (u.tensors["encoder"] for u in updates)
    mean = (first + third * 3.0) / 4.0
    for part, expected in (("image", mean), ("image2", wide)):
        found = state.model.only(in_encoder(part)).flat
        torch.testing.assert_close(found, expected.flat, rtol=0, atol=1e-6)
    assert (metrics["clients_image"], metrics["clients_image2"]) == (2, 1)


def test_towers_that_are_averaged_must_be_alike(tmp_path: Path) -> None:
    base, same = small(strategy={"name": "multimodal-fedavg"}), alike()
    model = {**same, "image": [same["image"], WIDE]}
    with pytest.raises(InputError, match=r"model\.image \(image2\) must be as model\.server_image"):
        fedsim.run(tiny(**{**base, "model": model}), out=tmp_path)
    model = {**same, "image": [same["image"], same["image"]]}
    assert events(fedsim.run(tiny(**{**base, "model": model}), out=tmp_path)) == []


@pytest.mark.ray
@pytest.mark.parametrize("strategy", ["creamfl", "feddf"])
def test_serial_and_ray_give_the_same_bits(strategy: str, tmp_path: Path) -> None:
    settings = tiny(**small(model=mixed(), strategy={"name": strategy}))
    serial = fedsim.run(settings, out=tmp_path / "serial")
    assert events(serial) == []
    engine = {"name": "ray", "workers": 2}
    assert_same(fedsim.run({**settings, "engine": engine}, out=tmp_path / "ray"), serial)
    assert serial.model().kinds["pairs"] == ["pairs", "pairs2"]
