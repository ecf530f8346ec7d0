"""Servers: adaptors between the round loop and a strategy.

    plan(round)        -> Plan       sample the cohort, configure its payload
    take(round, log)   -> metrics    aggregate the updates

`OwnServer` calls the hooks of a `fedsim.Strategy`; `fedsim.rounds.flower_server` drives any other
strategy through Flower's abstract methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from fedsim.client import Update
from fedsim.engine.jobs import RoundLog, numbers
from fedsim.engine.schedule import Dispatch, Plan
from fedsim.errors import RunFailed
from fedsim.params import Params, trees
from fedsim.params.trees import Tree
from fedsim.rng import seeded_globals
from fedsim.rounds.setup import Parts, server_context
from fedsim.strategy import Payload, Strategy


class Server(Protocol):
    """A strategy at work in a run."""

    params: Params | None
    """The generic model, whole or in part; None before a strategy has made one."""

    def plan(self, round: int) -> Plan:
        """Return what the clients of a round are asked to train.

        Raises:
            RunFailed: the strategy addresses no client though it needs some.
        """

    def take(self, round: int, log: RoundLog) -> dict[str, float]:
        """Aggregate what the clients reported; return the strategy's metrics.

        Raises:
            RunFailed: the strategy makes no usable model of it.
        """

    def plan_evaluation(self, round: int) -> Plan:
        """Return what clients are asked to evaluate on their own data."""

    def take_evaluation(self, round: int, log: RoundLog) -> dict[str, float]:
        """Return the metrics of an evaluation over all clients that took part in it."""

    def models(self) -> Mapping[str, Params]:
        """Return the models to be scored on the global test set, by the name of their metrics."""

    def capture(self) -> Tree:
        """Return all that is carried from round to round, for a checkpoint."""

    def restore(self, captured: Tree) -> None:
        """Continue from what `capture` returned."""


def has_hooks_only(strategy: Any) -> bool:
    """Whether a strategy is one of ours that leaves Flower's methods as they are."""
    methods = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")
    return isinstance(strategy, Strategy) and all(
        getattr(type(strategy), name) is getattr(Strategy, name) for name in methods
    )


class OwnServer:
    """Calls the hooks of a `fedsim.Strategy`; no Flower message is made."""

    def __init__(self, parts: Parts, initial: Params, evaluation_clients: Sequence[int]) -> None:
        self.params: Params | None = initial
        self._strategy: Strategy = parts.strategy
        self._experiment = parts.experiment
        self._initial = initial
        self._sends = parts.client.sends
        self._evaluation_clients = evaluation_clients
        self._strategy.bind(initial.clone(), server_context(parts))

    def plan(self, round: int) -> Plan:
        strategy, experiment = self._strategy, self._experiment
        with seeded_globals(experiment.seed, "strategy/configure", round):
            cohort = strategy.drawn(round, experiment.partition.clients)
            if not cohort:
                return Plan(round, True, [])
            payload = Payload.of(strategy.configure(strategy.state, round, cohort))
        keys = set(payload.shared) | set(payload.own.get(cohort[0], ()))
        # A mean over what each client adds to the payload's keys is screened singly first.
        mean = strategy.weighted_mean and self._sends <= keys
        return Plan(round, True, [_dispatch(round, cohort, payload)], mean)

    def take(self, round: int, log: RoundLog) -> dict[str, float]:
        strategy = self._strategy
        with seeded_globals(self._experiment.seed, "strategy/aggregate", round):
            updates = _updates(log, named=not strategy.weighted_mean)
            strategy.state, metrics = strategy.aggregate(strategy.state, updates)
            params = strategy.generic(strategy.state)
        where = f"round {round}: strategy {self._experiment.strategy.name!r}"
        check_model(params, self._initial, where)
        self.params = params
        return numbers({k: v for k, v in metrics.items() if not isinstance(v, list)})

    def plan_evaluation(self, round: int) -> Plan:
        strategy, clients = self._strategy, self._evaluation_clients
        with seeded_globals(self._experiment.seed, "strategy/configure-evaluate", round):
            payload = Payload.of(strategy.configure(strategy.state, round, clients))
        return Plan(round, False, [_dispatch(round, clients, payload)])

    def take_evaluation(self, round: int, log: RoundLog) -> dict[str, float]:
        values: dict[str, list[float]] = {}
        for report in log.survivors():
            for name, value in report.metrics.items():
                values.setdefault(name, []).append(value)
        return {name: float(np.mean(column)) for name, column in sorted(values.items())}

    def models(self) -> Mapping[str, Params]:
        return self._strategy.scored(self._strategy.state)

    def capture(self) -> Tree:
        return {"strategy": self._strategy.state, "params": self.params, "extra": {}}

    def restore(self, captured: Tree) -> None:
        self._strategy.state = captured["strategy"]
        self.params = captured["params"]


def _dispatch(round: int, clients: Sequence[int], payload: Payload) -> Dispatch:
    shared = {**payload.shared, "config": {"server-round": round}}
    return Dispatch(clients, shared, trees.num_bytes(shared), payload.own)


def _updates(log: RoundLog, named: bool) -> list[Update]:
    """Return the updates of the clients that are left, or the one that is their mean.

    `named` updates say who sent them.
    """
    if log.sums is None:
        return [
            Update(r.update or {}, float(r.weight), r.metrics, r.client if named else None)
            for r in log.survivors()
        ]
    return [] if log.num_survivors == 0 else [Update(*log.mean())]


def check_model(params: Any, like: Params, where: str) -> None:
    """Raise `RunFailed` unless these are parameters of the model, all or some, and finite.

    `like` are the model's; the message begins with `where`.
    """
    if not isinstance(params, Params):
        raise RunFailed(f"{where} made no model: it has none of the model's tensors by name")
    if params.layout != like.layout:
        for name in params:
            known = like[name].shape if name in like else None
            if known != params[name].shape:
                raise RunFailed(
                    f"{where} made a model with {name!r} of shape {tuple(params[name].shape)}, "
                    f"expected {'no such tensor' if known is None else tuple(known)}"
                )
    if not bool(torch.isfinite(params.flat).all()):
        bad = next(n for n in params.layout.names if not bool(torch.isfinite(params[n]).all()))
        count = int((~torch.isfinite(params[bad])).sum())
        raise RunFailed(
            f"{where} made a model that is not finite: {count} of {params[bad].numel()} "
            f"elements of {bad!r} are NaN or infinite"
        )
