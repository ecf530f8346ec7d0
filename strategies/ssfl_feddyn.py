"""FedDyn over semi-supervised clients: objectives are tilted so that all optima agree (Acar et al.
2021, arXiv:2111.04263, Algorithm 1), with FedSTO's warm-up and server training.

    client k: w_k ~ argmin_w L_u(w) - <h_k, w> + a/2 |w - w_t|^2;   h_k <- h_k - a (w_k - w_t)
    server:   h <- h - a / m sum_{k in S} (w_k - w_t);   w <- 1/|S| sum_{k in S} w_k - h / a
              then the server trains w on its labelled images

m is the number of all clients. BatchNorm's statistics are averaged and have no h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedsim.client import Tree, Update
from fedsim.config.ranges import Positive
from fedsim.errors import check
from fedsim.params import Params
from fedsim.strategy import ServerContext
from strategies import fedsto
from strategies.fedsto import FedSTO, Ortho


@dataclass
class State(fedsto.State):
    h: torch.Tensor  # of the trained parameters, in the order of the flat vector


class SSFLFedDyn(FedSTO):
    """Plain mean of the clients' models, moved against their accumulated drift."""

    name = "ssfl-feddyn"
    weighted_mean = False
    sends = FedSTO.sends | {"a"}

    @dataclass(frozen=True)
    class Config(FedSTO.Config):
        stage1_rounds: int = 0  # must be 0: h is of the whole model
        ortho: Ortho = "none"  # as in fedsto
        a: Positive = 0.1  # weight of the regulariser

        def __post_init__(self) -> None:
            super().__post_init__()
            check(self.stage1_rounds == 0, "stage1_rounds must be 0", self.stage1_rounds)

    def init(self, params: Params, ctx: ServerContext) -> State:
        return State(params, 0, torch.zeros(params.layout.parameter_size))

    def configure(self, state: Any, round: int, cohort: Sequence[int]) -> Tree:
        return {**super().configure(state, round, cohort), "a": self.config.a}

    def join(self, state: Any, updates: Sequence[Update]) -> State:
        assert self.ctx is not None
        size, a = len(state.h), self.config.a
        models = torch.stack([u.tensors["model"].flat for u in updates])
        drift = (models - state.model.flat).sum(0)[:size]
        h = state.h - a / self.ctx.num_clients * drift
        flat = models.mean(0)
        flat[:size] -= h / a
        mean = super().join(state, updates).model  # for the integer buffers
        return replace(state, model=mean.replace(flat), h=h)
