"""Linear classifiers on the features of a shared body, and the realignment of their row norms.

    global (Eq. 6)   psi'_c = scale psi_c / |psi_c|        takes class frequency out of a head
    local  (Eq. 7)   phi'_kc = psi_c |phi_kc|              puts a client's own frequencies in

for each class c: under imbalance a trained row's norm follows its class's frequency (GLA-FR of
FedLoGe, arXiv:2401.08977). No data is needed, and nothing is changed in place.
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
    """Return the rows (C, d) at norm `scale` (Eq. 6); a row of zeros stays one."""
    norms = row_norms(weight)[:, None]
    return torch.where(norms > 0, weight * (scale / norms), weight)


def realign_to(weight: Tensor, own: Tensor) -> Tensor:
    """Return the rows of `weight` (C, d) times the norms of the rows of `own` (C, d) (Eq. 7)."""
    return weight * row_norms(own)[:, None]


def realigned(
    model: Mapping[str, Tensor], scale: float = 1.7, bias: RealignBias = "keep"
) -> dict[str, Tensor]:
    """Return the generic classifier of a trained model after Eq. 6, by the names of its tensors.

    `model` are the tensors of any method's final model, such as ``run.arrays()``; then
    ``{**model, **realigned(model)}`` is the realigned one. The scale matters against the bias
    alone, which is kept or set to zero.

    Raises:
        KeyError: a model without a head.
    """
    kept = model[BIAS].clone() if bias == "keep" else torch.zeros_like(model[BIAS])
    return {WEIGHT: realign_rows(model[WEIGHT], scale), BIAS: kept}
