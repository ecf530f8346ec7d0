"""pFedPG's client: trains the prompts it is given and a head of its own (arXiv:2308.15367,
Algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedsim import rng as streams
from fedsim.client import ClientContext, Tree
from fedsim.config.ranges import Count, NonNegative, NonNegativeInt, Positive, ProperFraction
from fedsim.data.views import ClientData
from fedsim.evaluate.metric_names import named_scores
from fedsim.evaluate.scoring import score
from fedsim.params import Params
from fedsim.params.filters import in_head
from fedsim.training.local_sgd import Fit, LocalSGD

PROMPTS = "body.prompts"

State = dict[str, Params]


class PFedPG(LocalSGD):
    """Sends how the prompts moved, keeps the head; prompts begin each round as the server's.

    ``personal/...`` is scored with prompts and head after a further local round, which is not
    kept (adapted), ``personal-generated/...`` with the server's prompts and the head as it is.
    """

    stateful = True
    needs = frozenset({"prompts"})
    sends = frozenset({"prompts"})

    @dataclass(frozen=True)
    class Config(LocalSGD.Config):
        epochs: Count = 5
        batch_size: Count = 64
        lr: Positive = 0.25
        momentum: ProperFraction = 0.9  # not stated in the paper; that of the VPT code
        weight_decay: NonNegative = 0.001
        adapt_epochs: NonNegativeInt | None = None  # before personal evaluation; `epochs` if null

    def init_state(self, ctx: ClientContext) -> State:
        return {"head": ctx.initial.only(in_head)}

    def start(self, payload: Tree, state: State, ctx: ClientContext) -> None:
        prompts = {PROMPTS: payload["prompts"]}
        ctx.model.load(ctx.initial.merged(state["head"]).merged(prompts))

    def update(self, fit: Fit) -> Tree:
        return {"prompts": fit.ctx.model.params()[PROMPTS] - fit.payload["prompts"]}

    def keep(self, fit: Fit) -> State:
        return {"head": fit.ctx.model.params().only(in_head)}

    def evaluate(
        self, payload: Tree, state: State, data: ClientData, ctx: ClientContext
    ) -> Mapping[str, float]:
        if len(data.test) == 0:
            return {}
        self.start(payload, state, ctx)
        found = score(ctx.model.module, data.test)
        generated = named_scores("personal-generated", found)
        epochs = self.config.adapt_epochs
        epochs = self.config.epochs if epochs is None else epochs
        if epochs > 0 and len(data.train) > 0:
            rng = streams.torch_generator(ctx.seed, "client/adapt", ctx.round, ctx.client_id)
            self.fit(payload, state, data.train, rng, ctx, epochs=epochs)
            found = score(ctx.model.module, data.test)
        return {**named_scores("personal", found), **generated}
