"""The server side of a method, as a genuine Flower strategy in three pure hooks.

    init(params, ctx)                -> state              once, before round 1
    configure(state, round, cohort)  -> payload            what the cohort gets
    aggregate(state, updates)        -> (state, metrics)   what the server makes of the answers

The state is a plain dataclass of tensors and numbers, and nothing else survives a round: what
`init` and `aggregate` return is what a checkpoint holds. `Strategy` implements Flower's abstract
methods once in terms of these hooks, so a module under ``strategies/`` reads like the
algorithm box of its paper.
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
from fedsim.flower.messages import Letter, Letters
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


class Strategy(FlowerStrategy):
    """Base class of strategies; the constructor stores its config and does no work.

    Class attributes:
        Config: a frozen dataclass with the options of the experiment file's `strategy` section.
        sends: the keys of the payload.
        needs: the keys an `Update` must have.
        weighted_mean: whether `aggregate` sees the updates only through their weighted mean.
            Then an element of `updates` may stand for several clients, its weight being theirs
            together.
        pooled: whether, instead of a cohort, one client trains on all clients' training samples.
    """

    @dataclass(frozen=True)
    class Config:
        pass

    sends: ClassVar[frozenset[str]] = frozenset({"model"})
    needs: ClassVar[frozenset[str]] = frozenset({"model"})
    weighted_mean: ClassVar[bool] = False
    pooled: ClassVar[bool] = False

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

    def server_only(self, round: int) -> bool:
        """Return whether the server works alone in this round 1..T: no client is sent anything."""
        return False

    def configure(self, state: Any, round: int, cohort: Sequence[int]) -> Tree | Payload:
        """Return what the cohort (ascending client ids) gets; default: the generic model."""
        return {"model": self.generic(state)}

    def aggregate(self, state: Any, updates: Sequence[Update]) -> tuple[Any, Metrics]:
        """Return the next state and metrics.

        `updates` is screened, in ascending order of client id, and non-empty but where the server
        works alone. Neither `state` nor `updates` may be changed in place.
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
        if self.server_only(server_round):
            return Letters([])
        nodes = None
        population = getattr(grid, "population", None)
        if population is None:
            nodes = sorted(grid.get_node_ids())
            population = len(nodes)
        size = self.ctx.cohort_size
        cohort = (
            [0] if self.pooled else sample_cohort(self.ctx.seed, server_round, population, size)
        )
        if nodes is not None:
            cohort = [nodes[c] for c in cohort]
        return self._messages(server_round, cohort, config, MessageType.TRAIN)

    def _messages(
        self, server_round: int, cohort: Sequence[int], config: ConfigRecord, message_type: str
    ) -> Letters:
        payload = self.configure(self.state, server_round, cohort)
        if not isinstance(payload, Payload):
            payload = Payload(payload)
        config["server-round"] = server_round
        shared = TreeRecord(payload.shared)
        shared.weighted_mean = self.weighted_mean
        content = RecordDict({"arrays": shared, "config": config})
        letters = []
        for client in cohort:
            own = payload.own.get(client)
            if own is not None:
                record = TreeRecord(payload.shared, own)
                content = RecordDict({"arrays": record, "config": config})
            letters.append(Letter(client, content, message_type))
        return Letters(letters)

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
        if not updates and not self.server_only(server_round):
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


def mean_update(updates: Sequence[Update]) -> Tree:
    """Return ``sum_k weight_k tensors_k / sum_k weight_k`` over the updates, in fp32."""
    return weighted_mean((u.tensors, u.weight) for u in updates)
