"""Classification losses for skewed labels; each is the mean over a batch.

z are logits (batch, classes), y labels (batch,), n the client's class sizes (classes,). A class
without samples has no share in a softmax that n corrects.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Name = Literal["cross-entropy", "balanced-softmax", "focal", "fedlc"]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log softmax(z)_y."""
    return F.cross_entropy(logits, labels)


def balanced_softmax(logits: Tensor, labels: Tensor, sizes: Tensor, tau: float = 1.0) -> Tensor:
    """Return -log softmax(z + tau log n)_y (Ren et al. 2020, arXiv:2007.10740, Eq. 4)."""
    return F.cross_entropy(logits + _absent_out(tau * sizes.log(), sizes), labels)


def calibrated(logits: Tensor, labels: Tensor, sizes: Tensor, tau: float = 1.0) -> Tensor:
    """Return -log softmax(z - tau n^(-1/4))_y (FedLC, Zhang et al. 2022, arXiv:2209.00189, Eq. 8).

    The sum in the softmax runs over all classes, the label's own included, so the loss is >= 0.
    """
    return F.cross_entropy(logits + _absent_out(-tau * sizes.pow(-0.25), sizes), labels)


def focal(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Return -(1 - p_y)^gamma log p_y with p = softmax(z) (Lin et al. 2017, arXiv:1708.02002)."""
    log_p = F.log_softmax(logits, dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
    return -((1 - log_p.exp()).clamp_min(0).pow(gamma) * log_p).mean()


def _absent_out(margins: Tensor, sizes: Tensor) -> Tensor:
    return margins.masked_fill(sizes == 0, float("-inf"))
