"""FedBABU: only the body is trained, under a head that is never changed (Oh et al. 2022,
arXiv:2106.06042, Algorithm 1).

    client k: theta_k <- local SGD on the body, head fixed at its initial value;  send theta_k
    server:   theta <- sum_k n_k theta_k / sum_k n_k
    personal: some epochs on the client's own data from (theta, initial head)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.client import Metrics, Tree, Update
from fedsim.params import Params
from fedsim.params.filters import in_body
from fedsim.strategy import ServerContext, Strategy, mean_update


@dataclass
class State:
    model: Params  # theta, the body
    initial: Params  # the whole model before training; its head is everybody's


class FedBABU(Strategy):
    """Weighted mean of the clients' bodies; the generic model has the initial head."""

    weighted_mean = True

    def init(self, params: Params, ctx: ServerContext) -> State:
        return State(params.only(in_body), params)

    def configure(self, state: State, round: int, cohort: Sequence[int]) -> Tree:
        return {"model": state.model}

    def aggregate(self, state: State, updates: Sequence[Update]) -> tuple[State, Metrics]:
        mean: Params = mean_update(updates)["model"]
        return State(mean, state.initial), {"update_norm": (mean - state.model).norm()}

    def generic(self, state: State) -> Params:
        return state.initial.merged(state.model)
