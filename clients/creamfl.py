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
with one modality is plain cross-entropy (theirs is ``margin``), gamma also weighs a single term.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim import rng as streams
from fedsim.client import Client, ClientContext, Tree, Update
from fedsim.data.views import ClientData, View
from fedsim.errors import check
from fedsim.evaluate import named_scores
from fedsim.evaluate.retrieval import embedded, tokens_of
from fedsim.maths.contrastive import inter_contrast, intra_contrast
from fedsim.models.image_text import PAIRS, PART_OF, RetrievalLoss, retrieval_loss
from fedsim.optimisers import Name, Optimiser, placed
from fedsim.parts import under

State = dict[str, Any]
MODALITIES = ("image", "text")


class CreamFL(Client):
    """Sends its representations (N, d) of the public pairs, and of a modality it lacks none (0, d).

    It keeps its model and its optimiser's moments for ever. ``personal/...`` are its scores in its
    own task: accuracy, or for pairs recall.
    """

    stateful = True
    alike = False
    needs = frozenset({"global_img", "global_txt"})
    sends = frozenset({"local_img", "local_txt"})

    @dataclass(frozen=True)
    class Config:
        epochs: int = 5  # E, >= 1
        batch_size: int = 512  # of private data with one modality, >= 1
        pairs_batch_size: int = 128  # of private pairs, >= 1
        public_batch_size: int = 256  # >= 1
        optimiser: Name = "sgd"  # of clients with one modality
        pairs_optimiser: Name = "adamp"
        lr: float = 1e-4  # of clients with one modality, > 0
        pairs_lr: float = 2e-4  # > 0
        lr_drops: tuple[int, ...] = ()  # with one modality: rounds after which the rate is x 0.1
        momentum: float = 0.9  # of sgd, [0, 1)
        weight_decay: float = 0.0  # with one modality, >= 0
        pairs_clip_norm: float | None = 2.0  # > 0, bound on the gradient's norm
        # contrast: with G and prev; distance: the mean squared distance to G of the own modality.
        regulariser: Literal["contrast", "distance"] = "contrast"
        gamma: float = 0.5  # weight of the regulariser, >= 0; 0 leaves the public pairs alone
        tau: float = 0.5  # temperature of both contrasts, > 0
        inter: bool = True  # whether there is the term against the other modality
        intra: bool = True  # whether there is the term against the own modality
        loss_scale: bool = False  # inter is scaled to the value of intra
        lcr_mode: Literal["alternate", "joint"] = "alternate"
        # margin: weights >= 0, 4 off the true class's logit, rows of the weights kept apart.
        classifier: Literal["linear", "margin"] = "linear"
        retrieval_loss: RetrievalLoss = "pcme"  # of clients with pairs
        temperature: float | None = None  # of infonce, > 0; learnt if null

        def __post_init__(self) -> None:
            for name in ("epochs", "batch_size", "pairs_batch_size", "public_batch_size"):
                check(getattr(self, name) >= 1, f"{name} must be >= 1", getattr(self, name))
            for name in ("lr", "pairs_lr", "tau"):
                value = getattr(self, name)
                check(0 < value < math.inf, f"{name} must be > 0 and finite", value)
            check(0 <= self.gamma < math.inf, "gamma must be >= 0 and finite", self.gamma)
            given = self.temperature
            check(given is None or 0 < given < math.inf, "temperature must be > 0", given)
            clip = self.pairs_clip_norm
            check(clip is None or clip > 0, "pairs_clip_norm must be > 0", clip)
            Optimiser(self.optimiser, self.momentum, self.weight_decay)

    def init_state(self, ctx: ClientContext) -> State:
        return {}

    def train(
        self,
        payload: Tree,
        state: State,
        data: ClientData,
        rng: torch.Generator,
        ctx: ClientContext,
    ) -> tuple[State, Update]:
        if len(data.train) == 0:
            raise ValueError(f"client {ctx.client_id} has no training samples")
        if ctx.public is None:
            raise ValueError("creamfl needs public pairs, partition: {name: public, ...}")
        round = Round(self.config, payload, state, data, rng, ctx, ctx.public)
        if self.config.gamma > 0:
            round.remember()
        for _ in range(self.config.epochs):
            if self.config.gamma == 0:
                round.task_epoch()
            elif self.config.lcr_mode == "joint":
                round.joint_epoch()
            else:
                round.task_epoch()
                round.public_epoch()
        update = Update(round.representations(), float(len(data.train)), round.metrics())
        return round.kept(), update

    def evaluate(
        self, payload: Tree, state: State, data: ClientData, ctx: ClientContext
    ) -> Mapping[str, float]:
        if len(data.test) == 0:
            return {}
        ctx.model.load(state.get("model", ctx.initial))
        module: Any = ctx.model.module
        return named_scores("personal", module.scores(PART_OF[data.modality], data.test))


@dataclass
class Round:
    """A client's local training of one round; `previous` are prev_k by modality."""

    config: Any
    payload: Tree
    state: State
    data: ClientData
    rng: torch.Generator
    ctx: ClientContext
    public: View
    previous: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config, ctx = self.config, self.ctx
        self.kind = PART_OF[self.data.modality]
        self.has_pairs = self.kind == PAIRS
        self.modalities = MODALITIES if self.has_pairs else (self.kind,)
        ctx.model.load(self.state.get("model", ctx.initial))
        self.part: Any = ctx.model.module.get_submodule(self.kind)
        self.of_part = under((self.kind,))
        named = zip(ctx.model.parameter_names, ctx.model.parameters, strict=True)
        own = [(name, parameter) for name, parameter in named if self.of_part(name)]
        self.names, self.parameters = [n for n, _ in own], [p for _, p in own]
        self.moments = placed(self.state.get("optimiser", {}), ctx.device)
        drops = sum(ctx.round > drop for drop in config.lr_drops)
        if self.has_pairs:
            self.lr, self.batch_size = config.pairs_lr, config.pairs_batch_size
            self.optimiser = Optimiser(
                config.pairs_optimiser, config.momentum, 0.0, config.pairs_clip_norm
            )
        else:
            self.lr, self.batch_size = config.lr * 0.1**drops, config.batch_size
            self.optimiser = Optimiser(config.optimiser, config.momentum, config.weight_decay)
        to_global = {"image": "global_img", "text": "global_txt"}
        self.globals = {m: self.payload[key].to(ctx.device) for m, key in to_global.items()}
        # A stream of its own: private batches are the same whatever is done with public ones.
        self.public_rng = streams.torch_generator(
            ctx.seed, "creamfl/public", ctx.round, ctx.client_id
        )

    def remember(self) -> None:
        """Take prev_k: nothing of the public samples is random, so no copy of the model is kept."""
        for modality in self.modalities:
            self.previous[modality] = self.embed(modality)

    def embed(self, modality: str) -> Tensor:
        """Return the representations (N, d) of the public pairs, in evaluation mode."""
        return embedded(self.part, self.public, modality, self.config.public_batch_size)

    def task_epoch(self) -> None:
        """Step a."""
        for order in self.data.train.index_batches(self.batch_size, self.rng):
            self._step(self.task_loss(order))

    def public_epoch(self) -> None:
        """Step b."""
        for rows in self.public.index_batches(self.config.public_batch_size, self.public_rng):
            self._step(self.config.gamma * self.regulariser(rows))

    def joint_epoch(self) -> None:
        """One pass over private data, each batch beside a public one; those go round."""
        public = self._public_batches()
        for order in self.data.train.index_batches(self.batch_size, self.rng):
            task = self.task_loss(order)
            self._step(task + self.config.gamma * self.regulariser(next(public)))

    def _public_batches(self) -> Iterator[Tensor]:
        while True:
            yield from self.public.index_batches(self.config.public_batch_size, self.public_rng)

    def task_loss(self, order: Tensor) -> Tensor:
        """Return the loss of the private samples at these positions."""
        view, config = self.data.train, self.config
        self.part.train()
        if self.has_pairs:
            x = self.part.images(view.inputs(order))
            y = self.part.texts(tokens_of(view, order))
            loss = retrieval_loss(self.part, x, y, config.retrieval_loss, config.temperature)
        else:
            read = self._inputs(view)
            features, labels = self.part.features(read(order)), view.labels(order)
            of = margin_loss if config.classifier == "margin" else linear_loss
            loss = of(self.part.head, features, labels)
        self._note("train_loss", loss, len(order))
        return loss

    def _inputs(self, view: View) -> Callable[[Tensor], Tensor]:
        if self.kind == "image":
            return view.inputs
        return lambda order: tokens_of(view, order)

    def regulariser(self, rows: Tensor) -> Tensor:
        """Return inter + intra, or the distance, of the public samples at these positions."""
        config, place = self.config, rows.to(self.ctx.device)
        self.part.train()
        x = {m: self._public(m, rows) for m in self.modalities}
        own = torch.cat([self.globals[m][place] for m in x])
        stacked = torch.cat(list(x.values()))
        if config.regulariser == "distance":
            apart = F.mse_loss(stacked, own)
            self._note("distance", apart, len(rows))
            return apart
        inter, intra = stacked.new_zeros(()), stacked.new_zeros(())
        if config.inter:
            for modality, rep in x.items():
                other = self.globals["text" if modality == "image" else "image"]
                inter = inter + inter_contrast(rep, other, place, config.tau)
            self._note("inter", inter, len(rows))
        if config.intra:
            previous = torch.cat([self.previous[m][place] for m in x])
            intra = intra_contrast(stacked, own, previous, config.tau)
            self._note("intra", intra, len(rows))
        if config.loss_scale and config.inter and config.intra:
            inter = inter * (intra / inter).detach()
        return inter + intra

    def _public(self, modality: str, rows: Tensor) -> Tensor:
        found: Tensor
        if modality == "image":
            found = self.part.images(self.public.inputs(rows))
        else:
            found = self.part.texts(tokens_of(self.public, rows))
        return found

    def _step(self, loss: Tensor) -> None:
        if not loss.requires_grad:  # neither term is wanted
            return
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        self.optimiser.step(self.parameters, gradients, self.names, self.lr, self.moments)

    def _note(self, name: str, value: Tensor, count: int) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(value.detach()) * count
        self.counts[name] = self.counts.get(name, 0) + count

    def metrics(self) -> dict[str, float]:
        """Return the means of the losses over the round."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    def representations(self) -> dict[str, Tensor]:
        """Return what is sent: (N, d) of each modality it has, (0, d) of another."""
        nothing = self.payload["global_img"][:0].clone()
        made = {m: self.embed(m).cpu() for m in self.modalities}
        return {"local_img": made.get("image", nothing), "local_txt": made.get("text", nothing)}

    def kept(self) -> State:
        """Return the client's state: its model and its optimiser's moments."""
        model = self.ctx.model.params().only(self.of_part)
        return {"model": model, "optimiser": placed(self.moments, "cpu")}


def linear_loss(head: Any, features: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of a linear head on features (batch, d)."""
    return F.cross_entropy(head(features), labels)


def margin_loss(head: Any, features: Tensor, labels: Tensor) -> Tensor:
    """Return the classification loss of the authors' code: weights W >= 0, no bias, margin 4.

    Plus half the cross-entropy of W W^T (C, C) against the classes themselves.
    """
    weight = head.weight.clamp_min(0)
    margin = 4.0 * F.one_hot(labels, len(weight))
    apart = F.cross_entropy(weight @ weight.T, torch.arange(len(weight), device=weight.device))
    return F.cross_entropy(features @ weight.T - margin, labels) + 0.5 * apart
