"""Server-side training of one part of an image-text model on public pairs.

Each call is one epoch over all pairs in a new random order: supervised retrieval, with augmented
images where the experiment says so, or distillation towards given representations. Weights and
the optimiser's moments are passed in and returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim import rng
from fedsim.config.ranges import CheckedConfig, Count, NonNegative, Positive, ProperFraction
from fedsim.data.views import View
from fedsim.errors import InputError
from fedsim.evaluate.retrieval import embedded
from fedsim.models.image_text import ImageText, RetrievalLoss, retrieval_loss
from fedsim.params import Params
from fedsim.params.filters import under
from fedsim.rng import seed_generators
from fedsim.strategy import ServerContext
from fedsim.training.optimisers import Name, Optimiser, OptimiserState, cosine_rate
from fedsim.training.parts import PartTraining


@dataclass(frozen=True)
class PublicConfig(CheckedConfig):
    """Options of a server's training on public pairs."""

    lr: Positive = 2e-4
    schedule: Literal["cosine", "constant"] = "cosine"  # of the rate over the rounds
    optimiser: Name = "adamp"
    momentum: ProperFraction = 0.0  # of sgd
    weight_decay: NonNegative = 0.0
    clip_norm: Positive | None = 2.0  # bound on the gradient's norm
    batch_size: Count = 128  # of training
    embed_batch_size: Count = 256  # where there is no gradient
    retrieval_loss: RetrievalLoss = "pcme"
    temperature: Positive | None = None  # of infonce; learnt if null

    def steps(self) -> Optimiser:
        """Return the optimiser."""
        return Optimiser(self.optimiser, self.momentum, self.weight_decay, self.clip_norm)

    def rate(self, round: int, rounds: int) -> float:
        """Return the learning rate of a round 1..`rounds`."""
        return cosine_rate(self.lr, round, rounds) if self.schedule == "cosine" else self.lr


@dataclass
class Target:
    """Representations (N, d) of the public images, or texts, to distil into a model.

    `weight` multiplies their loss; `rows` bool (N,) selects those that count, None all.
    """

    rep: Tensor
    weight: float
    rows: Tensor | None = None


class PublicTraining:
    """Trains and reads the part `name` of the server's resident model on the public pairs."""

    def __init__(self, config: PublicConfig, ctx: ServerContext, name: str = "server") -> None:
        assert ctx.server is not None
        self._config, self._ctx, self._name = config, ctx, name
        self.public: View = ctx.server
        self.part: Any = ctx.model.module.get_submodule(name)
        self.modalities = tuple(m for m in ("image", "text") if getattr(self.part, m) is not None)

    def load(self, params: Params) -> None:
        """Put a model, or this part of it, into the resident model."""
        self._ctx.model.load(params)

    def read(self) -> Params:
        """Return this part of the resident model."""
        return self._ctx.model.params().only(under((self._name,)))

    def embed(self, modality: str) -> Tensor:
        """Return the representations (N, d) of all images or texts, in evaluation mode."""
        size = self._config.embed_batch_size
        return embedded(self.part, self.public, modality, size).cpu()

    def embed_both(self) -> tuple[Tensor, Tensor]:
        """Return the representations of all images and of all texts."""
        return self.embed("image"), self.embed("text")

    def supervised(
        self, moments: OptimiserState, round: int, epoch: int = 0
    ) -> tuple[OptimiserState, float]:
        """Train by the retrieval loss; return the new moments and the mean loss a batch.

        `epoch` numbers the epochs of one round, each of another order.
        """
        config = self._config

        def loss(rows: Tensor, draw: torch.Generator) -> Tensor:
            x, y = self._images(rows, draw), self._texts(rows)
            return retrieval_loss(self.part, x, y, config.retrieval_loss, config.temperature)

        return self._epoch(loss, moments, round, f"supervised-{epoch}" if epoch else "supervised")

    def distil(
        self,
        images: Sequence[Target],
        texts: Sequence[Target],
        reduction: Literal["mse", "l2"],
        moments: OptimiserState,
        round: int,
    ) -> tuple[OptimiserState, float]:
        """Train towards targets of images and of texts; return the moments and the mean loss.

        mse: the mean over pairs and dimensions; l2: of the unsquared distances, over pairs.
        """

        def loss(rows: Tensor, draw: torch.Generator) -> Tensor:
            total = torch.zeros((), device=self.public.device)
            for targets, embed in ((images, self._images), (texts, self._texts)):
                if targets:
                    total = total + self._apart(embed(rows), targets, rows, reduction)
            return total

        return self._epoch(loss, moments, round, "distil")

    def _apart(
        self, x: Tensor, targets: Sequence[Target], rows: Tensor, reduction: Literal["mse", "l2"]
    ) -> Tensor:
        total = torch.zeros((), device=x.device)
        for target in targets:
            kept = slice(None) if target.rows is None else target.rows[rows]
            count = len(x[kept])
            if count:
                apart = distance(x[kept], target.rep[rows][kept].to(x.device), reduction)
                # The mean is over the batch, pairs that do not count included.
                total = total + target.weight * count / len(rows) * apart
        return total

    def _epoch(
        self,
        loss_of: Callable[[Tensor, torch.Generator], Tensor],
        moments: OptimiserState,
        round: int,
        purpose: str,
    ) -> tuple[OptimiserState, float]:
        ctx, config = self._ctx, self._config
        rate = config.rate(round, ctx.rounds)
        training = PartTraining(ctx.model, self._name, config.steps(), rate, moments)
        address = f"public/{self._name}/{purpose}"
        total, batches = 0.0, 0
        self.part.train()
        with torch.random.fork_rng(devices=[]):
            seed_generators(self.public.device, rng.derive(ctx.seed, address, round))
            order = ctx.generator(address, round)
            for rows in self.public.index_batches(config.batch_size, order):
                loss = loss_of(rows, order)
                if not loss.requires_grad:
                    continue
                training.step(loss)
                total, batches = total + float(loss.detach()), batches + 1
        return training.state(), total / max(1, batches)

    def _images(self, rows: Tensor, draw: torch.Generator | None = None) -> Tensor:
        representations: Tensor = self.part.images(self.public.inputs(rows, draw))
        return representations

    def _texts(self, rows: Tensor) -> Tensor:
        representations: Tensor = self.part.texts(self.public.tokens(rows))
        return representations


def distance(x: Tensor, target: Tensor, reduction: Literal["mse", "l2"]) -> Tensor:
    """Return the mean distance of rows, squared and over dimensions too (mse) or not (l2)."""
    if reduction == "mse":
        return F.mse_loss(x, target)
    return (x - target).norm(dim=1).mean()


def check_pairs(params: Params, ctx: ServerContext, name: str) -> None:
    """Raise `InputError` unless the model is of images and texts and there are public pairs."""
    if not isinstance(ctx.model.module, ImageText):
        raise InputError(f"strategy {name!r} needs the model {{name: image-text}}")
    if not ctx.public:
        raise InputError(
            f"strategy {name!r} needs public pairs, such as partition: {{name: public, size: 800, "
            "within: {name: modality, ...}}"
        )
