"""Realignment of the row norms of linear classifiers on a shared body.

    global (Eq. 6)   psi'_c = scale psi_c / |psi_c|        removes class frequency from a head
    local  (Eq. 7)   phi'_kc = psi_c |phi_kc|              inserts a client's frequencies

for each class c: under imbalance the norm of a trained row follows the frequency of its class
(GLA-FR of FedLoGe, arXiv:2401.08977). Needs no data; arguments are not changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from fedsim.errors import InputError

WEIGHT, BIAS = "head.weight", "head.bias"

RealignBias = Literal["keep", "drop"]


def check_head(model: Mapping[str, Tensor], num_classes: int, method: str) -> None:
    """Raise `InputError` unless the model has the linear classifier that `method` needs."""
    named = WEIGHT in model and BIAS in model
    if not named or model[WEIGHT].dim() != 2 or len(model[WEIGHT]) != num_classes:
        raise InputError(
            f"strategy {method!r} needs a model with a linear layer named 'head' of {num_classes} "
            f"rows and a bias behind its 'body'; this one ends in {', '.join(list(model)[-2:])}"
        )


def row_norms(weight: Tensor) -> Tensor:
    """Return the norm of each class's row, (C,) of (C, d)."""
    return torch.linalg.vector_norm(weight, dim=1)


def realign_rows(weight: Tensor, scale: float = 1.7) -> Tensor:
    """Return the rows (C, d) scaled to norm `scale` (Eq. 6); rows of zeros stay zeros."""
    norms = row_norms(weight)[:, None]
    return torch.where(norms > 0, weight * (scale / norms), weight)


def realign_to(weight: Tensor, local: Tensor) -> Tensor:
    """Return the rows of `weight` (C, d) times the norms of the rows of `local` (C, d) (Eq. 7)."""
    return weight * row_norms(local)[:, None]


def realigned(
    model: Mapping[str, Tensor], scale: float = 1.7, bias: RealignBias = "keep"
) -> dict[str, Tensor]:
    """Return the head's tensors of a trained model after Eq. 6, by name.

    `model` holds the tensors of any method's final model, such as ``run.arrays()``; ``{**model,
    **realigned(model)}`` is the realigned model. The scale matters only relative to the bias, which
    is kept or set to zero.

    Raises:
        KeyError: a model without a head.
    """
    offset = model[BIAS].clone() if bias == "keep" else torch.zeros_like(model[BIAS])
    return {WEIGHT: realign_rows(model[WEIGHT], scale), BIAS: offset}
