"""Driving any Flower strategy through its abstract methods, and keeping it in checkpoints.

Flower's strategies keep what survives a round in their attributes (``m_t``, ``current_arrays``, a
wrapped strategy ...). Everything in them that is data is captured; functions and the like come
back with the constructor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedsim.engine.grid import SimulationGrid
from fedsim.engine.jobs import RoundLog
from fedsim.engine.schedule import Plan, Scheduler
from fedsim.errors import RunFailed
from fedsim.flower.contracts import is_client_app
from fedsim.flower.records import TreeRecord, tree_of
from fedsim.params import Params
from fedsim.params.trees import Tree
from fedsim.rng import seeded_globals
from fedsim.rounds.server import check_model
from fedsim.rounds.setup import Parts, own_strategies, server_context
from fedsim.strategy import Strategy

_SCALARS = (int, float, str, bytes, bool, type(None), np.ndarray, np.generic, torch.Tensor)


class FlowerServer:
    """Drives a Flower strategy: any of Flower's, and ours with ClientApps or changed methods."""

    def __init__(
        self,
        parts: Parts,
        initial: Params,
        evaluation_clients: Sequence[int],
        scheduler: Scheduler,
    ) -> None:
        self.params: Params | None = initial
        self._strategy: Any = parts.strategy
        self._experiment = parts.experiment
        self._initial = initial
        self._apps = is_client_app(parts.client)
        self._sends: frozenset[str] = getattr(parts.client, "sends", frozenset())
        self._extra: Tree = {}  # what the strategy's arrays hold besides the model
        self._arrays: ArrayRecord = TreeRecord({"model": initial})
        self._grid = SimulationGrid(
            scheduler,
            parts.manifest.num_clients,
            initial,
            apps=self._apps,
            evaluation_clients=evaluation_clients,
        )
        for strategy in own_strategies(parts.strategy):
            strategy.bind(initial.clone(), server_context(parts))

    def plan(self, round: int) -> Plan:
        with seeded_globals(self._experiment.seed, "strategy/configure", round):
            messages = list(
                self._strategy.configure_train(round, self._arrays, ConfigRecord(), self._grid)
            )
        if not messages and not self._works_alone(round):
            raise RunFailed(f"round {round}: the strategy addressed no client")
        plan = self._grid.plan(messages)
        plan.mean = self._wants_mean(plan)
        return plan

    def _wants_mean(self, plan: Plan) -> bool:
        """Whether the strategy is one of ours that needs only the mean of the updates."""
        if not isinstance(self._strategy, Strategy) or self._apps or len(plan.dispatches) != 1:
            return False
        dispatch = plan.dispatches[0]
        keys = set(dispatch.shared) | set(dispatch.own.get(dispatch.clients[0], ()))
        return self._strategy.weighted_mean and self._sends <= keys

    def _works_alone(self, round: int) -> bool:
        """Whether the strategy is one of ours that wants no client in this round."""
        if not isinstance(self._strategy, Strategy):
            return False
        return not self._strategy.drawn(round, self._experiment.partition.clients)

    def take(self, round: int, log: RoundLog) -> dict[str, float]:
        replies = self._grid.replies(log)
        counts = _largest_integers(replies)  # before the strategy, which may change replies
        with seeded_globals(self._experiment.seed, "strategy/aggregate", round):
            arrays, metrics = self._strategy.aggregate_train(round, replies)
        where = f"round {round}: strategy {self._experiment.strategy.name!r}"
        if arrays is None:
            updates = len(log.reports) - len(log.failures)
            raise RunFailed(f"{where} made no model of the {updates} updates it was given")
        tree = tree_of(arrays, self._initial)
        params = tree.get("model")
        own = isinstance(self._strategy, Strategy)
        if params is not None or own or not self._apps:
            check_model(params, self._initial, where)
        if params is not None and params.integers and not own:
            kept = {name: counts.get(name, value) for name, value in params.integers.items()}
            params = params.replace(params.flat, kept)
        self.params = params
        self._extra = {name: value for name, value in tree.items() if name != "model"}
        self._arrays = self._record()
        return _numbers(metrics)

    def plan_evaluation(self, round: int) -> Plan:
        with seeded_globals(self._experiment.seed, "strategy/configure-evaluate", round):
            messages = self._strategy.configure_evaluate(
                round, self._arrays, ConfigRecord(), self._grid
            )
            return self._grid.plan(list(messages))

    def take_evaluation(self, round: int, log: RoundLog) -> dict[str, float]:
        replies = [reply for reply in self._grid.replies(log) if not reply.has_error()]
        with seeded_globals(self._experiment.seed, "strategy/aggregate-evaluate", round):
            return _numbers(self._strategy.aggregate_evaluate(round, replies))

    def models(self) -> Mapping[str, Params]:
        if isinstance(self._strategy, Strategy):
            return self._strategy.scored(self._strategy.state)
        return {} if self.params is None else {"generic": self.params}

    def capture(self) -> Tree:
        strategy = capture(self._strategy)
        return {"strategy": strategy, "params": self.params, "extra": self._extra}

    def restore(self, captured: Tree) -> None:
        restore(self._strategy, captured["strategy"])
        self.params, self._extra = captured["params"], captured["extra"]
        self._arrays = self._record()

    def _record(self) -> ArrayRecord:
        model = {} if self.params is None else {"model": self.params}
        return TreeRecord({**self._extra, **model})


def _largest_integers(replies: Sequence[Message]) -> dict[str, torch.Tensor]:
    """Return the elementwise maximum of each integer array: counts are not averaged."""
    largest: dict[str, torch.Tensor] = {}
    for reply in replies:
        if reply.has_error():
            continue
        for record in reply.content.array_records.values():
            for name, array in record.items():
                if array.dtype.startswith(("float", "bfloat", "complex")):
                    continue
                value = torch.from_numpy(array.numpy())
                known = largest.get(name)
                largest[name] = value if known is None else torch.maximum(known, value)
    return largest


def _numbers(record: MetricRecord | None) -> dict[str, float]:
    if record is None:
        return {}
    return {k: float(v) for k, v in record.items() if not isinstance(v, list)}


def capture(strategy: Any) -> Any:
    """Return all that a strategy carries from round to round, ready for a checkpoint."""
    if isinstance(strategy, Strategy):
        return strategy.state
    return _attributes(strategy)


def restore(strategy: Any, captured: Any) -> None:
    """Give a newly constructed strategy what `capture` returned (in place)."""
    if isinstance(strategy, Strategy):
        strategy.state = captured
        return
    for name, value in captured.items():
        current = getattr(strategy, name, None)
        if isinstance(value, dict) and "object" in value:
            restore(current, value["object"])
        elif isinstance(value, dict) and "value" in value:
            setattr(strategy, name, _decode(value["value"]))


def _attributes(owner: Any) -> Tree:
    captured: Tree = {}
    for name, value in vars(owner).items():
        if isinstance(value, FlowerStrategy):
            captured[name] = {"object": capture(value)}
            continue
        try:
            captured[name] = {"value": _encode(value)}
        except TypeError:
            if not callable(value) and hasattr(value, "__dict__"):
                captured[name] = {"object": _attributes(value)}
    return captured


def _encode(value: Any) -> Any:
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, ArrayRecord):
        if isinstance(value, TreeRecord) and value.tree is not None:
            return {"kind": "tree", "items": value.tree}
        return {"kind": "arrays", "items": {k: a.numpy() for k, a in value.items()}}
    for kind, record in (("metrics", MetricRecord), ("config", ConfigRecord)):
        if isinstance(value, record):
            return {"kind": kind, "items": dict(value)}
    if isinstance(value, dict):
        return {"kind": "dict", "items": [[_encode(k), _encode(v)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {"kind": kind, "items": [_encode(v) for v in value]}
    raise TypeError(type(value).__name__)


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kind, items = value["kind"], value["items"]
    if kind == "tree":
        return TreeRecord(items)
    if kind == "arrays":
        return ArrayRecord({k: Array(np.asarray(a)) for k, a in items.items()})
    if kind == "metrics":
        return MetricRecord(items)
    if kind == "config":
        return ConfigRecord(items)
    if kind == "dict":
        return {_decode(k): _decode(v) for k, v in items}
    decoded = [_decode(v) for v in items]
    return decoded if kind == "list" else tuple(decoded)
