"""Contract checks for strategies and client methods, to call from a test.

    from fedsim.testing import check_client, check_strategy

    check_strategy(TrimmedMean, trim=0.1)
    check_client("./my_method.py:MyMethod", mu=0.01)

Each check plays a few rounds of a small experiment in this process. `STRATEGY_CHECKS` lists them;
a violation is an `AssertionError` that names, in one sentence, the method and what it broke.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim import rng
from fedsim.api import prepare, resume, run
from fedsim.client import Client, ClientContext, Update
from fedsim.components import build
from fedsim.components.registered import reference_of
from fedsim.config.experiment import Experiment
from fedsim.data.partition import Assignment
from fedsim.data.views import ClientData, View
from fedsim.engine.jobs import Block, ClientJob, WorkerSpec
from fedsim.engine.worker import Worker
from fedsim.errors import InputError, RunFailed
from fedsim.evaluate.scoring import score
from fedsim.params import FlatModel, Params, trees
from fedsim.rounds.progress import Progress
from fedsim.rounds.setup import Parts, server_context
from fedsim.runs.codec import from_bytes, to_bytes
from fedsim.runs.results import Run
from fedsim.strategy import Payload, Pooled, Strategy

Section = Mapping[str, Any]

MODEL: Section = {"name": "mlp", "hidden": [16]}
DATASET: Section = {"name": "digits"}
PARTITION: Section = {"name": "dirichlet", "clients": 8, "alpha": 1.0}
TRAINING: Section = {"epochs": 1, "batch_size": 32, "lr": 0.1}

SURVIVOR = 5
"""The client that alone trains well where all others fail, if it is drawn."""

_TIMINGS = ("seconds", "train_seconds", "virtual_seconds")


def check_strategy(
    strategy: str | type | Section,
    *,
    client: str | type | Section | None = None,
    model: str | Section = MODEL,
    dataset: str | Section = DATASET,
    partition: Section = PARTITION,
    **options: Any,
) -> None:
    """Check that a strategy keeps what the platform relies on, with the client that it runs with.

    A component is its name in an experiment file, its class, or its section; `options` are the
    strategy's. `client` is the method that comes with the strategy unless given. The partition
    needs at least 6 clients.

    Raises:
        AssertionError: names what was violated.
        InputError: the components do not fit each other.
    """
    with Method(experiment(strategy, client, model, dataset, partition, **options)) as method:
        method.check_kinds()
        for check in STRATEGY_CHECKS:
            check(method)


def check_client(
    client: str | type | Section,
    *,
    strategy: str | type | Section = "fedavg",
    model: str | Section = MODEL,
    dataset: str | Section = DATASET,
    partition: Section = PARTITION,
    **options: Any,
) -> None:
    """Check a client method as `check_strategy` does; `options` are the client's.

    Raises:
        AssertionError: names what was violated.
        InputError: the components do not fit each other.
    """
    check_strategy(
        strategy,
        client={**_section("clients", client), **options},
        model=model,
        dataset=dataset,
        partition=partition,
    )


def experiment(
    strategy: str | type | Section,
    client: str | type | Section | None = None,
    model: str | Section = MODEL,
    dataset: str | Section = DATASET,
    partition: Section = PARTITION,
    **options: Any,
) -> dict[str, Any]:
    """Return the experiment of the checks: three serial rounds, each checkpointed."""
    return {
        "name": "contract",
        "rounds": 3,
        "dataset": _section("datasets", dataset),
        "partition": dict(partition),
        "model": _section("models", model),
        "strategy": {**_section("strategies", strategy), **options},
        "client": {**TRAINING, **({} if client is None else _section("clients", client))},
        "participation": 1.0,
        "engine": {"name": "serial"},
        "checkpoint": {"min_seconds": 0},
    }


def _section(kind: str, component: str | type | Section) -> dict[str, Any]:
    if isinstance(component, Mapping):
        return dict(component)
    return {"name": component if isinstance(component, str) else reference_of(component, kind)}


class Scene:
    """A strategy and its clients, played by hand; the states of the clients are kept."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        dataset = build.build_dataset(experiment)
        self.manifest = build.build_partition(experiment, dataset)
        self.worker = Worker(WorkerSpec(experiment, public=self.manifest.public_rows))
        self.client: Any = self.worker.client
        self.initial: Params = self.worker.model.params()
        self.states: dict[int, Any] = {}

    @cached_property
    def strategy(self) -> Any:
        """The strategy, bound to the initial model."""
        strategy, dataset = build.build_strategy(self.experiment), self.worker.dataset
        model = FlatModel(build.build_model(self.experiment, dataset.card))
        parts = Parts(self.experiment, dataset, self.manifest, strategy, self.client, model)
        strategy.bind(model.params(), server_context(parts))
        return strategy

    @property
    def clients(self) -> range:
        return range(self.experiment.partition.clients)

    def context(self, client: int = 0, round: int = 1) -> ClientContext:
        return self.worker.context(Block(0, round, "train"), client)

    def data(self, client: int = 0) -> ClientData:
        return self.worker.data(ClientJob(client, self.manifest.client(client)))

    def rng(self, client: int = 0, round: int = 1) -> torch.Generator:
        return rng.torch_generator(self.experiment.seed, "client", round, client)

    def payload(self, round: int, client: int) -> dict[str, Any]:
        """Return what a client is sent in a round."""
        payload = self.strategy.configure(self.strategy.state, round, self.clients)
        if isinstance(payload, Payload):
            payload = {**payload.shared, **payload.own.get(client, {})}
        return {**payload, "config": {}}

    def update(self, client: int, payload: Any, round: int = 1) -> Update:
        """Train a client and keep its state."""
        context = self.context(client, round)
        state = self.states.get(client)
        if self.client.stateful and state is None:
            state = self.client.init_state(context)
        data, generator = self.data(client), self.rng(client, round)
        self.states[client], update = self.client.train(payload, state, data, generator, context)
        update.client = None if self.strategy.weighted_mean else client
        return update

    def updates(self, round: int) -> list[Update]:
        """Train every client on its payload of the round."""
        return [self.update(c, self.payload(round, c), round) for c in self.clients]

    def aggregate(self, updates: Sequence[Update]) -> tuple[Any, Mapping[str, float]]:
        return self.strategy.aggregate(self.strategy.state, updates)


class Method:
    """An experiment under check, and the run that several checks compare with.

    `source` is a mapping with the keys of an experiment file. Runs are kept until the context ends.
    """

    def __init__(self, source: dict[str, Any]) -> None:
        self.source = source
        self.experiment = prepare(source)
        names = (self.experiment.strategy.name, str(self.experiment.client.name))
        self.name = " with client ".join(n.rpartition(":")[2] or n for n in names)
        self._folder = tempfile.TemporaryDirectory(prefix="fedsim-testing-")

    def __enter__(self) -> Method:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def check_kinds(self) -> None:
        """Raise `InputError` unless strategy and client are fedsim's own kinds."""
        strategy = build.build_strategy(self.experiment)
        if not isinstance(strategy, Strategy):
            raise InputError(f"{self.name}: the strategy must be a fedsim.Strategy")
        if not isinstance(build.build_client(self.experiment), Client):
            raise InputError(f"{self.name}: the client must be a fedsim.Client")

    def scene(self) -> Scene:
        return Scene(self.experiment)

    def cohorts(self, rounds: int, population: int) -> list[list[int]]:
        """Return the clients that the strategy draws in each of the first rounds."""
        strategy = self.scene().strategy
        return [strategy.drawn(round, population) for round in range(1, rounds + 1)]

    def run(self, title: str, **changes: Any) -> Run:
        """Run the experiment with these sections in place of its own."""
        try:
            return run({**self.source, **changes}, out=self.out(title.replace(" ", "-")))
        except RunFailed as error:
            raise AssertionError(f"{self.name}: the run with {title} stops: {error}") from error

    def out(self, name: str) -> Path:
        return Path(self._folder.name) / name

    @cached_property
    def whole(self) -> Run:
        """The run that nothing interrupts."""
        return self.run("all clients")

    def divided(self, clients: int, within: str) -> dict[str, Any]:
        """Return the partition's section with its clients divided in another way."""
        section: dict[str, Any] = copy.deepcopy(dict(self.source["partition"]))
        if "within" not in section:
            kept = [key for key in ("validation", "test") if key in section]
            return {"name": within, "clients": clients, **{key: section[key] for key in kept}}
        return {**section, "clients": clients, "within": {"name": within}}

    def expect(self, condition: Any, violation: str) -> None:
        """Raise `AssertionError` with the violation unless the condition holds."""
        if not condition:
            raise AssertionError(f"{self.name}: {violation}")


def declared_keys(method: Method) -> None:
    """Payloads and updates have the keys that the classes declare."""
    scene = method.scene()
    strategy, client, payload = scene.strategy, scene.client, scene.payload(1, 0)
    missing = sorted(strategy.sends - set(payload))
    method.expect(not missing, f"Strategy.sends declares {missing}, absent from the payload")
    missing = sorted(client.needs - set(payload))
    method.expect(not missing, f"Client.needs declares {missing}, absent from the payload")
    update = scene.update(0, payload)
    keys, sends = sorted(update.tensors), sorted(client.sends)
    method.expect(keys == sends, f"Client.sends declares {sends}, but the update has {keys}")
    missing = sorted(strategy.needs - set(keys))
    method.expect(not missing, f"Strategy.needs declares {missing}, absent from the update")
    method.expect(
        update.weight > 0 and math.isfinite(update.weight),
        f"Update.weight must be > 0 and finite, got {update.weight!r}",
    )
    model = strategy.generic(strategy.state)
    method.expect(
        isinstance(model, Params), f"Strategy.generic must return Params, got {_type(model)}"
    )


def untouched_inputs(method: Method) -> None:
    """Neither `train` nor `aggregate` changes what it is given."""
    scene = method.scene()
    strategy = scene.strategy
    before = _bits(strategy.state)
    payload = scene.payload(1, 3)
    sent = _bits(payload)
    method.expect(_bits(strategy.state) == before, "configure changes the state in place")
    update = scene.update(3, payload)
    method.expect(_bits(payload) == sent, "train changes its payload in place")
    method.expect(_bits(strategy.state) == before, "train changes the strategy's state in place")
    first = _bits(update.tensors)
    other = scene.update(4, payload)
    method.expect(_bits(update.tensors) == first, "training a client changes the update of another")
    if isinstance(strategy, Pooled) or not numbers(update):
        return
    method.expect(
        numbers(update)[0].data_ptr() != numbers(other)[0].data_ptr(),
        "the updates of two clients share memory",
    )
    updates = [update, other]
    tensors = [_bits(u.tensors) for u in updates]
    state, _ = scene.aggregate(updates)
    method.expect(
        [_bits(u.tensors) for u in updates] == tensors, "aggregate changes an update in place"
    )
    method.expect(
        state is not strategy.state and _bits(strategy.state) == before,
        "aggregate changes the state in place",
    )
    method.expect(_bits(state) != before, "aggregate makes nothing of the updates")


def states_round_trip(method: Method) -> None:
    """States of server and clients pass through a checkpoint unchanged."""
    scene = method.scene()
    for round in (1, 2):
        state, metrics = scene.aggregate(scene.updates(round))
        expected = type(scene.strategy.state)
        method.expect(
            type(state) is expected,
            f"aggregate returns a {_type(state)} as state, init a {expected.__name__}",
        )
        for name, value in metrics.items():
            method.expect(
                isinstance(value, int | float),
                f"metric {name!r} of aggregate must be a number, got a {_type(value)}",
            )
        scene.strategy.state = _through_checkpoint(method, state, "the strategy's state")
    for client, state in scene.states.items():
        if state is not None:
            _through_checkpoint(method, state, f"the state of client {client}")


def repeated_training(method: Method) -> None:
    """The same payload, state, data and generator give the same update."""
    scenes = [method.scene() for _ in range(2)]
    one, two = (_bits(s.update(2, s.payload(1, 2)).tensors) for s in scenes)
    method.expect(one == two, "training twice from the same inputs gives different updates")
    scene = scenes[0]
    scene.states.clear()
    again = _bits(scene.update(2, scene.payload(1, 2)).tensors)
    method.expect(one == again, "train keeps something outside the client's state")


def block_means(method: Method) -> None:
    """A strategy with `weighted_mean` gives the same for means of blocks of clients."""
    scene = method.scene()
    if not scene.strategy.weighted_mean:
        return
    updates = scene.updates(1)
    means = []
    for block in (updates[:3], updates[3:]):
        mean = trees.WeightedMean()
        for update in block:
            mean.add(update.tensors, update.weight)
        means.append(Update(mean.mean(), mean.weight))
    whole, parts = (scene.strategy.generic(scene.aggregate(u)[0]) for u in (updates, means))
    method.expect(
        torch.allclose(parts.flat.double(), whole.flat.double(), rtol=1e-6, atol=1e-7),
        "weighted_mean is declared, but aggregate sees more of the updates than their mean",
    )


def resumed_run(method: Method) -> None:
    """A run interrupted in round 3 and resumed is the uninterrupted one, bit for bit."""
    out = method.out("interrupted")
    with suppress(KeyboardInterrupt):
        run(method.source, out=out, progress=_Interrupt(3))
    resumed = resume(next(out.glob("*/seed-*")))
    method.expect(
        _record(resumed) == _record(method.whole),
        "an interrupted and resumed run differs from one that was never interrupted: something "
        "outlives a round that is not in the state",
    )


def scored_model(method: Method) -> None:
    """The model that a run leaves scores what the run recorded last."""
    whole = method.whole
    prefix = "test/generic/"
    scores = {n.removeprefix(prefix): v for n, v in whole.final.items() if n.startswith(prefix)}
    if not scores:
        return
    dataset = build.build_dataset(method.experiment)
    view = View(dataset.test, np.arange(len(dataset.test)), dataset.card)
    for metric, value in score(whole.model(), view).items():
        method.expect(
            math.isclose(scores.get(metric, math.nan), value, rel_tol=1e-6),
            f"the run recorded {metric} {scores.get(metric)}, the model it left has {value}",
        )


def single_client(method: Method) -> None:
    """A run with one client finishes."""
    result = method.run("a single client", partition=method.divided(1, "iid"))
    [*_, cohort] = method.cohorts(3, 1)
    method.expect(
        result.final.get("train/clients") == len(cohort),
        "a run with a single client loses that client",
    )


def single_samples(method: Method) -> None:
    """Clients with one sample each, and none to test on, take part."""
    if isinstance(method.scene().strategy, Pooled):
        return
    section = method.divided(5, f"{__name__}:one_sample_each")
    result = method.run(
        "one training sample a client", partition={**section, "validation": 0.0, "test": 0.0}
    )
    failures = result.events["text"].tolist()
    method.expect(not failures, f"clients with one training sample fail: {failures[:1]}")
    clients = result.client_values("train", "weight", last=True)["client"].tolist()
    [*_, cohort] = method.cohorts(3, 5)
    method.expect(clients == cohort, "clients with one training sample are left out")
    tested = len(result.client_values("test", "generic/accuracy"))
    method.expect(tested == 0, "clients without test samples have test scores")


def failing_clients(method: Method) -> None:
    """A round survives clients that raise and clients that send NaN."""
    scene = method.scene()
    if isinstance(scene.strategy, Pooled) or not numbers(scene.update(0, scene.payload(1, 0))):
        return
    cohorts = method.cohorts(2, len(scene.clients))
    always = set.intersection(*map(set, filter(None, cohorts))) if any(cohorts) else set()
    if not always:
        return
    survivor = SURVIVOR if SURVIVOR in always else max(always)
    lost = sorted(client for cohort in cohorts for client in cohort if client != survivor)
    with _failing(type(scene.client), survivor):
        result = method.run("clients that fail", rounds=2)
    events, left = result.events, result.final["train/clients"]
    method.expect(
        sorted(events["client"].astype(int).tolist()) == lost and left == bool(cohorts[-1]),
        f"of the clients of two rounds all but client {survivor} fail, {len(lost)} times, but "
        f"{len(events)} failures and {left:g} clients of the last round are recorded",
    )
    method.expect(
        all(bool(torch.isfinite(t).all()) for t in result.arrays().values()),
        "NaN of a client's update reaches the model",
    )


STRATEGY_CHECKS: tuple[Callable[[Method], None], ...] = (
    declared_keys,
    untouched_inputs,
    states_round_trip,
    repeated_training,
    block_means,
    resumed_run,
    scored_model,
    single_client,
    single_samples,
    failing_clients,
)
"""The checks of `check_strategy`, cheap ones first."""


def one_sample_each(samples: Any, clients: int, rng: Any) -> Assignment:
    """Give client k sample k."""
    return Assignment(np.arange(clients, dtype=np.int32), np.arange(clients + 1, dtype=np.int64))


def numbers(update: Update) -> list[Tensor]:
    """Return the tensors of an update that are not empty."""
    leaves = [leaf for _, leaf in trees.leaves(update.tensors)]
    flats = [leaf.flat if isinstance(leaf, Params) else leaf for leaf in leaves]
    return [flat for flat in flats if flat.numel()]


class _Interrupt(Progress):
    """Raises KeyboardInterrupt in the middle of a round."""

    def __init__(self, round: int) -> None:
        super().__init__()
        self.round = round

    def cohort(self, round: int, done: int, total: int) -> None:
        if round == self.round:
            raise KeyboardInterrupt


@contextmanager
def _failing(client: type, survivor: int) -> Iterator[None]:
    """Let clients with an even id raise and the others send NaN, all but one."""
    train = client.train  # type: ignore[attr-defined]

    def fail(self: Any, payload: Any, state: Any, data: Any, rng: Any, ctx: Any) -> Any:
        if ctx.client_id != survivor and ctx.client_id % 2 == 0:
            raise RuntimeError("a client that fails")
        state, update = train(self, payload, state, data, rng, ctx)
        if ctx.client_id != survivor:
            for tensor in numbers(update):
                tensor.fill_(float("nan"))
        return state, update

    methods = {"train": fail, "group_size": lambda self, module: 1}
    own = {name: vars(client)[name] for name in methods if name in vars(client)}
    for name, value in methods.items():
        setattr(client, name, value)
    try:
        yield
    finally:
        for name in methods:
            setattr(client, name, own[name]) if name in own else delattr(client, name)


def _bits(value: Any) -> bytes:
    return to_bytes(copy.deepcopy(value), "value")


def _type(value: Any) -> str:
    return type(value).__name__


def _through_checkpoint(method: Method, state: Any, label: str) -> Any:
    try:
        encoded = to_bytes(state, label)
        restored = from_bytes(encoded)
    except Exception as error:
        text = f"{method.name}: {label} cannot be written to a checkpoint: {error}"
        raise AssertionError(text) from error
    method.expect(
        type(restored) is type(state) and to_bytes(restored, label) == encoded,
        f"{label} comes back changed from a checkpoint",
    )
    return restored


def _record(result: Run) -> tuple[Any, ...]:
    """Return all that two equal runs share: every measured value and the model's bits."""
    values = []
    for split, keys in (
        (result.metrics, ["round", "split", "name"]),
        (result.clients, ["round", "split", "name", "client"]),
    ):
        frame = split[~split["name"].isin(_TIMINGS)]
        columns = [frame[key].tolist() for key in keys]
        values.append(sorted(zip(*columns, map(float.hex, frame["value"]), strict=True)))
    return (*values, to_bytes(dict(sorted(result.arrays().items())), "model"))
