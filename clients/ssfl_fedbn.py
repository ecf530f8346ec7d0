"""FedBN's client on unlabelled images (arXiv:2102.07623; see strategies/ssfl_fedbn)."""

from __future__ import annotations

from typing import Any

from clients.fedsto import FedSTO
from fedsim.client import ClientContext, Tree
from fedsim.params import Params
from fedsim.params.filters import in_backbone
from fedsim.training.local_sgd import Fit


class SSFLFedBN(FedSTO):
    """FedSTO's client with BatchNorm of its own, of student and teacher alike."""

    stateful = True
    personal = True
    needs = FedSTO.needs | {"first"}

    def init_state(self, ctx: ClientContext) -> Tree:
        return {}

    def start(self, payload: Tree, state: Any, ctx: ClientContext) -> None:
        super().start(payload, state, ctx)
        ctx.model.load(state.get("own", payload["first"]))

    def frozen(self, payload: Tree) -> set[str]:
        frozen = super().frozen(payload)
        if frozen:  # neck and head, whose BatchNorm is not in the payload's part
            frozen |= {name for name in payload["first"] if not in_backbone(name)}
        return frozen

    def keep(self, fit: Fit) -> Tree:
        own = set(fit.payload["first"])
        return {"own": self.sender(fit).params().only(own.__contains__)}

    def personal_model(self, payload: Tree, state: Any, ctx: ClientContext) -> Params:
        own = state.get("own", payload["first"])
        return ctx.initial.merged(payload["model"]).merged(payload["fixed"]).merged(own)
