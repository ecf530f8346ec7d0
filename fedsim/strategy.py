"""The server side of a method: a genuine Flower strategy in three pure hooks.

    init(params, ctx)                -> state              once, before round 1
    configure(state, round, cohort)  -> payload            for the clients of a round
    aggregate(state, updates)        -> (state, metrics)   from what they sent

The state is a plain dataclass of tensors and numbers, and nothing else survives a round: a
checkpoint holds what `init` and `aggregate` return. In simulation the hooks are called directly.
`Strategy` also implements Flower's abstract methods in terms of them, for Flower's wrappers,
ClientApps and deployments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedsim import rng
from fedsim.client import Metrics, Update
from fedsim.data.partition import MODALITIES, Modality
from fedsim.errors import RunFailed, refuse_replaced
from fedsim.flower.records import TreeRecord, tree_of
from fedsim.params import FlatModel, Params
from fedsim.params.trees import Tree, weighted_mean

if TYPE_CHECKING:
    from fedsim.data.dataset import Dataset
    from fedsim.data.views import View

WEIGHT_KEY = "num-examples"
"""The metric that carries a reply's weight, as in Flower's own strategies."""


@dataclass(frozen=True)
class ServerContext:
    """What a strategy may know: fixed for the whole run.

    `model` is a resident model of the server's own; load parameters into it before use. `server`
    are the training samples that the partition gives to the server itself, None if it gives none;
    `public` says whether all clients know them too. Model and samples are on a GPU where workers
    have any and the server has samples; states stay on the CPU.
    `modalities` uint8 (num_clients,) says which of `MODALITIES` each client holds; empty if all.
    """

    seed: int
    rounds: int
    num_clients: int
    cohort_size: int
    num_classes: int
    model: FlatModel
    dataset: Dataset
    server: View | None = None
    public: bool = False
    modalities: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))

    def generator(self, purpose: str, round: int) -> torch.Generator:
        """Return the generator of this purpose and round (one address, one stream)."""
        return rng.torch_generator(self.seed, f"strategy/{purpose}", round)

    def modality(self, client: int) -> Modality:
        """Return what a client holds of an image-text pair."""
        return MODALITIES[int(self.modalities[client])] if len(self.modalities) else "all"


@dataclass
class Payload:
    """What a cohort gets: `shared` by all, and what each client gets on top of it."""

    shared: Tree
    own: dict[int, Tree] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Tree | Payload) -> Payload:
        """Return what `Strategy.configure` returned as a payload."""
        return value if isinstance(value, Payload) else cls(value)


def sample_cohort(seed: int, round: int, population: int, size: int) -> list[int]:
    """Return `size` distinct clients of ``0..population-1`` in ascending order.

    The draw takes time and memory in `size`, not in `population`.
    """
    if size >= population:
        return list(range(population))
    generator = rng.numpy_generator(seed, "cohort", round)
    if size > population // 4:
        chosen = generator.permutation(population)[:size]
        return sorted(int(c) for c in chosen)
    seen: set[int] = set()
    while len(seen) < size:
        for client in generator.integers(population, size=size - len(seen)).tolist():
            seen.add(client)
    return sorted(seen)


_REPLACED = {
    "server_only": "cohort(round, population), which may return no client",
    "pooled": "the mixin fedsim.strategy.Pooled",
}


class Strategy(FlowerStrategy):
    """Base class of strategies; the constructor stores its config and does no work.

    Class attributes:
        Config: a frozen dataclass with the options of the experiment file's `strategy` section.
        sends: the keys of the payload.
        needs: the keys an `Update` must have.
        weighted_mean: whether `aggregate` sees the updates only through their weighted mean.
            Then an element of `updates` may be the mean of several clients, its weight being
            theirs together.
        client: the client method that the strategy comes with, where no module of ``clients/`` has
            its name; the strategy's name then names that method too.
    """

    @dataclass(frozen=True)
    class Config:
        pass

    sends: ClassVar[frozenset[str]] = frozenset({"model"})
    needs: ClassVar[frozenset[str]] = frozenset({"model"})
    weighted_mean: ClassVar[bool] = False
    client: ClassVar[str | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        refuse_replaced(cls, _REPLACED)

    def __init__(self, config: Any = None) -> None:
        self.config: Any = self.Config() if config is None else config
        self.ctx: ServerContext | None = None
        self.state: Any = None

    def check(self, params: Params, ctx: ServerContext) -> None:
        """Raise `InputError` where the method does not suit the model or data.

        Called before anything of a run is written; `params` is the initial model.
        """

    def init(self, params: Params, ctx: ServerContext) -> Any:
        """Return the state before round 1, `params` being the initial model."""
        raise NotImplementedError(f"{type(self).__name__} does not define init")

    def cohort(self, round: int, population: int) -> Sequence[int]:
        """Return the clients of ``0..population-1`` that take part in a round 1..T.

        By default `ServerContext.cohort_size` distinct ones, drawn uniformly. Without any the
        server works alone: `aggregate` is called with no updates.
        """
        assert self.ctx is not None
        return sample_cohort(self.ctx.seed, round, population, self.ctx.cohort_size)

    def drawn(self, round: int, population: int) -> list[int]:
        """Return the cohort in ascending order.

        Raises:
            RunFailed: it is not of distinct clients of the population.
        """
        cohort = sorted(self.cohort(round, population))
        distinct = len(set(cohort)) == len(cohort)
        if cohort and not (distinct and 0 <= cohort[0] <= cohort[-1] < population):
            raise RunFailed(
                f"round {round}: strategy {type(self).__name__} must draw distinct clients of "
                f"0..{population - 1}, got {cohort}"
            )
        return cohort

    def configure(self, state: Any, round: int, cohort: Sequence[int]) -> Tree | Payload:
        """Return what the cohort (ascending client ids) gets; default: the generic model."""
        return {"model": self.generic(state)}

    def aggregate(self, state: Any, updates: Sequence[Update]) -> tuple[Any, Metrics]:
        """Return the next state and metrics.

        `updates` is screened, in ascending order of client id, and non-empty unless the cohort
        was empty. Neither `state` nor `updates` may be changed in place.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define aggregate")

    def generic(self, state: Any) -> Params:
        """Return the generic model, the one evaluated on the global test set."""
        return state.model

    def scored(self, state: Any) -> Mapping[str, Params]:
        """Return the models that are scored on the global test set, by the name of their metrics.

        A part of a model is not scored.
        """
        return {"generic": self.generic(state)}

    def bind(self, params: Params, ctx: ServerContext) -> None:
        """Give the strategy its surroundings and the state before round 1."""
        self.ctx = ctx
        self.state = self.init(params, ctx)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the cohort and address the payload to each of its clients."""
        if self.ctx is None:
            raise RuntimeError("call bind(params, ctx) before the first round")
        nodes = grid.get_node_ids()
        if not isinstance(nodes, range):  # of a real deployment; sorting 10**6 takes a while
            nodes = sorted(nodes)
        cohort = [nodes[c] for c in self.drawn(server_round, len(nodes))]
        return self._messages(server_round, cohort, config, MessageType.TRAIN)

    def _messages(
        self, server_round: int, cohort: Sequence[int], config: ConfigRecord, message_type: str
    ) -> list[Message]:
        if not cohort:
            return []
        payload = Payload.of(self.configure(self.state, server_round, cohort))
        config["server-round"] = server_round
        record = TreeRecord(payload.shared)
        content = RecordDict({"arrays": record, "config": config})
        messages = []
        for client in cohort:
            own = payload.own.get(client)
            if own is not None:
                record = TreeRecord(payload.shared, own)
                content = RecordDict({"arrays": record, "config": config})
            messages.append(Message(content, client, message_type))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the replies that carry an update; errors were dealt with by the grid."""
        updates = []
        for reply in replies:
            if reply.has_error():
                continue
            arrays = next(iter(reply.content.array_records.values()))
            numbers = dict(next(iter(reply.content.metric_records.values())))
            weight = float(numbers.pop(WEIGHT_KEY))  # type: ignore[arg-type]
            metrics = {k: float(v) for k, v in numbers.items() if not isinstance(v, list)}
            like = self.generic(self.state) if "model" in self.needs else None
            sender = None if self.weighted_mean else reply.metadata.src_node_id
            updates.append(Update(tree_of(arrays, like), weight, metrics, sender))
        if not updates and (self.ctx is None or self.cohort(server_round, self.ctx.num_clients)):
            return None, None
        self.state, metrics = self.aggregate(self.state, updates)
        return TreeRecord({"model": self.generic(self.state)}), MetricRecord(dict(metrics))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address what the clients would get next to those that are evaluated."""
        cohort = getattr(grid, "evaluation_clients", None)
        if cohort is None:
            cohort = sorted(grid.get_node_ids())
        return self._messages(server_round, cohort, config, MessageType.EVALUATE)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the plain mean over clients of each metric they report."""
        values: dict[str, list[float]] = {}
        for reply in replies:
            if reply.has_error():
                continue
            for name, value in next(iter(reply.content.metric_records.values())).items():
                if name != WEIGHT_KEY and not isinstance(value, list):
                    values.setdefault(name, []).append(float(value))
        return MetricRecord({name: float(np.mean(v)) for name, v in sorted(values.items())})

    def summary(self) -> None:
        """Flower calls this before a run; the run folder's config.yaml says it all."""


class Pooled:
    """Mixin of strategies with one learner, client 0, on the training samples of all clients."""

    def cohort(self, round: int, population: int) -> Sequence[int]:
        return [0]


def mean_update(updates: Sequence[Update]) -> Tree:
    """Return ``sum_k weight_k tensors_k / sum_k weight_k`` over the updates, in fp32."""
    return weighted_mean((u.tensors, u.weight) for u in updates)
