"""Recalls by hand and by chance, ties, captions, folds, and what shards add up to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_hex
from torch import Tensor, nn

from fedsim.data.dataset import Card, Dataset, Split
from fedsim.data.views import View
from fedsim.evaluate.retrieval import (
    GREEN,
    Embedded,
    Retrieval,
    best_ranks,
    first_rows,
    nearest,
    retrieval_figure,
)
from fedsim.evaluate.scoring import score


def embedded(
    images: Tensor, texts: Tensor, group: list[int] | np.ndarray, fold: int = 1000, **ids: Any
) -> Embedded:
    n = np.arange(len(images))
    return Embedded(images, texts, np.asarray(group), ids.get("image", n), ids.get("text", n), fold)


def unit(rows: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator), dim=1)


def test_perfect_embeddings_recall_everything() -> None:
    x = unit(50, 16, 0)
    found = embedded(x, x, np.arange(50)).metrics()
    assert {found[f"recall@{k}/{way}"] for k in (1, 5, 10) for way in ("i2t", "t2i")} == {1.0}
    assert found["recall_sum"] == 2.0


def test_ranks_by_hand() -> None:
    """Three images on the axes; text 0 is right, text 1 nearest to image 2, text 2 halfway."""
    images = torch.eye(3)
    texts = F.normalize(torch.tensor([[1.0, 0.1, 0.0], [0.0, 0.5, 1.0], [0.6, 0.5, 0.4]]), dim=1)
    group = torch.arange(3)
    assert best_ranks(texts, images, group, group).tolist() == [0, 1, 2]
    # Columns of the texts: image 0: text 0 first; 1: text 2 is nearer; 2: text 1 is nearer.
    assert best_ranks(images, texts, group, group).tolist() == [0, 1, 1]
    found = embedded(images, texts, [0, 1, 2]).metrics()
    assert found["recall@1/t2i"] == pytest.approx(1 / 3)
    assert found["recall@1/i2t"] == pytest.approx(1 / 3)
    assert found["recall@5/i2t"] == 1.0
    assert found["recall_sum"] == pytest.approx(2 / 3)


def test_the_best_of_several_captions_counts() -> None:
    """Two images, each repeated for two captions; one of them is far off."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    images, texts = torch.stack([a, a, b, b]), torch.stack([a, -a, b, a])
    ids = {"image": np.array([7, 7, 9, 9])}
    found = embedded(images, texts, [0, 0, 1, 1], **ids).metrics()
    # Image a: its caption and the stray one of b tie, and ties count against the model.
    assert found["recall@1/i2t"] == 0.5
    # Captions: a right, -a nearer to b (0 against -1), b right, the stray one wrong.
    assert found["recall@1/t2i"] == 0.5
    assert first_rows(np.array([0, 0, 1, 1]), ids["image"]).tolist() == [0, 2]


def test_collapsed_embeddings_recall_nothing() -> None:
    same = unit(1, 8, 0).expand(20, 8)
    found = embedded(same, same, np.arange(20)).metrics()
    assert found["recall@10/i2t"] == 0.0
    assert found["recall_sum"] == 0.0


def test_what_is_not_a_number_recalls_nothing() -> None:
    x = unit(20, 8, 0)
    broken = torch.full_like(x, torch.nan)
    found = embedded(broken, broken, np.arange(20)).metrics()
    assert {value for name, value in found.items() if name.startswith("recall")} == {0.0}
    some = x.clone()
    some[3] = torch.nan
    # Text 3 finds nothing, and images cannot tell their text from it.
    found = embedded(x, some, np.arange(20)).metrics()
    assert (found["recall@1/t2i"], found["recall@1/i2t"]) == (0.95, 0.0)
    assert found["recall@5/i2t"] == 0.95


def test_the_order_of_samples_does_not_matter() -> None:
    x, y = unit(60, 6, 0), F.normalize(unit(60, 6, 0) + 0.4 * unit(60, 6, 1), dim=1)
    before = embedded(x, y, np.arange(60)).metrics()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    after = embedded(x[order], y[order], np.arange(60)).metrics()
    assert before == pytest.approx(after)
    assert before["recall@1/i2t"] <= before["recall@5/i2t"] <= before["recall@10/i2t"]
    assert 0.2 < before["recall@1/i2t"] < 1.0


@pytest.mark.slow
def test_chance_among_five_thousand_images_and_their_captions() -> None:
    """1/5000 of captions find their image; 5/25000 of images find one of their captions."""
    found: dict[str, float] = {}
    for seed in range(2):
        images = unit(5000, 16, seed).repeat_interleave(5, 0)
        group = np.repeat(np.arange(5000), 5)
        tally = embedded(images, unit(25000, 16, seed + 9), group, image=group)
        for name, value in tally.metrics().items():
            found[name] = found.get(name, 0.0) + value / 2
    # 50,000 captions and 10,000 images: 10 and 2 hits expected, 10 times that at 10.
    assert 2 / 50_000 <= found["recall@1/t2i"] <= 22 / 50_000
    assert found["recall@1/i2t"] <= 9 / 10_000
    assert found["recall@10/t2i"] == pytest.approx(10 / 5000, rel=0.4)
    assert found["recall@10/i2t"] == pytest.approx(10 * 5 / 25_000, rel=0.6)


def test_folds_are_runs_of_images_with_their_captions() -> None:
    """Captions that match the image of another fold are wrong among all and right in folds."""
    eye = torch.eye(2)
    images = torch.cat([eye, eye]).repeat_interleave(2, 0)
    texts = images.clone()
    group = np.repeat(np.arange(4), 2)
    found = embedded(images, texts, group, 2, image=group, text=np.arange(8) % 2).metrics()
    assert found["recall@1/i2t"] == 0.0  # each ties with the image of the other fold
    assert found["recall@1/i2t/folds"] == found["recall@1/t2i/folds"] == 1.0
    assert found["recall_sum"] == 2.0
    whole = embedded(images, texts, group, 4, image=group, text=np.arange(8) % 2).metrics()
    assert not [name for name in whole if name.endswith("folds")]


def test_images_that_fill_no_fold_are_in_none() -> None:
    """Two folds whose images have each other's text; the fifth image alone would be right."""
    images = torch.eye(5)
    found = embedded(images, images[[1, 0, 3, 2, 4]], np.arange(5), 2).metrics()
    assert found["recall@1/i2t/folds"] == found["recall@1/t2i/folds"] == 0.0
    assert found["recall@1/i2t"] == 0.2


CARD = Card(
    "t", "s", "l", ("a",), (1, 2, 2), (0.0,), (1.0,), "d", kind="image-text", text_shape=(2, 9)
)


class Pixels(nn.Module):
    """Images by their pixels, texts by a table."""

    scorer = Retrieval(1000)

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def images(self, x: Tensor) -> Tensor:
        return F.normalize(x.flatten(1), dim=1)

    def texts(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.table(tokens).sum(1), dim=1)


def pairs(n: int, **columns: np.ndarray) -> Split:
    generator = np.random.default_rng(0)
    x = generator.integers(1, 255, (n, 2, 2, 1)).astype(np.uint8)
    tokens = generator.integers(2, 9, (n, 2)).astype(np.int32)
    return Split(x, np.zeros(n, np.int64), {"tokens": tokens, **columns})


def test_shards_add_up() -> None:
    split, module = pairs(30, group=np.repeat(np.arange(15), 2)), Pixels()
    scorer = module.scorer
    whole = scorer.tally(module, View(split, np.arange(30), CARD))
    cut = [scorer.tally(module, View(split, np.arange(a, a + 10), CARD)) for a in (0, 10, 20)]
    assert (cut[0] + cut[1] + cut[2]).metrics() == whole.metrics()
    assert score(module, View(split, np.arange(30), CARD)) == whole.metrics()
    assert whole.balanced() is None
    assert whole.by_shots([np.array([0])]) == {}


def test_equal_images_and_texts_of_a_group_are_one() -> None:
    split = pairs(6, group=np.array([0, 0, 1, 1, 2, 2]))
    split.x[1], split.extra["tokens"][3] = split.x[0], split.extra["tokens"][2]
    split.x[5] = split.x[0]  # of another group: another image
    found = Retrieval().tally(Pixels(), View(split, np.arange(6), CARD))
    assert first_rows(found.group, found.image).tolist() == [0, 2, 3, 4, 5]
    assert first_rows(found.group, found.text).tolist() == [0, 1, 2, 4, 5]


def test_without_groups_each_sample_is_one() -> None:
    found = Retrieval().tally(Pixels(), View(pairs(5), np.array([3, 1]), CARD))
    assert found.group.tolist() == [3, 1]


def test_no_samples_have_no_score() -> None:
    empty = Retrieval().tally(Pixels(), View(pairs(3), np.array([], np.int64), CARD))
    with pytest.raises(ValueError, match="no samples"):
        empty.metrics()


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_it_was(training: bool) -> None:
    module = Pixels().train(training)
    Retrieval().tally(module, View(pairs(4), np.arange(4), CARD))
    assert module.training is training


def test_the_picture_shows_the_nearest() -> None:
    images = torch.eye(4)
    texts = F.normalize(torch.tensor([[0.1, 0.3, 0.2, 0.9]]), dim=1).expand(4, 4)
    found = embedded(images, texts, np.arange(4))
    assert nearest(found, 0, "t2i").tolist() == [3, 1, 2, 0]
    split = pairs(7)
    words = ("", "<unk>", *"abcdefg")
    torch.manual_seed(0)
    module = Pixels()
    figure = retrieval_figure(Retrieval(), module, Dataset("d", split, split, CARD, None, words))
    assert len(figure.axes) == 2 * 4 * 6
    tally = Retrieval().tally(module, View(split, np.arange(7), CARD))
    # Four of seven samples, evenly spread: right answers are framed in green, others in red.
    shown = [nearest(tally, q, way) == q for way in ("t2i", "i2t") for q in (1, 2, 3, 4)]
    frames = [to_hex(axes.spines["left"].get_edgecolor()) for axes in figure.axes]
    found = [frame == GREEN for i, frame in enumerate(frames) if i % 6]
    assert found == np.concatenate(shown).tolist()
    assert True in found
