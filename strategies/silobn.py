"""SiloBN: BatchNorm's statistics stay with the clients, its scales and shifts are shared
(Andreux et al. 2020, arXiv:2008.07424).

    client k: w_k <- local SGD from (w, own statistics), send all but the statistics
    server:   w <- sum_k n_k w_k / sum_k n_k, of what was sent
"""

from __future__ import annotations

from collections.abc import Callable

from fedsim.params.filters import batch_norm
from fedsim.strategy import ServerContext
from strategies.fedbn import FedBN


class SiloBN(FedBN):
    """Weighted mean of everything but BatchNorm's running statistics."""

    client = "personal-sgd"

    def local(self, ctx: ServerContext) -> Callable[[str], bool]:
        return batch_norm(ctx.model.module, statistics_only=True)
