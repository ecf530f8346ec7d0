"""FedLoGe: one shared body, a generic head and a personal one (Xiao et al. 2024, ICLR,
arXiv:2401.08977).

    once      S <- sparse ETF of the seed, known to all and sent by nobody
    round t   client k trains on z = f_theta(x), sg being the stop of gradients:
                  theta by CE(S z),  psi by CE(psi sg(z)),  phi_k by CE(phi_k sg(z))
              theta, psi <- sum_k n_k (theta_k, psi_k) / sum_k n_k;  phi_k stays with client k
    generic   psi'_c = scale psi_c / |psi_c|
    personal  phi'_kc = psi_c |phi_kc|, its logits added to those of phi_k

psi is the model's head, so what travels is a whole model. Realignment needs no data, and changes
no training: it is applied wherever a model is scored. S has no bias, whereas the authors' code
leaves a random one in. With `backbone: auxiliary` psi trains the body in place of S: FedAvg,
with the same heads and realignment on top of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fedsim.client import Tree
from fedsim.config.ranges import CheckedConfig, Positive, ProperFraction
from fedsim.maths.etf import check_etf, sparse_etf
from fedsim.maths.heads import BIAS, WEIGHT, RealignBias, check_head, realigned
from fedsim.params import Params
from fedsim.strategy import ServerContext
from strategies.fedavg import FedAvg, State


class FedLoGe(FedAvg):
    """Weighted mean of body and auxiliary head; the generic model has its rows realigned."""

    sends = frozenset({"model", "etf", "realign"})

    @dataclass(frozen=True)
    class Config(CheckedConfig):
        beta: ProperFraction = 0.6  # share of zeros in S; 0 is the dense simplex ETF
        gamma: Positive = 0.1  # row norm of S; small is slow at first, 1 serves some 100 rounds
        realign_scale: Positive = 1.7  # row norm of psi'; matters against the bias alone
        realign_bias: RealignBias = "keep"  # of psi', or "drop"
        paper_schedule: bool = False  # build S as the authors' code: 10,000 steps, no rescaling
        backbone: Literal["etf", "auxiliary"] = "etf"  # the head that trains the body: S or psi
        score_etf: bool = False  # also score S z, as generic-etf

    def check(self, params: Params, ctx: ServerContext) -> None:
        check_head(params, ctx.num_classes, "fedloge")
        dim = params[WEIGHT].shape[1]
        check_etf(ctx.num_classes, dim, self.config.beta, self.config.gamma)

    def init(self, params: Params, ctx: ServerContext) -> State:
        self.check(params, ctx)
        return State(params)

    def configure(self, state: State, round: int, cohort: Sequence[int]) -> Tree:
        c = self.config
        return {
            "model": state.model,
            "etf": {
                "beta": c.beta,
                "gamma": c.gamma,
                "paper_schedule": c.paper_schedule,
                "backbone": c.backbone,
            },
            "realign": {"scale": c.realign_scale, "bias": c.realign_bias},
        }

    def generic(self, state: State) -> Params:
        c = self.config
        return state.model.merged(realigned(state.model, c.realign_scale, c.realign_bias))

    def scored(self, state: State) -> Mapping[str, Params]:
        models = {"generic": self.generic(state), "generic-before": state.model}
        if self.config.score_etf:
            models["generic-etf"] = self._with_etf(state.model)
        return models

    def _with_etf(self, model: Params) -> Params:
        assert self.ctx is not None
        c = self.config
        rows = sparse_etf(
            *model[WEIGHT].shape,
            beta=c.beta,
            gamma=c.gamma,
            seed=self.ctx.seed,
            paper_schedule=c.paper_schedule,
        )
        return model.merged({WEIGHT: rows, BIAS: torch.zeros_like(model[BIAS])})
