"""FedBABU's client: trains the body, and fine-tunes before it is evaluated (arXiv:2106.06042,
Algorithm 1 and section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedsim import rng as streams
from fedsim.client import ClientContext, Tree
from fedsim.config.ranges import NonNegativeInt
from fedsim.data.views import ClientData
from fedsim.evaluate.metric_names import named_scores
from fedsim.evaluate.scoring import score
from fedsim.params import Params
from fedsim.params.filters import in_body, in_head
from fedsim.training.local_sgd import Fit, LocalSGD


class FedBABU(LocalSGD):
    """Local SGD on the body. ``personal/...`` is scored after fine-tuning, which is not kept."""

    @dataclass(frozen=True)
    class Config(LocalSGD.Config):
        finetune: Literal["head", "body", "all"] = "head"  # what is trained before evaluation
        finetune_epochs: NonNegativeInt = 5  # epochs of it

    def trainable(self, name: str) -> bool:
        return in_body(name)

    def start(self, payload: Tree, state: Any, ctx: ClientContext) -> None:
        ctx.model.load(_whole(payload, ctx))

    def update(self, fit: Fit) -> Tree:
        return {"model": fit.ctx.model.params().only(in_body)}

    def evaluate(
        self, payload: Tree, state: Any, data: ClientData, ctx: ClientContext
    ) -> Mapping[str, float]:
        whole = _whole(payload, ctx)
        metrics = dict(super().evaluate({**payload, "model": whole}, state, data, ctx))
        if len(data.test) == 0 or len(data.train) == 0:
            return metrics
        ctx.model.load(whole)
        if self.config.finetune_epochs > 0:
            rng = streams.torch_generator(ctx.seed, "client/finetune", ctx.round, ctx.client_id)
            parts = {"head": in_head, "body": in_body, "all": lambda name: True}
            self.fit(
                payload,
                state,
                data.train,
                rng,
                ctx,
                epochs=self.config.finetune_epochs,
                trainable=parts[self.config.finetune],
            )
        return metrics | named_scores("personal", score(ctx.model.module, data.test))


def _whole(payload: Tree, ctx: ClientContext) -> Params:
    return ctx.initial.merged(payload["model"])
