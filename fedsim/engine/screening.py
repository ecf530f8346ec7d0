"""Screening of updates."""

from __future__ import annotations

import torch

from fedsim.params.trees import Tree


def first_non_finite(tree: Tree) -> str:
    from fedsim.flower.records import named_tensors

    for name, tensor in named_tensors(tree).items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            return f"{bad} of {tensor.numel()} elements of {name!r} are NaN or infinite"
    return "a number is NaN or infinite"
