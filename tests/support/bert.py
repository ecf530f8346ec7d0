"""A tiny BERT with a WordPiece tokeniser, written as transformers writes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SUB_WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("a", "b", "c", "dog", "play", "##ing", "##s", "it", "'", "s", "number", "scene", ".", "##a"),
)
"""Among them pieces: ``playing`` is ``play ##ing``, ``zebra`` unknown."""


def save_bert(folder: Path, tokeniser: bool = True, **changes: Any) -> Any:
    """Write a random BERT of width 32 and two layers; return the library's model."""
    import torch
    import transformers

    from fedsim.models.pretrained.transformers import without_bars

    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        "vocab_size": len(SUB_WORDS), "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 80,
    }  # fmt: skip
    torch.manual_seed(5)
    saved = transformers.BertModel(transformers.BertConfig(**{**sizes, **changes})).eval()
    with without_bars():
        saved.save_pretrained(folder)
    if tokeniser:
        (folder / "vocab.txt").write_text("\n".join(SUB_WORDS) + "\n")
    return saved
