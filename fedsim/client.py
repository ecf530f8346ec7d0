"""The client side of a method: what one participant does with a payload.

    init_state(ctx)                        -> state     once, before a client's first round
    train(payload, state, data, rng, ctx)  -> (state, Update)
    personal_model(payload, state, ctx)    -> Params    only for personalised methods
    evaluate(payload, state, data, ctx)    -> metrics   default: the model's scores on own test data

A client method knows nothing of transport, workers or Flower. What it wants to keep between
rounds it returns as its state; what leaves the client is in the `Update` and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from fedsim.errors import refuse_replaced
from fedsim.params import FlatModel, Params, Rows

if TYPE_CHECKING:
    from fedsim.data.views import ClientData, View

Tree = dict[str, Any]
"""Nested str-keyed dict whose leaves are `Params`, CPU tensors, numbers, strings or None."""

Metrics = dict[str, float]


@dataclass
class Update:
    """What a client sends to the server.

    `tensors` is a tree, ``{"model": Params}`` for methods that send the whole model; `weight`
    is the client's weight in a weighted mean, usually its number of training samples (> 0).
    `client` is who sent it, which the server fills in; None for a mean over several.
    """

    tensors: Tree
    weight: float
    metrics: Metrics = field(default_factory=dict)
    client: int | None = None


@dataclass
class AuditedUpdate(Update):
    """An update with `claims` for `Audited.audit`, which the server never sees."""

    claims: Any = None


@dataclass
class GroupUpdate:
    """The updates of several clients and the states they keep, in the order of the clients.

    `tensors` is the tree of an `Update` with `Rows` in place of `Params`.
    """

    tensors: dict[str, Rows]
    weights: list[float]
    metrics: list[Metrics]
    states: list[Any]

    def split(self) -> list[Update]:
        """Return one update a client."""
        pieces = {key: rows.split() for key, rows in self.tensors.items()}
        rows = enumerate(zip(self.weights, self.metrics, strict=True))
        return [Update({key: p[i] for key, p in pieces.items()}, w, m) for i, (w, m) in rows]

    def take(self, order: list[int]) -> GroupUpdate:
        """Return the same of the clients in another order."""
        if order == list(range(len(order))):
            return self
        return GroupUpdate(
            {key: rows.take(order) for key, rows in self.tensors.items()},
            [self.weights[i] for i in order],
            [self.metrics[i] for i in order],
            [self.states[i] for i in order],
        )

    def norms(self) -> Tensor:
        """Return the norm of each client's tensors (clients,); NaN or infinite if an element is."""
        norms = [torch.linalg.vector_norm(rows.flat, dim=1) for rows in self.tensors.values()]
        return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), dim=0)


@dataclass(slots=True)
class ClientContext:
    """What a client method may know of its surroundings.

    `model` is the worker's resident model: load a payload into it before use; nothing left in
    it survives the call. `initial` are the experiment's initial weights, the same everywhere.
    `round` is 1..T, `client_id` is 0..num_clients-1. `public` are the samples that the server and
    all clients know, in one order for all, where the partition has some.
    """

    client_id: int
    round: int
    seed: int
    num_clients: int
    num_classes: int
    model: FlatModel
    initial: Params
    device: torch.device
    public: View | None = None


@dataclass(slots=True)
class Task:
    """The arguments of one `Client.train` call."""

    payload: Tree
    state: Any
    data: ClientData
    rng: torch.Generator
    ctx: ClientContext


class Client:
    """Base class of client methods; the constructor stores its config and does no work.

    Class attributes:
        Config: a frozen dataclass with the options of the experiment file's `client` section.
        needs: the payload keys that `train` reads.
        sends: the keys of `Update.tensors`.
        stateful: whether `init_state` gives every client a state that the platform keeps.
        personal: whether `personal_model` gives each client a model of its own.
    """

    @dataclass(frozen=True)
    class Config:
        pass

    needs: ClassVar[frozenset[str]] = frozenset({"model"})
    sends: ClassVar[frozenset[str]] = frozenset({"model"})
    stateful: ClassVar[bool] = False
    personal: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        refuse_replaced(cls, {"alike": "the mixin fedsim.client.Heterogeneous"})

    def __init__(self, config: Any = None) -> None:
        self.config: Any = self.Config() if config is None else config

    def init_state(self, ctx: ClientContext) -> Any:
        """Return a client's state before its first round: a tree or dataclass, or None."""
        return None

    def train(
        self, payload: Tree, state: Any, data: ClientData, rng: torch.Generator, ctx: ClientContext
    ) -> tuple[Any, Update]:
        """Train locally; return the new state and what is sent to the server.

        `payload` and its tensors are shared and read-only. `rng` is this client's own
        generator for this round; the global generator is seeded for the call as well.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define train")

    def group_size(self, module: nn.Module) -> int:
        """Return how many clients `train_group` handles at once; 1 means one after another."""
        return 1

    def train_group(self, tasks: Sequence[Task]) -> GroupUpdate:
        """Train several clients of one block together; one row a task, in order.

        Must equal `train` on each within the tolerance that the method's docstring states.
        """
        raise NotImplementedError(f"{type(self).__name__} trains no groups")

    def personal_model(self, payload: Tree, state: Any, ctx: ClientContext) -> Params:
        """Return the client's personal model: its state joined with the generic `payload`."""
        raise NotImplementedError(f"{type(self).__name__} has no personal model")

    def evaluate(
        self, payload: Tree, state: Any, data: ClientData, ctx: ClientContext
    ) -> Mapping[str, float]:
        """Return metrics on the client's own test data; empty where it has none.

        Names are ``generic/...`` for the server's model and ``personal/...`` for the client's.
        """
        from fedsim.evaluate.metric_names import named_scores
        from fedsim.evaluate.scoring import score

        if len(data.test) == 0:
            return {}
        models = {}
        generic = payload.get("model")
        if isinstance(generic, Params) and generic.layout == ctx.model.layout:
            models["generic"] = generic
        if self.personal:
            models["personal"] = self.personal_model(payload, state, ctx)
        metrics: Metrics = {}
        for kind, params in models.items():
            ctx.model.load(params)
            metrics |= named_scores(kind, score(ctx.model.module, data.test))
        return metrics


class Heterogeneous:
    """Mixin of client methods whose clients may send tensors of different names and shapes.

    Of other methods a client whose tensors differ from those of most is screened out.
    """


class Audited:
    """Mixin of client methods that are compared with labels that they may not read.

    `train` returns an `AuditedUpdate`; the platform then calls `audit`, for the record alone.
    """

    def audit(self, claims: Any, view: View, ctx: ClientContext) -> Mapping[str, float]:
        """Return metrics of how right the claims of an update are.

        `view` are the client's training samples with all their labels, also those that the client
        itself may not read. The metrics are recorded with the client's others.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define audit")
