"""FedBN: BatchNorm stays with the clients, all else is shared (Li et al. 2021, arXiv:2102.07623,
Algorithm 1).

    client k: w_k <- local SGD from (w, own BatchNorm), send all but BatchNorm
    server:   w <- sum_k n_k w_k / sum_k n_k, of what was sent
"""

from __future__ import annotations

from collections.abc import Callable

from fedsim.params import Params
from fedsim.params.filters import batch_norm, check_batch_norm
from fedsim.strategy import ServerContext
from strategies.fedavg import FedAvg, State


class FedBN(FedAvg):
    """Weighted mean of everything but BatchNorm's scales, shifts and statistics."""

    client = "personal-sgd"

    def local(self, ctx: ServerContext) -> Callable[[str], bool]:
        """Return the test for the tensors that stay with the clients."""
        return batch_norm(ctx.model.module)

    def check(self, params: Params, ctx: ServerContext) -> None:
        check_batch_norm(params, self.local(ctx), f"strategy {type(self).__name__.lower()!r}")

    def init(self, params: Params, ctx: ServerContext) -> State:
        local = self.local(ctx)
        return State(params.only(lambda name: not local(name)))
