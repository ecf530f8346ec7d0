"""FedBN over semi-supervised clients: BatchNorm stays with each client, and with the server (Li et
al. 2021, arXiv:2102.07623, Algorithm 1), with FedSTO's stages and server training.

    client k: W_k, W_ema <- (W_s without BatchNorm, own BatchNorm), trained as FedSTO's; send all of
              it but BatchNorm
    server:   W_s <- sum_k n_k W_k / sum_k n_k of what was sent, its own BatchNorm beside it; trains

A client's BatchNorm is at first that of the server's model when it joins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsim.client import Tree
from fedsim.params.filters import batch_norm
from strategies.fedsto import FedSTO


class SSFLFedBN(FedSTO):
    """FedSTO's server, with BatchNorm that does not travel back."""

    name = "ssfl-fedbn"
    sends = FedSTO.sends | {"first"}

    def configure(self, state: Any, round: int, cohort: Sequence[int]) -> Tree:
        assert self.ctx is not None
        own = batch_norm(self.ctx.model.module)
        payload = super().configure(state, round, cohort)
        for part in ("model", "fixed"):
            payload[part] = payload[part].only(lambda name: not own(name))
        return {**payload, "first": state.model.only(own)}
