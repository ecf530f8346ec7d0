"""What the frozen part of a model makes of samples is computed once, and no method knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.data.dataset import Card, Split
from fedsim.data.views import ClientData, View
from fedsim.engine.frozen_features import make_stem
from fedsim.models.blocks.body_head import BodyHead
from fedsim.params import FlatModel
from tests.support.runs import assert_same, tiny

CARD = Card("t", "s", "l", ("a", "b"), (1, 2, 2), (0.5,), (0.25,), "d")


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fixed(x.flatten(1)) if x.dim() == 4 else x


class Stemmed(BodyHead):
    """A frozen linear body that counts what it is asked to compute."""

    frozen = ("body.fixed",)
    stem_bytes = 2**20

    def __init__(self) -> None:
        super().__init__(Body(), 3, 2)
        self.seen = 0

    def stem(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.seen += len(x)
        return self.body(x)

    def stem_identity(self) -> str:
        return "linear"


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))


def split(seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (6, 2, 2, 1), np.uint8)
    return Split(x, rng.integers(0, 2, 6))


def test_views_give_what_the_stem_makes() -> None:
    torch.manual_seed(0)
    model, data = FlatModel(Stemmed()), split()
    features = make_stem(model, data, CARD)
    module: Any = model.module
    plain = View(data, np.array([4, 1, 3]), CARD)
    view = View(data, np.array([4, 1, 3]), CARD, features=features)
    expected = nn.functional.linear(
        plain.inputs().flatten(1), module.body.fixed.weight, module.body.fixed.bias
    )
    torch.testing.assert_close(view.inputs(), expected)
    assert view.inputs().equal(view.inputs())
    assert module(view.inputs()).shape == (3, 2)
    torch.testing.assert_close(module(view.inputs()), module(plain.inputs()))
    for (x, y), (image, label) in zip(view.batches(2), plain.batches(2), strict=True):
        torch.testing.assert_close(x, module.body(image))
        assert y.equal(label)
    # One row tells the shape, three are asked for; another process computes none of them.
    assert module.seen == 4
    again = FlatModel(Stemmed())
    again.module.load_state_dict(module.state_dict())
    View(data, np.array([1, 3]), CARD, features=make_stem(again, data, CARD)).inputs()
    assert again.module.seen == 1


def test_other_weights_and_other_samples_are_told_apart() -> None:
    torch.manual_seed(0)
    model, rows = FlatModel(Stemmed()), np.arange(6)
    first = make_stem(model, split(), CARD)(rows)  # type: ignore[misc]
    other = make_stem(model, split(1), CARD)(rows)  # type: ignore[misc]
    assert not first.equal(other)
    with torch.no_grad():
        model.module.body.fixed.weight.mul_(2)  # type: ignore[union-attr, operator]
    assert not make_stem(model, split(), CARD)(rows).equal(first)  # type: ignore[misc]


def test_a_model_without_a_stem_reads_images() -> None:
    assert make_stem(FlatModel(nn.Linear(4, 2)), split(), CARD) is None
    model = FlatModel(Stemmed())
    model.module.stem_bytes = 0  # type: ignore[assignment]
    assert make_stem(model, split(), CARD) is None


def test_training_on_changed_images_and_validation_on_cached_ones() -> None:
    from fedsim.data.augment import Augmentation
    from fedsim.data.partition import ClientIndices

    model, data = FlatModel(Stemmed()), split()
    features = make_stem(model, data, CARD)
    rows = np.arange(6, dtype=np.int32)
    indices = ClientIndices(rows[:4], rows[4:5], rows[5:])
    client = ClientData(data, indices, CARD, augment=Augmentation(flip=True), features=features)
    generator = torch.Generator().manual_seed(0)
    assert [x.dim() for x, _ in client.train.batches(2, generator)] == [4, 4]
    assert client.validation.inputs().shape == (1, 3)
    assert client.test.inputs().shape == (1, 3)


@pytest.mark.parametrize("prompts", [0, 3])
def test_a_run_with_a_cache_equals_one_without(prompts: int, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = {"name": "vit", "width": 16, "heads": 2, "layers": 2, "prompts": prompts}
    plain = fedsim.run(tiny(model=model), out=tmp_path / "plain")
    cached = fedsim.run(tiny(model={**model, "cache": 0.01}), out=tmp_path / "cached")
    files = list((tmp_path / "cache" / "features").glob("*.f32"))
    assert len(files) == 2  # the training and the test split
    for name, value in plain.arrays().items():
        torch.testing.assert_close(cached.arrays()[name], value, rtol=1e-4, atol=1e-5)
    again = fedsim.run(tiny(model={**model, "cache": 0.01}), out=tmp_path / "again")
    assert_same(again, cached)
