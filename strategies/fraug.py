"""FRAug: a shared generator and local networks augment features (Chen et al. 2023, ICCV,
arXiv:2205.14900).

    server:   theta, omega <- sum_k n_k (theta_k, omega_k) / sum_k n_k
              rho_t = exp(gamma (t - T)),  t = 0..T-1
    client k: the steps A, B, C of clients/fraug.py on every batch;  send theta_k, omega_k

theta is the model without what `bn_mode` leaves with the clients, omega the generator. The
networks r_k, prototypes and all data stay with the clients. Defaults are those of the authors'
code where it has one value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fedsim.client import Metrics, Tree, Update
from fedsim.config.ranges import CheckedConfig, Count, NonNegative
from fedsim.maths.heads import WEIGHT, check_head
from fedsim.models.blocks.conditional import generator_network, initial_weights
from fedsim.params import Params
from fedsim.params.filters import batch_norm, check_batch_norm
from fedsim.strategy import ServerContext, Strategy, mean_update


@dataclass
class State:
    model: Params  # theta, of what is shared
    generator: Params  # omega, of what is shared


class FRAug(Strategy):
    """Weighted mean of the models and of the generators."""

    weighted_mean = True
    sends = frozenset({"model", "generator", "rho", "mu"})
    needs = frozenset({"model", "generator"})

    @dataclass(frozen=True)
    class Config(CheckedConfig):
        # What of BatchNorm stays with the clients: its statistics as in the authors' code (SiloBN),
        # all of it as in the paper's words (FedBN), or nothing. Only fedbn demands some.
        bn_mode: Literal["stats_local", "fedbn", "shared"] = "stats_local"
        generator_bn: Literal["shared", "local"] = "shared"  # the generator's own BatchNorm
        z_dim: Count | None = None  # length of the noise; half the features if null
        gamma: NonNegative = 0.01  # speed of the warm-up; 0 has none
        # Weight mu of the synthetic loss: min(0.5, rho), 0.5, or min(0.5, 1 - 1 / (gamma t + 1)).
        warm_up: Literal["exponential", "constant", "inverse"] = "exponential"

    def check(self, params: Params, ctx: ServerContext) -> None:
        check_head(params, ctx.num_classes, "fraug")
        if self.config.bn_mode == "fedbn":
            check_batch_norm(params, self._local(ctx), "strategy 'fraug' with bn_mode 'fedbn'")

    def init(self, params: Params, ctx: ServerContext) -> State:
        self.check(params, ctx)
        local = self._local(ctx)
        dim = params[WEIGHT].shape[1]
        network = generator_network(dim, self.config.z_dim or max(1, dim // 2), ctx.num_classes)
        generator = initial_weights(network, ctx.seed, "fraug/generator")
        if self.config.generator_bn == "local":
            norm = batch_norm(network)
            generator = generator.only(lambda name: not norm(name))
        return State(params.only(lambda name: not local(name)), generator)

    def _local(self, ctx: ServerContext) -> Callable[[str], bool]:
        mode = self.config.bn_mode
        if mode == "shared":
            return lambda name: False
        return batch_norm(ctx.model.module, statistics_only=mode == "stats_local")

    def configure(self, state: State, round: int, cohort: Sequence[int]) -> Tree:
        assert self.ctx is not None
        rho, mu = self.ratios(round, self.ctx.rounds)
        return {"model": state.model, "generator": state.generator, "rho": rho, "mu": mu}

    def ratios(self, round: int, rounds: int) -> tuple[float, float]:
        """Return rho_t and mu_t of a round 1..T."""
        t, c = round - 1, self.config
        rho = math.exp(c.gamma * (t - rounds))
        if c.warm_up == "constant":
            return rho, 0.5
        return rho, min(0.5, rho if c.warm_up == "exponential" else 1 - 1 / (c.gamma * t + 1))

    def aggregate(self, state: State, updates: Sequence[Update]) -> tuple[State, Metrics]:
        mean = mean_update(updates)
        metrics = {
            "update_norm": (mean["model"] - state.model).norm(),
            "generator_update_norm": (mean["generator"] - state.generator).norm(),
        }
        return State(mean["model"], mean["generator"]), metrics
