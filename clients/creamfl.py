"""CreamFL's client: its own task, and contrast with the server's representations of the public
pairs (Yu et al. 2023, arXiv:2302.08888).

    each epoch   a  one pass over private data:  the task's loss
                 b  one pass over the public pairs:  gamma (inter + intra)
    inter_k = -log softmax_j(<x_k, G'_j> / tau) at j = k      G' of the other modality, all N rows
    intra_k = -log p / (p + n),  p = exp(<x_k, G_k> / tau),  n = exp(<x_k, prev_k> / tau)

x_k is the client's representation of public sample k, prev_k the one it had when the round began, G
the server's of the same modality. A client with pairs has the inter term once for each modality,
and one intra term over the rows of both. As in the authors' code a and b alternate; ``joint`` is
the paper's single sum. The client's model is of its own architecture and never leaves it.

Differs from the authors' code: representations are taken in evaluation mode, the task of clients
with one modality is plain cross-entropy (theirs is ``margin``, on features times 128), gamma also
weighs a single term.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from clients._modality_task import OwnTask, State, TaskClient
from fedsim import rng as streams
from fedsim.client import ClientContext, Tree, Update
from fedsim.config.ranges import Count, NonNegative, Positive
from fedsim.data.views import ClientData
from fedsim.errors import check
from fedsim.evaluate.retrieval import embedded
from fedsim.maths.contrastive import inter_contrast, intra_contrast


class CreamFL(TaskClient):
    """Sends its representations (N, d) of the public pairs, and of a modality it lacks none (0, d).

    It keeps its model and its optimiser's moments for ever. ``personal/...`` are its scores in its
    own task: accuracy, or for pairs recall.
    """

    needs = frozenset({"global_img", "global_txt"})
    sends = frozenset({"local_img", "local_txt"})

    @dataclass(frozen=True)
    class Config(TaskClient.Config):
        public_batch_size: Count = 256
        # contrast: with G and prev; distance: the mean squared distance to G of the own modality.
        regulariser: Literal["contrast", "distance"] = "contrast"
        gamma: NonNegative = 0.5  # weight of the regulariser; 0 leaves the public pairs alone
        tau: Positive = 0.5  # temperature of both contrasts
        inter: bool = True  # whether there is the term against the other modality
        intra: bool = True  # whether there is the term against the own modality
        loss_scale: bool = False  # inter is scaled to the value of intra
        lcr_mode: Literal["alternate", "joint"] = "alternate"

        def __post_init__(self) -> None:
            super().__post_init__()
            terms = self.inter or self.intra or self.regulariser == "distance" or self.gamma == 0
            check(terms, "inter must be true where intra is false, or gamma 0", self.inter)

    def train(
        self, payload: Tree, state: Any, data: ClientData, rng: torch.Generator, ctx: ClientContext
    ) -> tuple[State, Update]:
        task = Regularised(self.config, state, data, rng, ctx, payload)
        for _ in range(self.config.epochs):
            if self.config.gamma > 0 and self.config.lcr_mode == "joint":
                task.joint_epoch()
                continue
            task.epoch()
            if self.config.gamma > 0:
                task.public_epoch()
        update = Update(task.representations(), float(len(data.train)), task.metrics())
        return task.kept(), update


class Regularised(OwnTask):
    """A client's training beside the server's representations `payload` of the public pairs."""

    def __init__(
        self,
        config: CreamFL.Config,
        state: State,
        data: ClientData,
        rng: torch.Generator,
        ctx: ClientContext,
        payload: Tree,
    ) -> None:
        super().__init__(config, state, data, rng, ctx)
        if ctx.public is None:
            raise ValueError("creamfl's clients need public pairs, partition: {name: public, ...}")
        self.public = ctx.public
        self._nothing = payload["global_img"][:0].clone()
        sent = {"image": payload["global_img"], "text": payload["global_txt"]}
        self._global = {modality: rep.to(ctx.device) for modality, rep in sent.items()}
        # A stream of its own: private batches are the same whatever is done with public ones.
        self._order = streams.torch_generator(ctx.seed, "creamfl/public", ctx.round, ctx.client_id)
        # prev: nothing of the public samples is random, so no copy of the model has to be kept.
        wanted = config.gamma > 0 and config.intra and config.regulariser == "contrast"
        self._previous = {m: self.embed(m) for m in self.modalities} if wanted else {}

    def embed(self, modality: str) -> Tensor:
        """Return the representations (N, d) of the public pairs, in evaluation mode."""
        return embedded(self.part, self.public, modality, self.config.public_batch_size)

    def public_epoch(self) -> None:
        """Make one pass over the public pairs."""
        for rows in self._public_batches():
            self.step(self.config.gamma * self.regulariser(rows))

    def joint_epoch(self) -> None:
        """Make one pass over private data, each batch beside a public one; those go round."""
        public = self._public_for_ever()
        for order in self.batches():
            loss = self.loss(order)
            self.step(loss + self.config.gamma * self.regulariser(next(public)))

    def _public_for_ever(self) -> Iterator[Tensor]:
        while True:
            yield from self._public_batches()

    def _public_batches(self) -> Iterator[Tensor]:
        return self.public.index_batches(self.config.public_batch_size, self._order)

    def regulariser(self, rows: Tensor) -> Tensor:
        """Return inter + intra, or the distance, of the public samples at these positions."""
        config, place = self.config, rows.to(self.ctx.device)
        self.part.train()
        x = {modality: self._represent(modality, rows) for modality in self.modalities}
        stacked = torch.cat(list(x.values()))
        own = torch.cat([self._global[modality][place] for modality in x])
        if config.regulariser == "distance":
            apart = F.mse_loss(stacked, own)
            self.note("distance", apart, len(rows))
            return apart
        inter, intra = stacked.new_zeros(()), stacked.new_zeros(())
        if config.inter:
            for modality, rep in x.items():
                other = self._global["text" if modality == "image" else "image"]
                inter = inter + inter_contrast(rep, other, place, config.tau)
            self.note("inter", inter, len(rows))
        if config.intra:
            previous = torch.cat([self._previous[modality][place] for modality in x])
            intra = intra_contrast(stacked, own, previous, config.tau)
            self.note("intra", intra, len(rows))
        if config.loss_scale and config.inter and config.intra:
            inter = inter * (intra / inter).detach()
        return inter + intra

    def _represent(self, modality: str, rows: Tensor) -> Tensor:
        found: Tensor
        if modality == "image":
            found = self.part.images(self.public.inputs(rows))
        else:
            found = self.part.texts(self.public.tokens(rows))
        return found

    def representations(self) -> dict[str, Tensor]:
        """Return what is sent: (N, d) of each modality the client has, (0, d) of another."""
        made = {modality: self.embed(modality).cpu() for modality in self.modalities}
        return {
            "local_img": made.get("image", self._nothing),
            "local_txt": made.get("text", self._nothing),
        }
