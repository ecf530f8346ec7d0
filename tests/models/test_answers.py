"""Questions on frozen towers: what is read, what is trained, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.client import ClientContext
from fedsim.components.build import build_dataset, trained_model
from fedsim.data.dataset import Card, Split
from fedsim.data.views import View
from fedsim.errors import InputError
from fedsim.evaluate.scoring import score
from fedsim.models.answers import answers
from fedsim.models.blocks.nested import TrainedModel
from fedsim.params import FlatModel
from fedsim.training.local_sgd import LocalSGD
from tests.support.pairs import small
from tests.support.runs import events, tiny

CARD = Card(
    "t", "s", "l", ("a", "b"), (1, 2, 2), (0.0,), (1.0,), "d", kind="image-text", text_shape=(3, 9)
)

SMALLER = {"name": "union", "sets": {"a": {"name": "emoji"}}, "size": [16, 16]}


def pairs(n: int) -> View:
    x = np.arange(n * 4, dtype=np.uint8).reshape(n, 2, 2, 1)
    tokens = np.arange(n * 3, dtype=np.int32).reshape(n, 3) % 9
    split = Split(x, np.arange(n, dtype=np.int64) % 2, {"tokens": tokens})
    return View(split, np.arange(n)[::-1], CARD)


@pytest.mark.parametrize("steps", [None, 1, 5])
def test_pairs_are_batches_with_their_tokens(steps: int | None) -> None:
    view = pairs(10)
    plain = list(view.batches(4, torch.Generator().manual_seed(0), 2, steps))
    joined = list(view.batches(4, torch.Generator().manual_seed(0), 2, steps, reads="pairs"))
    assert len(joined) == len(plain) == (steps or 6)
    for (x, y), ((images, tokens), labels) in zip(plain, joined, strict=True):
        assert images.equal(x)
        assert labels.equal(y)
        rows = (x[:, 0, 0, 0] * 255).round().long() // 4
        assert tokens.tolist() == [[(3 * r + j) % 9 for j in range(3)] for r in rows.tolist()]
        assert tokens.dtype == torch.int64


def test_a_model_is_scored_on_what_it_reads() -> None:
    view = pairs(4)

    class Asked(torch.nn.Module):
        reads = "pairs"

        def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            # Class 1 where the first token is odd, which token 3 r is exactly for odd labels.
            odd = (pair[1][:, 0] % 2).float()
            return torch.stack([1 - odd, odd], dim=1)

    expected = np.mean([((3 * r) % 9) % 2 == r % 2 for r in range(4)])
    assert score(Asked(), view)["accuracy"] == expected


def test_the_training_loss_of_pairs_weighs_by_samples() -> None:
    """Batches of 4 and of 1; the mean over five samples is not that over two batches."""

    class Fixed(torch.nn.Module):
        reads = "pairs"

        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(()))

        def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            own = pair[0][:, 0, 0, 0] * 255 / 4  # the sample's row
            return torch.stack([own, torch.zeros_like(own)], dim=1) + 0 * self.w

    model = FlatModel(Fixed())
    device, params = torch.device("cpu"), model.params()
    ctx = ClientContext(0, 1, 0, 1, 2, model, params, device)
    client = LocalSGD(LocalSGD.Config(batch_size=4))
    view, draw = pairs(5), torch.Generator().manual_seed(0)
    _, metrics = client.fit({"model": params}, None, view, draw, ctx)
    # Sample r has the label r mod 2 and the logits (r, 0).
    losses = [math.log(1 + math.exp(r if r % 2 else -r)) for r in range(5)]
    assert metrics["train_loss"] == pytest.approx(sum(losses) / 5, rel=1e-5)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fedsim.run(tiny(**small(rounds=1)), out=tmp_path_factory.mktemp("runs")).path


def asked(towers: Path | str, **changes: Any) -> dict[str, Any]:
    return tiny(
        **{
            "dataset": {"name": "emoji", "vendors": ["noto"], "share": 0.2},
            "partition": {"name": "iid", "clients": 2},
            "model": {"name": "answers", "towers": str(towers), "hidden": 6},
            **changes,
        }
    )


def test_only_the_classifier_is_trained_and_sent(towers: Path, tmp_path: Path) -> None:
    run = fedsim.run(asked(towers), out=tmp_path)
    assert events(run) == []
    assert set(run.arrays()) == {
        "body.hidden.weight", "body.hidden.bias", "head.weight", "head.bias"
    }  # fmt: skip
    module: Any = run.model()
    trained = fedsim.load_run(towers).arrays()
    for name, tensor in module.body.towers.state_dict().items():
        assert tensor.equal(trained[f"server.{name}"]), name
    module.train()
    assert not module.body.towers.training
    assert 0 < run.final["test/generic/accuracy"] < 1


def test_the_product_of_unit_vectors(towers: Path, tmp_path: Path) -> None:
    module: Any = fedsim.run(asked(towers, rounds=1), out=tmp_path).model()
    images, tokens = torch.randn(3, 3, 32, 32), torch.randint(2, 50, (3, 24))
    inside = module.body.towers
    product = inside.images(images) * inside.texts(tokens) * 8
    expected = module.head(torch.relu(module.body.hidden(product)))
    torch.testing.assert_close(module((images, tokens)), expected)


def test_towers_see_images_as_those_that_they_were_trained_on(towers: Path) -> None:
    own = build_dataset(fedsim.load_run(towers).config).card
    other = replace(own, mean=(0.5, 0.1, 0.2), std=(0.25, 2.0, 0.5))
    pixels, tokens = torch.rand(3, 3, 32, 32), torch.randint(2, 50, (3, 24))
    found = []
    for card in (own, other):
        torch.manual_seed(0)
        module = answers(
            own.input_shape, 2, card, towers=TrainedModel(str(towers), trained_model), hidden=6
        ).eval()
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (card.mean, card.std))
        found.append(module(((pixels - mean) / std, tokens)))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model": {"name": "answers", "towers": "nowhere"}}, "nowhere"),
        ({"dataset": {"name": "digits"}}, "needs images with questions"),
        ({"dataset": SMALLER}, r"a run on images of the shape \(3, 16, 16\)"),
    ],
)
def test_what_does_not_fit(
    towers: Path, changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=text):
        fedsim.run(asked(towers, **changes), out=tmp_path)


def test_a_run_of_another_model_is_refused(tmp_path: Path) -> None:
    other = fedsim.run(tiny(rounds=1), out=tmp_path / "other")
    with pytest.raises(InputError, match="must be a run of the model 'image-text'"):
        fedsim.run(asked(other.path), out=tmp_path / "runs")
