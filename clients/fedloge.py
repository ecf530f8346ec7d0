"""FedLoGe's client: three classifiers on one forward pass (arXiv:2401.08977).

    for each batch:  z = f_theta(x)
        theta by CE(S z, y);  psi by CE(psi sg(z), y);  phi_k by CE(phi_k sg(z), y)
    send theta and psi, keep phi_k

One summed loss does all three, as the stops of gradients leave each part a single term: the steps
are those of three separate optimisers. `clip_norm` alone, if given, is a bound on all together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim import rng
from fedsim.client import ClientContext, Tree
from fedsim.data.views import ClientData
from fedsim.evaluate.classification import head_scores
from fedsim.maths.etf import sparse_etf
from fedsim.maths.heads import BIAS, WEIGHT, realign_to, realigned
from fedsim.params import Params
from fedsim.training.local_sgd import Fit, LocalSGD

Head = tuple[Tensor, Tensor]
"""Weight (C, d) and bias (C,)."""


class FedLoGe(LocalSGD):
    """Body by the fixed head, auxiliary head for the server, personal head for itself.

    The state is phi_k: ``weight`` (C, d) and ``bias`` (C,), at first uniform in +-1/sqrt(d).
    `train_loss` is the sum of the three losses.
    """

    stateful = True
    personal = True
    needs = frozenset({"model", "etf", "realign"})

    @dataclass(frozen=True)
    class Config(LocalSGD.Config):
        # Logits of the personal model: those of phi'_k, and added to them those of phi_k or psi.
        personal_logits: Literal["realigned", "realigned+local", "realigned+global"] = (
            "realigned+local"
        )
        # Personal models never predict classes of which the client has no sample to train on, or
        # none to be tested on (the authors' code, which tells the model of the test labels).
        mask_absent: Literal["none", "train", "test"] = "none"

    def init_state(self, ctx: ClientContext) -> dict[str, Tensor]:
        generator = rng.torch_generator(ctx.seed, "fedloge/phi", 0, ctx.client_id)
        bound = 1 / math.sqrt(ctx.initial[WEIGHT].shape[1])

        def draw(like: Tensor) -> Tensor:
            return (2 * torch.rand(like.shape, generator=generator) - 1) * bound

        return {"weight": draw(ctx.initial[WEIGHT]), "bias": draw(ctx.initial[BIAS])}

    def extra(
        self, payload: Tree, state: dict[str, Tensor], ctx: ClientContext
    ) -> dict[str, Tensor]:
        return {f"phi.{name}": tensor.to(ctx.device, copy=True) for name, tensor in state.items()}

    def loss(self, fit: Fit, x: Tensor, y: Tensor) -> Tensor:
        module: Any = fit.ctx.model.module
        z = module.body(x)
        stopped = z.detach()
        phi = F.linear(stopped, *fit.parameters[-2:])  # the extra tensors come last
        personal = self.criterion(fit, phi, y)
        if fit.payload["etf"]["backbone"] == "auxiliary":
            return self.criterion(fit, module.head(z), y) + personal
        rows = fixed_head(fit.payload, fit.ctx)
        auxiliary = self.criterion(fit, module.head(stopped), y)
        return self.criterion(fit, F.linear(z, rows), y) + auxiliary + personal

    def keep(self, fit: Fit) -> dict[str, Tensor]:
        weight, bias = (tensor.detach().cpu() for tensor in fit.parameters[-2:])
        return {"weight": weight, "bias": bias}

    def personal_model(self, payload: Tree, state: dict[str, Tensor], ctx: ClientContext) -> Params:
        weight, bias = self.personal_head(payload, state)
        return payload["model"].merged({WEIGHT: weight, BIAS: bias})

    def personal_head(self, payload: Tree, state: dict[str, Tensor]) -> Head:
        """Return the one linear head with the personal model's logits; no class is masked."""
        psi = payload["model"]
        weight, bias = realign_to(psi[WEIGHT], state["weight"]), psi[BIAS]
        if self.config.personal_logits == "realigned+local":
            return weight + state["weight"], bias + state["bias"]
        if self.config.personal_logits == "realigned+global":
            return weight + psi[WEIGHT], bias + psi[BIAS]
        return weight, bias.clone()

    def evaluate(
        self, payload: Tree, state: dict[str, Tensor], data: ClientData, ctx: ClientContext
    ) -> Mapping[str, float]:
        """Return the scores of four heads on the client's own test data.

        generic: psi', personal: phi'_k as `personal_logits` says; and before realignment
        generic-before: psi, personal-before: psi and phi_k, their logits added.
        """
        if len(data.test) == 0:
            return {}
        psi = payload["model"]
        generic = realigned(psi, **payload["realign"])
        both = psi[WEIGHT] + state["weight"], psi[BIAS] + state["bias"]
        heads: dict[str, Head] = {
            "generic": (generic[WEIGHT], generic[BIAS]),
            "generic-before": (psi[WEIGHT], psi[BIAS]),
            "personal": self._masked(self.personal_head(payload, state), data),
            "personal-before": self._masked(both, data),
        }
        ctx.model.load(psi)
        return head_scores(ctx.model.module, heads, data.test)

    def _masked(self, head: Head, data: ClientData) -> Head:
        """Return the head with a logit of -inf for absent classes."""
        if self.config.mask_absent == "none":
            return head
        view = data.train if self.config.mask_absent == "train" else data.test
        weight, bias = head
        absent = torch.bincount(view.labels().cpu(), minlength=len(bias)) == 0
        return weight, bias.masked_fill(absent, -torch.inf)


def fixed_head(payload: Tree, ctx: ClientContext) -> Tensor:
    """Return S, fp32 (C, d), built from the experiment's seed as the server builds it."""
    etf = payload["etf"]
    return sparse_etf(
        *payload["model"][WEIGHT].shape,
        beta=etf["beta"],
        gamma=etf["gamma"],
        seed=ctx.seed,
        paper_schedule=etf["paper_schedule"],
        device=ctx.device,
    )
