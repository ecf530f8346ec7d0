"""FedAvg: federated averaging (McMahan et al. 2017, arXiv:1602.05629, Algorithm 1).

    each round t:  S_t <- random clients,  w_k <- local SGD from w_t on client k
                   w_{t+1} <- sum_{k in S_t} n_k w_k / sum_{k in S_t} n_k

The mean runs over the clients of the round, n_k being their numbers of training samples.
BatchNorm statistics are averaged like parameters; integer buffers keep their maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.client import Metrics, Update
from fedsim.params import Params
from fedsim.strategy import ServerContext, Strategy, mean_update


@dataclass
class State:
    model: Params  # w_t: global weights, fp32


class FedAvg(Strategy):
    """Weighted mean of the clients' models."""

    weighted_mean = True

    def init(self, params: Params, ctx: ServerContext) -> State:
        return State(params)

    def aggregate(self, state: State, updates: Sequence[Update]) -> tuple[State, Metrics]:
        mean: Params = mean_update(updates)["model"]
        return State(mean), {"update_norm": (mean - state.model).norm()}
