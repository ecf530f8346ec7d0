"""LG-FedAvg: every client has layers near the input of its own, the upper ones are shared (Liang et
al. 2020, arXiv:2001.01523, Algorithm 1).

    client k: (W_l,k, W_g) <- local SGD from (W_l,k, W_g), keep W_l,k, send W_g
    server:   W_g <- sum_k n_k W_g,k / sum_k n_k over the clients of the round

The paper starts from a model that FedAvg trained for a while; here all start from the initial
weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.errors import check
from fedsim.params import Params
from fedsim.params.filters import under
from fedsim.strategy import ServerContext
from strategies.fedavg import FedAvg, State


class LGFedAvg(FedAvg):
    """Weighted mean of the clients' upper layers; the layers below stay with the clients."""

    client = "personal-sgd"

    @dataclass(frozen=True)
    class Config:
        shared: tuple[str, ...] = ("head",)  # layers that travel, e.g. head or body.3, by name

    def init(self, params: Params, ctx: ServerContext) -> State:
        for layer in self.config.shared:
            known = sorted({name.rpartition(".")[0] for name in params})
            check(
                any(map(under((layer,)), params)),
                f"strategy.shared must name layers of the model; it has {', '.join(known)}",
                layer,
            )
        return State(params.only(under(self.config.shared)))
