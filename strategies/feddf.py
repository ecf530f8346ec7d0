"""FedDF: the clients' ensemble is distilled into one model for each architecture of clients, and
into the server's (Lin et al. 2020, arXiv:2006.07242, Algorithm 3).

    client c:  starts from the encoder of its part p, keeps its classifier;  sends its encoder
    server:    encoder^p <- sum_c n_c encoder_c / sum_c n_c  over the clients that have this part
               Ibar <- mean of the clients' representations of the public images,  Tbar likewise
               server's model: one epoch of retrieval, then one towards (Ibar, Tbar)
               encoder^p: one epoch towards (Ibar, Tbar)

Representations of the public pairs stand for the paper's logits, which clients of different tasks
do not share, and the squared distance for its divergence. Clients of one kind have one part of the
model, or one for each of the kind's architectures; weights travel within a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from fedsim.client import Metrics, Update
from fedsim.config.ranges import Positive
from fedsim.models.image_text import in_encoder
from fedsim.params import Params
from fedsim.params.trees import weighted_mean
from fedsim.strategy import Payload, ServerContext, Strategy
from fedsim.training.optimisers import OptimiserState
from strategies._public_pairs import PublicConfig, PublicTraining, Target, check_pairs


@dataclass
class State:
    model: Params  # the server's part, and the encoder of each of the clients' parts
    round: int = 0
    moments: dict[str, OptimiserState] = field(default_factory=dict)  # by part


class FedDF(Strategy):
    """Weighted mean of the encoders of each part, then distillation of the clients' ensemble."""

    sends = frozenset({"encoder"})
    needs = frozenset({"encoder"})

    @dataclass(frozen=True)
    class Config(PublicConfig):
        kd_weight: Positive = 0.6  # of each modality
        kd_reduction: Literal["mse", "l2"] = "mse"  # l2: unsquared distances

    def check(self, params: Params, ctx: ServerContext) -> None:
        check_pairs(params, ctx, "feddf")

    def init(self, params: Params, ctx: ServerContext) -> State:
        self.check(params, ctx)
        return State(params)

    def configure(self, state: State, round: int, cohort: Sequence[int]) -> Payload:
        encoders = {part: state.model.only(in_encoder(part)) for part in self.parts()}
        return Payload({}, {client: {"encoder": encoders[self.part(client)]} for client in cohort})

    def parts(self) -> list[str]:
        """Return the names of all parts of the model that clients have."""
        assert self.ctx is not None
        module: Any = self.ctx.model.module
        return [name for names in module.kinds.values() for name in names]

    def part(self, client: int | None) -> str:
        """Return the part of the model that a client has.

        Raises:
            ValueError: it is not known whose update it is.
        """
        assert self.ctx is not None
        if client is None:
            raise ValueError("feddf needs to know whose update it is")
        module: Any = self.ctx.model.module
        name: str = module.part_of(self.ctx.modality(client), client)
        return name

    def aggregate(self, state: State, updates: Sequence[Update]) -> tuple[State, Metrics]:
        assert self.ctx is not None
        round, config = state.round + 1, self.config
        moments = dict(state.moments)
        names = self.parts()
        parts = {name: PublicTraining(config, self.ctx, name) for name in ("server", *names)}
        model, metrics = state.model, {}
        local: dict[str, list[Tensor]] = {"image": [], "text": []}
        for name in names:
            senders = [u for u in updates if self.part(u.client) == name]
            metrics[f"clients_{name}"] = float(len(senders))
            for update in senders:
                parts[name].load(update.tensors["encoder"])
                for modality in parts[name].modalities:
                    local[modality].append(parts[name].embed(modality))
            if senders:
                trees = (({"encoder": u.tensors["encoder"]}, u.weight) for u in senders)
                model = model.merged(weighted_mean(trees)["encoder"])
        parts["server"].load(model)
        moments["server"], metrics["server_loss"] = parts["server"].supervised(
            moments.get("server", {}), round
        )
        targets = {
            modality: [Target(mean_of(reps), config.kd_weight)] if reps else []
            for modality, reps in local.items()
        }
        for name, part in parts.items():
            images, texts = (targets[m] if m in part.modalities else [] for m in local)
            if images or texts:
                moments[name], loss = part.distil(
                    images, texts, config.kd_reduction, moments.get(name, {}), round
                )
                metrics[f"kd_loss/{name}"] = loss
            model = model.merged(part.read())
        return State(model, round, moments), metrics


def mean_of(reps: Sequence[Tensor]) -> Tensor:
    """Return the plain mean of matrices (N, d)."""
    total = reps[0].clone()
    for rep in reps[1:]:
        total += rep
    return total / len(reps)
