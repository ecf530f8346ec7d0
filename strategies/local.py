"""Local: every client trains alone and nothing travels; the lower end of any comparison."""

from __future__ import annotations

from fedsim.params import Params
from fedsim.strategy import ServerContext
from strategies.fedavg import FedAvg, State


class Local(FedAvg):
    """No federation: each client keeps its whole model."""

    client = "personal-sgd"

    def init(self, params: Params, ctx: ServerContext) -> State:
        return State(params.only(lambda name: False))
