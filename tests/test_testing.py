"""Every violation of the contract is caught and named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from fedsim.client import Update
from fedsim.components.registered import reference_of
from fedsim.params import Params
from fedsim.testing import check_client, check_strategy
from fedsim.training.local_sgd import LocalSGD
from strategies.fedavg import FedAvg


def test_sound_methods_pass() -> None:
    check_strategy("fedavg")
    check_client(LocalSGD)


class UndeclaredPayload(FedAvg):
    sends = frozenset({"model", "prototypes"})


class ChangesItsState(FedAvg):
    def aggregate(self, state: Any, updates: Sequence[Update]) -> Any:
        state.model.flat.add_(1.0)
        return super().aggregate(state, updates)


class ChangesItsUpdates(FedAvg):
    def aggregate(self, state: Any, updates: Sequence[Update]) -> Any:
        updates[0].tensors["model"].flat.mul_(0.5)
        return super().aggregate(state, updates)


class LearnsNothing(FedAvg):
    def aggregate(self, state: Any, updates: Sequence[Update]) -> Any:
        return type(state)(**vars(state)), {}


class StateOfAnotherType(FedAvg):
    def aggregate(self, state: Any, updates: Sequence[Update]) -> Any:
        state, metrics = super().aggregate(state, updates)
        return {"model": state.model}, metrics

    def generic(self, state: Any) -> Params:
        return state["model"] if isinstance(state, dict) else state.model


@dataclass
class Open:
    model: Params
    file: Any = None


class StateWithoutACodec(FedAvg):
    def init(self, params: Params, ctx: Any) -> Any:
        return Open(params)

    def aggregate(self, state: Any, updates: Sequence[Update]) -> Any:
        mean = updates[0].tensors["model"]
        return Open(mean.clone(), object() if len(updates) > 2 else None), {}


class RemembersRounds(FedAvg):
    weighted_mean = False

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.rounds = 0

    def aggregate(self, state: Any, updates: Sequence[Update]) -> Any:
        self.rounds += 1
        model = updates[0].tensors["model"] * (1 + 0.1 * self.rounds)
        return type(state)(**{**vars(state), "model": model}), {}


class NoMean(FedAvg):
    weighted_mean = True

    def aggregate(self, state: Any, updates: Sequence[Update]) -> Any:
        model = updates[0].tensors["model"].clone()
        return type(state)(**{**vars(state), "model": model}), {}


@pytest.mark.parametrize(
    ("strategy", "violation"),
    [
        (UndeclaredPayload, r"Strategy.sends declares \['prototypes'\], absent from the payload"),
        (ChangesItsState, "aggregate changes the state in place"),
        (ChangesItsUpdates, "aggregate changes an update in place"),
        (LearnsNothing, "aggregate makes nothing of the updates"),
        (StateOfAnotherType, "aggregate returns a dict as state"),
        (StateWithoutACodec, "the strategy's state cannot be written to a checkpoint"),
        (RemembersRounds, "an interrupted and resumed run differs"),
        (NoMean, "weighted_mean is declared, but aggregate sees more of the updates"),
    ],
)
def test_broken_strategies_are_named(strategy: type, violation: str) -> None:
    with pytest.raises(AssertionError, match=f"^{strategy.__name__} with client .*{violation}"):
        check_strategy(strategy)


class UndeclaredKey(LocalSGD):
    def train(self, payload: Any, state: Any, data: Any, rng: Any, ctx: Any) -> Any:
        state, update = super().train(payload, state, data, rng, ctx)
        update.tensors["secret"] = update.tensors["model"].clone()
        return state, update


class NoWeight(LocalSGD):
    def train(self, payload: Any, state: Any, data: Any, rng: Any, ctx: Any) -> Any:
        state, update = super().train(payload, state, data, rng, ctx)
        update.weight = 0.0
        return state, update


class ChangesItsPayload(LocalSGD):
    def train(self, payload: Any, state: Any, data: Any, rng: Any, ctx: Any) -> Any:
        result = super().train(payload, state, data, rng, ctx)
        payload["model"].flat.add_(1.0)
        return result


class SendsTheResidentModel(LocalSGD):
    def train(self, payload: Any, state: Any, data: Any, rng: Any, ctx: Any) -> Any:
        state, update = super().train(payload, state, data, rng, ctx)
        ctx.model.load(update.tensors["model"])
        return state, Update({"model": Params(ctx.model.layout, ctx.model.flat)}, update.weight)


class RemembersCalls(LocalSGD):
    calls = 0

    def train(self, payload: Any, state: Any, data: Any, rng: Any, ctx: Any) -> Any:
        RemembersCalls.calls += 1
        state, update = super().train(payload, state, data, rng, ctx)
        update.tensors["model"].flat.add_(0.001 * RemembersCalls.calls)
        return state, update


class NeedsTwoSamples(LocalSGD):
    def train(self, payload: Any, state: Any, data: Any, rng: Any, ctx: Any) -> Any:
        if len(data.train) < 2:
            raise ValueError("too few samples")
        return super().train(payload, state, data, rng, ctx)

    def group_size(self, module: Any) -> int:
        return 1


@pytest.mark.parametrize(
    ("client", "violation"),
    [
        (UndeclaredKey, r"Client.sends declares \['model'\], but the update has"),
        (NoWeight, "Update.weight must be > 0 and finite, got 0.0"),
        (ChangesItsPayload, "train changes its payload in place"),
        (SendsTheResidentModel, "training a client changes the update of another"),
        (RemembersCalls, "training twice from the same inputs gives different updates"),
    ],
)
def test_broken_clients_are_named(client: type, violation: str) -> None:
    with pytest.raises(AssertionError, match=f"with client {client.__name__}: {violation}"):
        check_client(client)


def test_clients_that_need_many_samples_are_named() -> None:
    with pytest.raises(AssertionError, match=r"with one training sample a client stops: .*too few"):
        check_client({"name": reference_of(NeedsTwoSamples, "client")})
