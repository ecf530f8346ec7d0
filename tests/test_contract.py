"""What every built-in strategy must keep, with the client method it comes with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.client import Update
from fedsim.components import build, lookup
from fedsim.components.options import REQUIRED, options
from fedsim.data.partition import Manifest
from fedsim.data.views import View
from fedsim.engine.jobs import Assignment, Block, WorkerSpec
from fedsim.engine.worker import Worker
from fedsim.errors import RunFailed
from fedsim.params import FlatModel, Params, trees
from fedsim.rounds.setup import Parts, server_context
from fedsim.runs.codec import from_bytes, to_bytes
from fedsim.strategy import Payload, Pooled
from tests.rounds.test_survival import StopAt
from tests.support.runs import SCENES, TESTS, assert_same, events, prepared, tiny

STRATEGIES = sorted(lookup.names("strategies"))
COHORTS = [n for n in STRATEGIES if not issubclass(lookup.resolve("strategies", n), Pooled)]
SENDING = [n for n in COHORTS if n != "local"]  # whose clients have something to send
CLIENTS = sorted(lookup.names("clients"))

NORMED = {"name": f"{TESTS}/models.py:normed"}
"""For strategies that refuse a model without BatchNorm."""

PROMPTED = {"name": "vit", "width": 16, "heads": 2, "layers": 2, "prompts": 3}
"""For strategies that refuse a model without prompts."""

_TOWERS = {
    "image": {"name": "cnn", "channels": [3], "hidden": 6},
    "text": {"name": "text", "width": 6},
}
PAIRED = {
    "name": "image-text",
    "dim": 6,
    **{f"{part}{m}": _TOWERS[m] for m in _TOWERS for part in ("", "server_", "pairs_")},
}
"""For strategies that refuse a model without towers of images and texts."""

DETECTING = ("fedsto", "ssfl-fedbn", "ssfl-feddyn", "ssfl-fedopt")
"""Strategies of detectors whose server has labels and whose clients have none."""


def required(kind: str, name: str) -> dict[str, Any]:
    """Return values for the options that have no default: none so far."""
    defaults = options(lookup.resolve(kind, name))
    missing = [option for option, (_, default) in defaults.items() if default is REQUIRED]
    assert not missing, f"{name} needs {missing}; give them here"
    return {}


def experiment(strategy: str, **changes: Any) -> dict[str, Any]:
    section = {"name": strategy, **required("strategies", strategy)}
    return tiny(**{"strategy": section, **fitting(strategy, **changes)})


def fitting(strategy: str, /, **changes: Any) -> dict[str, Any]:
    """Return the changes, with the model and data that a strategy can not do without.

    A partition that a test wants divides all samples but those of the server.
    """
    if strategy in DETECTING:
        return {**changes, **detecting(strategy, changes.get("partition"))}
    if strategy == "pfedpg":
        return {**changes, "model": PROMPTED}
    if strategy in ("fedbn", "silobn"):
        return {**changes, "model": NORMED}
    if strategy not in ("creamfl", "feddf", "multimodal-fedavg"):
        return changes
    # Clients and held-out parts as they were wanted, beside public pairs of images and texts.
    given = dict(changes.get("partition", {"name": "iid", "clients": 8}))
    kept = {key: given.pop(key) for key in ("clients", "validation", "test") if key in given}
    return {
        **changes,
        "dataset": {"name": "emoji", "vendors": ["noto"], "share": 0.12},
        "partition": {"name": "public", "size": 24, **kept, "within": given},
        "model": PAIRED,
        "client": {"epochs": 1, "batch_size": 32, "lr": 0.1},
    }


def detecting(strategy: str, partition: dict[str, Any] | None) -> dict[str, Any]:
    """Return sections with labels at the server; clients divide the rest as `partition` says."""
    sections = copy.deepcopy(SCENES)
    if partition is not None:
        rest = {key: value for key, value in partition.items() if key != "name"}
        within = {"name": partition["name"]}
        sections["partition"] = {**sections["partition"], **rest, "within": within}
    # Clients are in every round, and the server hardly moves what they make. An untrained teacher's
    # scores lie between the thresholds.
    stages = {} if strategy in ("ssfl-feddyn", "ssfl-fedopt") else {"stage1_rounds": 1}
    sections["strategy"] = {"name": strategy, "warm_up_rounds": 0, "lr": 1e-4, **stages}
    client = {"ssfl-fedopt": "fedsto"}.get(strategy, strategy)
    sections["client"] = {
        "name": client, "epochs": 1, "batch_size": 4, "lr": 0.01, "tau_low": 0.01, "tau_high": 0.03,
    }  # fmt: skip
    return sections


def numbers(update: Update) -> list[torch.Tensor]:
    """Return the tensors of an update that are not empty."""
    leaves = [leaf for _, leaf in trees.leaves(update.tensors)]
    flats = [leaf.flat if isinstance(leaf, Params) else leaf for leaf in leaves]
    return [flat for flat in flats if flat.numel()]


class Played:
    """A strategy and its clients, played by hand for a round."""

    def __init__(self, name: str, **changes: Any) -> None:
        settings = {"strategy": {"name": name}, **fitting(name, **changes)}
        self.experiment = prepared(**settings)
        dataset = build.build_dataset(self.experiment)
        self.manifest = build.build_partition(self.experiment, dataset)
        self.worker = Worker(WorkerSpec(self.experiment, public=self.manifest.public_rows))
        self.strategy = build.build_strategy(self.experiment)
        self.client = self.worker.client
        model = FlatModel(build.build_model(self.experiment, dataset.card))
        parts = Parts(self.experiment, dataset, self.manifest, self.strategy, self.client, model)
        self.strategy.bind(model.params(), server_context(parts))
        self.states: dict[int, Any] = {}

    def train(self, client: int, payload: Any, round: int = 1) -> Update:
        """Train a client as a worker does; its state is kept."""
        block = Block(0, round, "train")
        context = self.worker.context(block, client)
        state = self.states.get(client)
        if self.client.stateful and state is None:
            state = self.client.init_state(context)
        generator = fedsim.rng.torch_generator(0, "client", round, client)
        data = self.worker.data(Assignment(client, self.manifest.client(client)))
        self.states[client], update = self.client.train(payload, state, data, generator, context)
        update.client = None if self.strategy.weighted_mean else client
        return update

    def payload(self, round: int, client: int) -> dict[str, Any]:
        made = self.strategy.configure(self.strategy.state, round, range(8))
        if isinstance(made, Payload):
            return {**made.shared, **made.own.get(client, {}), "config": {}}
        return {**made, "config": {}}

    def round(self, round: int) -> list[Update]:
        return [self.train(c, self.payload(round, c), round) for c in range(self.clients)]

    @property
    def clients(self) -> int:
        return self.experiment.partition.clients


def bits(value: Any) -> bytes:
    return to_bytes(copy.deepcopy(value), "value")


def test_the_registry_knows_fedavg() -> None:
    assert "fedavg" in STRATEGIES
    assert "local-sgd" in CLIENTS


@pytest.mark.parametrize("name", STRATEGIES)
def test_state_survives_the_codec(name: str) -> None:
    played = Played(name)
    for round in (1, 2):
        state, metrics = played.strategy.aggregate(played.strategy.state, played.round(round))
        assert type(state) is type(played.strategy.state)
        assert all(isinstance(v, int | float) for v in metrics.values())
        encoded = to_bytes(state, "state")
        back = from_bytes(encoded)
        assert to_bytes(back, "state") == encoded
        assert type(back) is type(state)
        played.strategy.state = back
    for client, kept in played.states.items():
        assert kept is None or bits(from_bytes(bits(kept))) == bits(kept), client


@pytest.mark.parametrize("name", STRATEGIES)
def test_payload_and_update_have_the_keys_that_are_declared(name: str) -> None:
    played = Played(name)
    payload = played.payload(1, 0)
    assert played.strategy.sends <= set(payload)
    assert played.client.needs <= set(payload)
    update = played.train(0, payload)
    assert set(update.tensors) == played.client.sends
    assert played.strategy.needs <= set(update.tensors)
    assert update.weight > 0
    assert isinstance(played.strategy.generic(played.strategy.state), Params)


@pytest.mark.parametrize("name", STRATEGIES)
def test_inputs_are_not_touched(name: str) -> None:
    played = Played(name)
    payload = played.payload(1, 3)
    sent, before = bits(payload), bits(played.strategy.state)
    update = played.train(3, payload)
    assert bits(payload) == sent
    assert bits(played.strategy.state) == before
    other = played.train(4, payload)
    if name not in SENDING:
        return
    assert numbers(update)[0].data_ptr() != numbers(other)[0].data_ptr()
    updates = [update, other]
    given = [bits(u.tensors) for u in updates]
    state, _ = played.strategy.aggregate(played.strategy.state, updates)
    assert [bits(u.tensors) for u in updates] == given
    assert bits(played.strategy.state) == before
    assert state is not played.strategy.state
    assert bits(state) != before


@pytest.mark.parametrize("name", STRATEGIES)
def test_training_repeats_to_the_bit(name: str) -> None:
    one, two = Played(name), Played(name)
    assert bits(one.train(2, one.payload(1, 2)).tensors) == bits(
        two.train(2, two.payload(1, 2)).tensors
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_block_means_stand_for_their_clients(name: str) -> None:
    """Where a strategy calls its rule a weighted mean, blocks may be averaged in workers."""
    played = Played(name)
    if not played.strategy.weighted_mean:
        pytest.skip("its rule is no weighted mean")
    updates = played.round(1)
    whole, _ = played.strategy.aggregate(played.strategy.state, updates)
    blocks = []
    for some in (updates[:3], updates[3:]):
        mean = trees.WeightedMean()
        for update in some:
            mean.add(update.tensors, update.weight)
        blocks.append(Update(mean.mean(), mean.weight))
    parts, _ = played.strategy.aggregate(played.strategy.state, blocks)
    torch.testing.assert_close(
        played.strategy.generic(parts).flat,
        played.strategy.generic(whole).flat,
        rtol=1e-6,
        atol=1e-7,
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_serial_equals_resumed(name: str, tmp_path: Path) -> None:
    whole = fedsim.run(experiment(name), out=tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(experiment(name), out=tmp_path / "b", progress=StopAt(3))
    assert_same(fedsim.resume(tmp_path / "b/tiny/seed-0"), whole)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_serial_equals_parallel(name: str, ray8: Any, tmp_path: Path) -> None:
    model = {"name": "mlp", "hidden": [256]}
    serial = fedsim.run(experiment(name, model=model), out=tmp_path / "a")
    engine = {"name": "ray", "workers": 2}
    parallel = fedsim.run(experiment(name, model=model, engine=engine), out=tmp_path / "b")
    assert_same(parallel, serial)


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_client(name: str, tmp_path: Path) -> None:
    run = fedsim.run(experiment(name, partition={"name": "iid", "clients": 1}), out=tmp_path)
    assert (run.status, run.final["train/clients"]) == ("finished", 1)


@pytest.mark.parametrize("name", COHORTS)
def test_one_sample_a_client(name: str, tmp_path: Path) -> None:
    partition = {
        "name": f"{Path(__file__).resolve()}:one_sample_each",
        "clients": 5,
        "validation": 0.0,
        "test": 0.0,
    }
    run = fedsim.run(experiment(name, partition=partition), out=tmp_path)
    assert events(run) == []
    assert Manifest.load(run.path / "partition.npz").num_train.tolist() == [1] * 5
    assert run.client_values("train", "weight", last=True)["client"].tolist() == [0, 1, 2, 3, 4]
    assert (
        len(run.client_values("test", "generic/accuracy")) == 0
    )  # nothing of their own to test on


def one_sample_each(labels: Any, clients: int, rng: Any) -> Any:
    """Client k has sample k."""
    import numpy as np

    from fedsim.data.partition import Assignment

    return Assignment(np.arange(clients, dtype=np.int32), np.arange(clients + 1, dtype=np.int64))


@pytest.mark.parametrize("name", SENDING)
@pytest.mark.parametrize("how", ["raise", "nan"])
def test_all_clients_but_one_fail(
    name: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = type(build.build_client(prepared(**{"strategy": {"name": name}, **fitting(name)})))
    original = client.train

    def train(self: Any, payload: Any, state: Any, data: Any, rng: Any, ctx: Any) -> Any:
        if ctx.client_id != 5 and how == "raise":
            raise RuntimeError("not today")
        state, update = original(self, payload, state, data, rng, ctx)
        if ctx.client_id != 5:
            for tensor in numbers(update):
                tensor.fill_(float("nan"))
        return state, update

    monkeypatch.setattr(client, "train", train)
    monkeypatch.setattr(client, "group_size", lambda self, module: 1)
    run = fedsim.run(experiment(name, rounds=2), out=tmp_path)
    assert run.status == "finished"
    assert sorted({e[1] for e in events(run)}, key=str) == [0, 1, 2, 3, 4, 6, 7]
    assert len(events(run)) == 14
    assert run.final["train/clients"] == 1
    assert all(bool(torch.isfinite(t).all()) for t in run.arrays().values())
    tight = experiment(name, rounds=2, screening={"min_survivors": 2})
    with pytest.raises(RunFailed, match="only 1 of 8 clients"):
        fedsim.run(tight, out=tmp_path / "tight")


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_model_that_is_left_is_the_one_that_was_scored(name: str, tmp_path: Path) -> None:
    run = fedsim.run(experiment(name, rounds=2), out=tmp_path)
    scored = {n: v for n, v in run.final.items() if n.startswith("test/generic/")}
    if not scored:
        assert not any(v for v in run.final if v.startswith("test/generic"))
        return
    dataset = build.build_dataset(run.config)
    view = View(dataset.test, np.arange(len(dataset.test)), dataset.card)
    for metric, value in fedsim.evaluate.score(run.model(), view).items():
        assert scored[f"test/generic/{metric}"] == pytest.approx(value, rel=1e-6), metric
