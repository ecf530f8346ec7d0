"""Bag-of-words text classifier: mean or maximum of word vectors, then one hidden layer."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.data.dataset import Card
from fedsim.data.tokens import END
from fedsim.errors import check
from fedsim.models.blocks.body_head import BodyHead, check_texts
from fedsim.models.pretrained.word_vectors import start_from


class _Pooled(nn.Module):
    """Pooled word vectors of each text, (batch, L) int64 to (batch, width); zeros without words."""

    def __init__(self, vocabulary: int, width: int, pool: Literal["mean", "max"]) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(vocabulary, width, mode="mean", padding_idx=END)
        self.pool = pool

    def forward(self, tokens: Tensor) -> Tensor:
        if self.pool == "mean":  # a third of the time of a masked sum
            pooled: Tensor = self.embedding(tokens)
            return pooled
        # Not the bag's own maximum, whose gradient is not reproducible on a GPU.
        vectors = F.embedding(tokens, self.embedding.weight, padding_idx=END)
        ended = (tokens == END).unsqueeze(2)
        highest = vectors.masked_fill(ended, -torch.inf).max(1).values
        return highest.masked_fill(ended.all(1), 0)


def text(
    input_shape: tuple[int, int],
    num_classes: int,
    card: Card | None = None,
    /,
    *,
    width: int = 64,
    hidden: int = 64,
    pool: Literal["mean", "max"] = "mean",
    vectors: str | None = None,
) -> nn.Module:
    """A text classifier: word vectors of `width`, their mean or maximum, one hidden layer.

    `input_shape` is (L, V): texts of L tokens of a vocabulary of V. Token 0, which ends a text, is
    ignored, so padding changes nothing. `body` maps int64 (batch, L) to (batch, hidden). `vectors`
    is a file in the text format of GloVe or word2vec with the initial vectors, `width` wide, of the
    words that it has.

    Raises:
        InputError: an option out of range, vectors that are missing or damaged, or a data set that
            is not of texts.
    """
    check_texts("text", input_shape)
    check(width >= 1, "width must be >= 1", width)
    check(hidden >= 1, "hidden must be >= 1", hidden)
    check(pool in ("mean", "max"), "pool must be 'mean' or 'max'", pool)
    pooled = _Pooled(input_shape[1], width, pool)
    start_from(pooled.embedding.weight, vectors, card)
    body = nn.Sequential(pooled, nn.Linear(width, hidden), nn.ReLU())
    return BodyHead(body, hidden, num_classes)
