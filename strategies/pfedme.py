"""pFedMe: personal models as proximal points of the global one (Dinh et al. 2020,
arXiv:2006.08848, Algorithm 1).

    client k, each batch:  theta_k ~ argmin f_k(theta) + lam/2 |theta - w|^2   (K gradient steps)
                           w <- w - eta lam (w - theta_k)
    server:                w <- (1 - beta) w + beta sum_k n_k w_k / sum_k n_k
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.client import Metrics, Update
from fedsim.config.ranges import CheckedConfig, Positive
from fedsim.params import Params
from fedsim.strategy import mean_update
from strategies.fedavg import FedAvg, State


class PFedMe(FedAvg):
    """Moves the global model a share of the way to the mean of the clients'."""

    @dataclass(frozen=True)
    class Config(CheckedConfig):
        beta: Positive = 1.0  # share of the way; 1 takes the mean itself

    def aggregate(self, state: State, updates: Sequence[Update]) -> tuple[State, Metrics]:
        mean: Params = mean_update(updates)["model"]
        step = (mean - state.model) * self.config.beta
        return State(mean if self.config.beta == 1 else state.model + step), {
            "update_norm": step.norm()
        }
