"""Local SGD where a part of the model travels and the rest stays with the client.

The payload's model says which part that is: a strategy keeps and sends the `Params` of some names
only (`Params.only`), and whatever it does not name is the client's own, kept in its state.

    w <- initial weights, overwritten by the client's own part and the payload's;  local SGD
    send the tensors that the payload named;  keep the others
"""

from __future__ import annotations

from fedsim.client import ClientContext, Tree
from fedsim.local_sgd import Fit, LocalSGD
from fedsim.params import Params

State = dict[str, Params]


class PersonalSGD(LocalSGD):
    """Local SGD that keeps what does not travel; its personal model is both parts together.

    A client's own part starts from the experiment's initial weights.
    """

    stateful = True
    personal = True

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
