"""FedRep's client: head epochs, then body epochs (arXiv:2102.07078, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedsim.client import ClientContext, Tree, Update
from fedsim.config.ranges import Count
from fedsim.data.views import ClientData
from fedsim.params.filters import in_body, in_head
from fedsim.training.personal_sgd import PersonalSGD, State


class FedRep(PersonalSGD):
    """Local SGD in two phases; `epochs` (or `steps`) are those of the body."""

    @dataclass(frozen=True)
    class Config(PersonalSGD.Config):
        head_epochs: Count = 10  # epochs on the head before those on the body

    def train(
        self,
        payload: Tree,
        state: State,
        data: ClientData,
        rng: torch.Generator,
        ctx: ClientContext,
    ) -> tuple[State, Update]:
        self.start(payload, state, ctx)
        view, epochs = data.train, self.config.head_epochs
        self.fit(payload, state, view, rng, ctx, epochs=epochs, trainable=in_head)
        fit, metrics = self.fit(payload, state, view, rng, ctx, trainable=in_body)
        return self.keep(fit), Update(self.update(fit), float(len(view)), metrics)
