"""Local SGD where a part of the model travels and the rest stays with the client.

The payload's model says which part that is: a strategy keeps and sends the `Params` of some names
only (`Params.only`), and whatever it does not name is the client's own, kept in its state.

    w <- initial weights, overwritten by the client's own part and the payload's;  local SGD
    send the tensors that the payload named;  keep the others
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedsim import rng as streams
from fedsim.client import ClientContext, Tree
from fedsim.config.ranges import NonNegativeInt
from fedsim.data.views import ClientData
from fedsim.evaluate.metric_names import named_scores
from fedsim.evaluate.scoring import score
from fedsim.params import Params
from fedsim.training.local_sgd import Fit, LocalSGD

State = dict[str, Params]


class PersonalSGD(LocalSGD):
    """Local SGD that keeps what does not travel; its personal model is both parts together.

    A client's own part starts from the experiment's initial weights. With `adapt_epochs` also
    ``personal-adapted/...`` is scored: the personal model after so many further epochs on all that
    is trained, which are not kept.
    """

    stateful = True
    personal = True

    @dataclass(frozen=True)
    class Config(LocalSGD.Config):
        adapt_epochs: NonNegativeInt = 0  # before a second personal evaluation

    def init_state(self, ctx: ClientContext) -> State:
        return {}

    def start(self, payload: Tree, state: State, ctx: ClientContext) -> None:
        ctx.model.load(self.personal_model(payload, state, ctx))

    def update(self, fit: Fit) -> Tree:
        travels = set(fit.payload["model"])
        return {"model": fit.ctx.model.params().only(lambda name: name in travels)}

    def keep(self, fit: Fit) -> State:
        travels = set(fit.payload["model"])
        return {"own": fit.ctx.model.params().only(lambda name: name not in travels)}

    def personal_model(self, payload: Tree, state: State, ctx: ClientContext) -> Params:
        model = ctx.initial
        for part in (*state.values(), payload["model"]):
            model = model.merged(part)
        return model

    def evaluate(
        self, payload: Tree, state: State, data: ClientData, ctx: ClientContext
    ) -> Mapping[str, float]:
        metrics = dict(super().evaluate(payload, state, data, ctx))
        epochs = self.config.adapt_epochs
        if epochs == 0 or len(data.test) == 0 or len(data.train) == 0:
            return metrics
        self.start(payload, state, ctx)
        rng = streams.torch_generator(ctx.seed, "client/adapt", ctx.round, ctx.client_id)
        self.fit(payload, state, data.train, rng, ctx, epochs=epochs)
        return metrics | named_scores("personal-adapted", score(ctx.model.module, data.test))
