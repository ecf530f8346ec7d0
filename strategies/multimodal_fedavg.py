"""FedAvg of towers: those of one modality are averaged over the clients that have it.

    client c:  starts from the server's towers of its modalities, keeps a head of its own
    server:    tower^m <- sum_c w_c tower^m_c / sum_c w_c  over the clients with modality m
               one epoch of retrieval training on the public pairs

w_c is the number of samples, times `pairs_weight` for clients with pairs. With 1 that is FedAvg
extended to modalities, as CreamFL is compared with (arXiv:2302.08888), with more it is FedIoT
(Zhao et al. 2022, arXiv:2109.04833), which trusts clients with both more; how much is ours. That
the server then trains on the public pairs is ours too: so do the methods it is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedsim.client import Metrics, Tree, Update
from fedsim.config.ranges import NonNegativeInt, Positive
from fedsim.errors import InputError
from fedsim.models.image_text import PAIRS, SERVER
from fedsim.params import Params
from fedsim.params.trees import weighted_mean
from fedsim.strategy import Payload, ServerContext, Strategy
from fedsim.training.optimisers import OptimiserState
from strategies._public_pairs import PublicConfig, PublicTraining, check_pairs

MODALITIES = ("image", "text")


@dataclass
class State:
    model: Params  # the server's towers are the shared ones
    round: int = 0
    moments: OptimiserState = field(default_factory=dict)


class MultimodalFedAvg(Strategy):
    """Weighted mean of the image towers, and of the text towers, then training on public pairs."""

    sends = frozenset({"image", "text"})
    needs = frozenset({"image", "text"})

    @dataclass(frozen=True)
    class Config(PublicConfig):
        pairs_weight: Positive = 1.0  # of clients with pairs; FedIoT: above 1, such as 10
        public_epochs: NonNegativeInt = 1  # of training on the public pairs

    def check(self, params: Params, ctx: ServerContext) -> None:
        check_pairs(params, ctx, "multimodal-fedavg")
        module: Any = ctx.model.module
        for modality in MODALITIES:
            shared = params.inside(f"{SERVER}.{modality}").layout
            for kind in (modality, PAIRS):
                parts = module.kinds[kind]
                for part in parts:
                    if params.inside(f"{part}.{modality}").layout != shared:
                        other = modality if kind == modality else f"pairs_{modality}"
                        other += f" ({part})" if len(parts) > 1 else ""
                        raise InputError(
                            "strategy 'multimodal-fedavg' averages towers, so those of one "
                            f"modality must be alike: model.{other} must be as "
                            f"model.server_{modality}"
                        )

    def init(self, params: Params, ctx: ServerContext) -> State:
        self.check(params, ctx)
        return State(params)

    def configure(self, state: State, round: int, cohort: Sequence[int]) -> Payload:
        assert self.ctx is not None
        towers = {m: state.model.inside(f"{SERVER}.{m}") for m in MODALITIES}
        nothing = state.model.only(lambda name: False)
        own: dict[int, Tree] = {}
        for client in cohort:
            held = self.ctx.modality(client)
            own[client] = {m: towers[m] if held in (m, "all") else nothing for m in MODALITIES}
        return Payload({}, own)

    def aggregate(self, state: State, updates: Sequence[Update]) -> tuple[State, Metrics]:
        assert self.ctx is not None
        round, moments = state.round + 1, state.moments
        metrics: Metrics = {}
        server = PublicTraining(self.config, self.ctx)
        server.load(state.model)
        for modality in MODALITIES:
            senders = [u for u in updates if len(u.tensors[modality])]
            metrics[f"clients_{modality}"] = float(len(senders))
            if senders:
                towers = (({"tower": u.tensors[modality]}, self.weight(u)) for u in senders)
                mean: Params = weighted_mean(towers)["tower"]
                server.load(mean.put_under(f"{SERVER}.{modality}"))
        for epoch in range(self.config.public_epochs):
            moments, metrics["server_loss"] = server.supervised(moments, round, epoch)
        return State(state.model.merged(server.read()), round, moments), metrics

    def weight(self, update: Update) -> float:
        """Return w_c."""
        both = len(update.tensors["image"]) and len(update.tensors["text"])
        return update.weight * (self.config.pairs_weight if both else 1.0)
