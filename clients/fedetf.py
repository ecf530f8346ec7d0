"""FedETF's client: the body against a fixed simplex ETF (arXiv:2303.10058).

u = P f_theta(x) + b;  v = u / |u|;  theta, P, b, tau by CE(tau S v + log n_k, y)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fedsim import rng
from fedsim.client import ClientContext, Tree
from fedsim.config.ranges import NonNegativeInt
from fedsim.data.views import ClientData
from fedsim.evaluate.metric_names import named_scores
from fedsim.evaluate.scoring import score
from fedsim.maths.etf import sparse_etf
from fedsim.maths.heads import WEIGHT
from fedsim.params.filters import in_head
from fedsim.training import losses
from fedsim.training.local_sgd import Fit, LocalSGD


class FedETF(LocalSGD):
    """Local SGD on all but the head, which is fixed.

    The generic model's `loss` is that of its linear head on features that are not normalised;
    its accuracy is that of the normalised ones.
    """

    needs = frozenset({"model", "feature", "gamma"})
    sends = frozenset({"model", "feature"})

    @dataclass(frozen=True)
    class Config(LocalSGD.Config):
        normalise: bool = True  # features to norm 1, times the temperature
        loss: losses.Name = "balanced-softmax"  # adds the log of the client's class counts
        finetune_epochs: NonNegativeInt = 5  # of the head before personal scores; 0 leaves them out

    def trainable(self, name: str) -> bool:
        return not in_head(name)

    def extra(self, payload: Tree, state: Any, ctx: ClientContext) -> dict[str, Tensor]:
        feature = payload["feature"].items()
        used = [(n, t) for n, t in feature if n != "temperature" or self.config.normalise]
        return {f"feature.{name}": tensor.to(ctx.device, copy=True) for name, tensor in used}

    def loss(self, fit: Fit, x: Tensor, y: Tensor) -> Tensor:
        named = fit.named()
        module: Any = fit.ctx.model.module
        z = module.body(x)
        if "feature.weight" in named:
            z = F.linear(z, named["feature.weight"], named["feature.bias"])
        if self.config.normalise:
            z = F.normalize(z, dim=1) * named["feature.temperature"]
        s = sparse_etf(
            *fit.payload["model"][WEIGHT].shape,
            beta=0.0,
            gamma=fit.payload["gamma"],
            seed=fit.ctx.seed,
            device=fit.ctx.device,
        )
        return self.criterion(fit, F.linear(z, s), y)

    def update(self, fit: Fit) -> Tree:
        named = fit.named()
        trained = {
            name: named.get(f"feature.{name}", tensor).detach().cpu()
            for name, tensor in fit.payload["feature"].items()
        }
        return {**super().update(fit), "feature": trained}

    def evaluate(
        self, payload: Tree, state: Any, data: ClientData, ctx: ClientContext
    ) -> Mapping[str, float]:
        metrics = dict(super().evaluate(payload, state, data, ctx))
        if not metrics or self.config.finetune_epochs == 0 or len(data.train) == 0:
            return metrics
        generator = rng.torch_generator(ctx.seed, "fedetf/finetune", ctx.round, ctx.client_id)
        c = self.config
        tuned = _Head(
            _Head.Config(
                epochs=c.finetune_epochs, batch_size=c.batch_size, lr=c.lr, momentum=c.momentum
            )
        )
        tuned.start(payload, None, ctx)
        tuned.fit(payload, None, data.train, generator, ctx)
        return metrics | named_scores("personal", score(ctx.model.module, data.test))


class _Head(LocalSGD):
    """Local SGD on the head alone."""

    def trainable(self, name: str) -> bool:
        return in_head(name)
