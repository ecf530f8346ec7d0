"""Recurrent text classifier: a bidirectional GRU (Cho et al. 2014, arXiv:1406.1078) on words."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fedsim.data.dataset import Card
from fedsim.data.tokens import END
from fedsim.errors import check
from fedsim.models.blocks.body_head import BodyHead, check_texts
from fedsim.models.pretrained.word_vectors import start_from


class _Recurrent(nn.Module):
    """States over the words of each text, (batch, L) int64 to (batch, 2 hidden).

    A text without words gives the state after one end token, whose vector is zero.
    """

    def __init__(
        self, vocabulary: int, width: int, hidden: int, pool: Literal["mean", "last"]
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=END)
        self.gru = nn.GRU(width, hidden, batch_first=True, bidirectional=True)
        self.pool = pool

    def forward(self, tokens: Tensor) -> Tensor:
        lengths = (tokens != END).sum(1).clamp_min(1)
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, last = self.gru(packed)
        if self.pool == "last":
            return torch.cat([last[0], last[1]], dim=1)
        padded, _ = pad_packed_sequence(states, batch_first=True)  # zeros after the end
        mean: Tensor = padded.sum(1) / lengths.unsqueeze(1)
        return mean


def text_gru(
    input_shape: tuple[int, int],
    num_classes: int,
    card: Card | None = None,
    /,
    *,
    width: int = 64,
    hidden: int = 64,
    pool: Literal["mean", "last"] = "mean",
    vectors: str | None = None,
) -> nn.Module:
    """A text classifier: word vectors of `width`, a GRU of `hidden` units in each direction.

    `input_shape` is (L, V): texts of L tokens of a vocabulary of V. `body` maps int64 (batch, L) to
    (batch, 2 hidden): the mean of the states over the words, or the last state of each direction.
    Padding after a text's end changes nothing. `vectors` is a file in the text format of GloVe or
    word2vec with the initial vectors, `width` wide, of the words that it has.

    Raises:
        InputError: an option out of range, vectors that are missing or damaged, or a data set that
            is not of texts.
    """
    check_texts("text-gru", input_shape)
    check(width >= 1, "width must be >= 1", width)
    check(hidden >= 1, "hidden must be >= 1", hidden)
    check(pool in ("mean", "last"), "pool must be 'mean' or 'last'", pool)
    body = _Recurrent(input_shape[1], width, hidden, pool)
    start_from(body.embedding.weight, vectors, card)
    return BodyHead(body, 2 * hidden, num_classes)
