"""Local objective of a multimodal client: classification for one modality, retrieval for pairs.

    images or texts alone   the cross-entropy of a classifier on the representation
    pairs                   retrieval of one by the other

The optimiser's moments are part of the client's state and carry over to the next round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.client import Client, ClientContext, Heterogeneous, Tree, Update
from fedsim.config.ranges import CheckedConfig, Count, NonNegative, Positive, ProperFraction
from fedsim.data.views import ClientData
from fedsim.evaluate.metric_names import named_scores
from fedsim.models.image_text import RetrievalLoss, retrieval_loss
from fedsim.params import Params
from fedsim.training.optimisers import Name, Optimiser
from fedsim.training.parts import PartTraining

State = dict[str, Any]


@dataclass(frozen=True)
class TaskConfig(CheckedConfig):
    """Options of a client's own task; those named after pairs apply to clients with pairs."""

    epochs: Count = 5
    batch_size: Count = 512
    pairs_batch_size: Count = 128
    optimiser: Name = "sgd"
    pairs_optimiser: Name = "adamp"
    lr: Positive = 1e-4
    pairs_lr: Positive = 2e-4
    lr_drops: tuple[Count, ...] = ()  # with one modality: rounds after which the rate is x 0.1
    momentum: ProperFraction = 0.9  # of sgd
    weight_decay: NonNegative = 0.0  # with one modality
    pairs_clip_norm: Positive | None = 2.0  # bound on the gradient's norm
    # margin: weights >= 0, 4 off the true class's logit, rows of the weights kept apart.
    classifier: Literal["linear", "margin"] = "linear"
    retrieval_loss: RetrievalLoss = "pcme"
    temperature: Positive | None = None  # of infonce; learnt if null


class OwnTask:
    """One round of a client's training, from the model in its state or the initial one.

    `part` is the client's part of the resident model. `step` moves it along the gradient of a loss
    and `model` copies it, both as `PartTraining` does.

    Raises:
        ValueError: the client has no training samples.
    """

    def __init__(
        self,
        config: Any,
        state: State,
        data: ClientData,
        rng: torch.Generator,
        ctx: ClientContext,
    ) -> None:
        if len(data.train) == 0:
            raise ValueError(f"client {ctx.client_id} has no training samples")
        self.config, self.data, self.rng, self.ctx = config, data, rng, ctx
        self.name = part_name(data, ctx)
        ctx.model.load(own_model(state, ctx))
        self.has_pairs = data.modality == "all"
        self.modalities = ("image", "text") if self.has_pairs else (data.modality,)
        if self.has_pairs:
            lr, self._batch_size = config.pairs_lr, config.pairs_batch_size
            clip = config.pairs_clip_norm
            optimiser = Optimiser(config.pairs_optimiser, config.momentum, 0.0, clip)
        else:
            drops = sum(ctx.round > drop for drop in config.lr_drops)
            lr, self._batch_size = config.lr * 0.1**drops, config.batch_size
            optimiser = Optimiser(config.optimiser, config.momentum, config.weight_decay)
        moments = state.get("optimiser", {})
        self._training = PartTraining(ctx.model, self.name, optimiser, lr, moments)
        self.part = self._training.module
        self.step = self._training.step
        self.model = self._training.params
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def batches(self) -> Any:
        """Yield positions in the private data, in the order of one epoch."""
        return self.data.train.index_batches(self._batch_size, self.rng)

    def epoch(self) -> None:
        """Make one pass over private data."""
        for order in self.batches():
            self.step(self.loss(order))

    def loss(self, order: Tensor) -> Tensor:
        """Return the loss of the private samples at these positions."""
        view, config = self.data.train, self.config
        self.part.train()
        if self.has_pairs:
            x = self.part.images(view.inputs(order, self.rng))
            y = self.part.texts(view.tokens(order))
            loss = retrieval_loss(self.part, x, y, config.retrieval_loss, config.temperature)
        else:
            images = self.data.modality == "image"
            read = view.inputs(order, self.rng) if images else view.tokens(order)
            features, labels = self.part.features(read), view.labels(order)
            of = margin_loss if config.classifier == "margin" else linear_loss
            loss = of(self.part.head, features, labels)
        self.note("train_loss", loss, len(order))
        return loss

    def note(self, name: str, value: Tensor, count: int) -> None:
        """Add a mean over `count` samples to the round's metric of this name."""
        self._sums[name] = self._sums.get(name, 0.0) + float(value.detach()) * count
        self._counts[name] = self._counts.get(name, 0) + count

    def metrics(self) -> dict[str, float]:
        """Return the sample-weighted mean of each noted value."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def kept(self) -> State:
        """Return the client's state: its model and its optimiser's moments."""
        return {"model": self.model(), "optimiser": self._training.state()}


class TaskClient(Heterogeneous, Client):
    """Base of client methods that train their own task.

    A round starts from the client's state, overwritten by the payload's tensors (`shared`), which
    the client does not keep. ``personal/...`` are the scores of both together.
    """

    stateful = True

    @dataclass(frozen=True)
    class Config(TaskConfig):
        pass

    def init_state(self, ctx: ClientContext) -> State:
        return {}

    def shared(self, payload: Tree, data: ClientData, ctx: ClientContext) -> list[Params]:
        """Return the payload's tensors under the names that they have in the resident model."""
        return []

    def sent(self, payload: Tree, task: OwnTask) -> Tree:
        """Return what goes to the server after training."""
        raise NotImplementedError

    def train(
        self, payload: Tree, state: Any, data: ClientData, rng: torch.Generator, ctx: ClientContext
    ) -> tuple[State, Update]:
        task = OwnTask(self.config, state, data, rng, ctx)
        shared = self.shared(payload, data, ctx)
        for params in shared:
            ctx.model.load(params)
        for _ in range(self.config.epochs):
            task.epoch()
        travels = {name for params in shared for name in params}
        # What is shared is not kept: the next round begins from the server's. Moments are.
        kept = {**task.kept(), "model": task.model().only(lambda name: name not in travels)}
        return kept, Update(self.sent(payload, task), float(len(data.train)), task.metrics())

    def evaluate(
        self, payload: Tree, state: State, data: ClientData, ctx: ClientContext
    ) -> Mapping[str, float]:
        return own_scores(self.config, state, data, ctx, *self.shared(payload, data, ctx))


def part_name(data: ClientData, ctx: ClientContext) -> str:
    """Return the name of the client's part of the resident model."""
    module: Any = ctx.model.module
    name: str = module.part_of(data.modality, ctx.client_id)
    return name


def own_model(state: State, ctx: ClientContext) -> Params:
    """Return the model to load for a client: its own part, or the initial model."""
    model: Params = state.get("model", ctx.initial)
    return model


def own_scores(
    config: TaskConfig, state: State, data: ClientData, ctx: ClientContext, *shared: Params
) -> Mapping[str, float]:
    """Return ``personal/...`` of the client's model on its test data, in its own task.

    `shared` replaces tensors of its own model. Empty where it has no test data. With the
    classifier ``margin`` logits are as in training, without the margin.
    """
    if len(data.test) == 0:
        return {}
    for params in (own_model(state, ctx), *shared):
        ctx.model.load(params)
    module: Any = ctx.model.module
    name = part_name(data, ctx)
    head = module.get_submodule(name).head
    if head is not None and config.classifier == "margin":
        with torch.no_grad():
            head.weight.clamp_(min=0)
            head.bias.zero_()
    return named_scores("personal", module.scores(name, data.test))


def linear_loss(head: Any, features: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of a linear head on features (batch, d)."""
    return F.cross_entropy(head(features), labels)


def margin_loss(head: Any, features: Tensor, labels: Tensor) -> Tensor:
    """Return the classification loss of CreamFL's code: weights W >= 0, no bias, margin 4.

    Plus half the cross-entropy of W W^T (C, C) against the classes themselves. That code multiplies
    features by 128 first, which is left out.
    """
    weight = head.weight.clamp_min(0)
    margin = 4.0 * F.one_hot(labels, len(weight))
    apart = F.cross_entropy(weight @ weight.T, torch.arange(len(weight), device=weight.device))
    return F.cross_entropy(features @ weight.T - margin, labels) + 0.5 * apart
