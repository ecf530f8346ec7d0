"""FedPer: the body is shared, each client has a head of its own (Arivazhagan et al. 2019,
arXiv:1912.00818, Algorithms 1 and 2).

    client k: (W_B, W_Pk) <- local SGD from (W_B, W_Pk), keep W_Pk, send W_B
    server:   W_B <- sum_k n_k W_Bk / sum_k n_k over the clients of the round
"""

from __future__ import annotations

from fedsim.params import Params
from fedsim.params.filters import in_body
from fedsim.strategy import ServerContext
from strategies.fedavg import FedAvg, State


class FedPer(FedAvg):
    """Weighted mean of the clients' bodies; heads stay with the clients."""

    client = "personal-sgd"

    def init(self, params: Params, ctx: ServerContext) -> State:
        return State(params.only(in_body))
