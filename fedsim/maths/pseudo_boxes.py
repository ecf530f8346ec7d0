"""Boxes that a teacher found, as targets for a student (Xu et al. 2023, Efficient Teacher,
arXiv:2302.07577, section 3.2: the pseudo label assigner).

With the score p = o q, o the objectness and q the probability of the class:

    p >= high          reliable: teaches class, place and, as a real box does, objectness
    low <= p < high    uncertain: its objectness is to be o; teaches its place if o >= sure
    p < low            background
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.maths.detection_loss import Targets


def pseudo_targets(
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor,
    objectness: Tensor,
    low: float,
    high: float,
    sure: float = 0.99,
) -> Targets:
    """Return targets of boxes (n, K, 4) with labels, scores p and objectness o, each (n, K).

    The label of a row without a box is -1.
    """
    there = (labels >= 0) & (scores >= low)
    reliable = there & (scores >= high)
    soft = torch.where(reliable, -1.0, objectness)
    return Targets(
        boxes,
        torch.where(there, labels, -1),
        classify=reliable,
        regress=reliable | (there & (objectness >= sure)),
        soft=soft,
    )
