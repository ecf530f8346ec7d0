"""FedOpt over semi-supervised clients: adaptive steps along the clients' mean change (Reddi et al.
2021, arXiv:2003.00295, Algorithm 2), with FedSTO's warm-up and server training.

    d = sum_k n_k (w_k - w) / sum_k n_k;    m <- b1 m + (1 - b1) d
    v <- b2 v + (1 - b2) d^2                       adam
    v <- v - (1 - b2) d^2 sign(v - d^2)            yogi
    v <- v + d^2                                   adagrad
    w <- w + eta m / (sqrt(v) + tau);    then the server trains w on its labelled images

v starts at tau^2. BatchNorm's statistics are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from fedsim.client import Update
from fedsim.config.ranges import Positive, ProperFraction
from fedsim.errors import check
from fedsim.params import Params
from fedsim.strategy import ServerContext
from strategies import fedsto
from strategies.fedsto import FedSTO, Ortho


@dataclass
class State(fedsto.State):
    m: torch.Tensor  # of the trained parameters, in the order of the flat vector
    v: torch.Tensor


class SSFLFedOpt(FedSTO):
    """Adam, Yogi or Adagrad on the clients' mean change."""

    name = "ssfl-fedopt"

    @dataclass(frozen=True)
    class Config(FedSTO.Config):
        stage1_rounds: int = 0  # must be 0: the moments are of the whole model
        ortho: Ortho = "none"  # as in fedsto
        optimizer: Literal["adam", "yogi", "adagrad"] = "adam"
        eta: Positive = 0.01  # server step
        beta_1: ProperFraction = 0.9
        beta_2: ProperFraction = 0.99
        tau: Positive = 1e-3  # large ones make the step that of plain averaging

        def __post_init__(self) -> None:
            super().__post_init__()
            check(self.stage1_rounds == 0, "stage1_rounds must be 0", self.stage1_rounds)

    def init(self, params: Params, ctx: ServerContext) -> State:
        zeros = torch.zeros(params.layout.parameter_size)
        return State(params, 0, zeros, zeros + self.config.tau**2)

    def join(self, state: Any, updates: Sequence[Update]) -> State:
        c, size = self.config, len(state.m)
        mean = super().join(state, updates).model
        d = (mean.flat - state.model.flat)[:size]
        m = c.beta_1 * state.m + (1 - c.beta_1) * d
        square = d.square()
        if c.optimizer == "adam":
            v = c.beta_2 * state.v + (1 - c.beta_2) * square
        elif c.optimizer == "yogi":
            v = state.v - (1 - c.beta_2) * square * torch.sign(state.v - square)
        else:
            v = state.v + square
        flat = mean.flat.clone()
        flat[:size] = state.model.flat[:size] + c.eta * m / (v.sqrt() + c.tau)
        return replace(state, model=mean.replace(flat), m=m, v=v)
