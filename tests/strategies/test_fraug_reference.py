"""FRAug's client against a plain one: modules, autograd and `torch.optim` (arXiv:2205.14900).

`Plain` is the method's text step by step in double precision. It shares the addresses of the
random streams with the client, no code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedsim
from fedsim.client import Update
from fedsim.models.blocks.conditional import Stack
from fedsim.params import Params
from fedsim.strategy import ServerContext
from strategies.fraug import FRAug
from tests.support.played import Player
from tests.support.runs import TESTS, tiny

MODELS: dict[str, dict[str, Any]] = {
    "plain": {"name": "mlp", "hidden": [16]},
    "normed": {"name": f"{TESTS}/models.py:normed"},
}
DEFAULTS: dict[str, Any] = {
    "augment": "both",
    "use_rtnet": True,
    "interpolate": False,
    "noise": "uniform",
    "generator_lr": 0.05,
    "rtnet_lr": 0.05,
    "lam_g": 1.0,
    "lam_r": 1.0,
    "dist_g": "mmd",
    "dist_r": "mmd",
    "prototype_momentum": 0.3,
    "generator_clip": None,
    "momentum": 0.0,
    "z_dim": None,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "many": {
        "noise": "gaussian", "z_dim": 5, "generator_clip": 0.1, "dist_g": "mse", "dist_r": "mse",
        "interpolate": True, "lam_g": 0.3, "lam_r": 2.0,
    },
    "prototype": {"augment": "prototype", "prototype_momentum": 0.6},
    "real": {"augment": "real", "lam_r": 3.0, "rtnet_lr": 0.2},
    "without-rtnet": {"use_rtnet": False, "generator_lr": 0.2},
    "momentum": {"momentum": 0.5},
}  # fmt: skip
CLIENTS, CLASSES, BATCH, STEPS, ROUNDS, GAMMA, SEED = (0, 1), 10, 8, 3, 10, 0.2, 3
LAYERS = {"first": "0", "first_norm": "1", "last": "3", "last_norm": "4"}


class Plain:
    """A client: three networks, prototypes, and how many steps it has made."""

    def __init__(self, options: dict[str, Any], module: nn.Module, client: int) -> None:
        self.options, self.client = {**DEFAULTS, **options}, client
        self.model: Any = copy.deepcopy(module).double().requires_grad_()
        dim = self.model.head.in_features
        self.noise = self.options["z_dim"] or dim // 2
        self.g = generator(SEED, self.noise, dim)
        self.r = two_layers("fraug/rtnet", SEED, client, dim, self.noise, dim)
        self.prototypes = torch.zeros(CLASSES, dim, dtype=torch.float64)
        self.steps = 0

    def train(
        self,
        theta: dict[str, Tensor],
        omega: dict[str, Tensor],
        round: int,
        batches: list[tuple[Tensor, Tensor]],
    ) -> None:
        options = self.options
        self.model.load_state_dict(theta, strict=False)
        self.g.load_state_dict(omega)
        rates = (
            (self.model, 0.1),
            (self.g, options["generator_lr"]),
            (self.r, options["rtnet_lr"]),
        )
        sgd = [torch.optim.SGD(n.parameters(), lr, options["momentum"]) for n, lr in rates]
        rng = fedsim.rng.torch_generator(SEED, "fraug/noise", round, self.client)
        rho = math.exp(GAMMA * (round - 1 - ROUNDS))
        for x, y in batches:
            s = torch.tensor([(self.steps * len(y) + i) % CLASSES for i in range(len(y))])
            self.step_a(sgd[0], x.double(), y, s, rng, rho)
            self.model.eval()
            v = self.model.body(x.double()).detach()
            self.step_b(sgd[1], v, s, rng)
            if options["use_rtnet"]:
                self.step_c(sgd[2], v, y, s, rng)
            self.steps += 1

    def step_a(
        self, sgd: Any, x: Tensor, y: Tensor, s: Tensor, rng: torch.Generator, rho: float
    ) -> None:
        self.model.train()
        self.g.eval()
        self.r.eval()
        v, m = self.model.body(x), self.options["prototype_momentum"]
        for q in y.unique():
            mean = v[y == q].mean(0).detach()
            self.prototypes[q] = (1 - m) * self.prototypes[q] + m * mean
        losses = []
        for z, labels, base in self.parts(v.detach(), y, s, rng):
            e = self.around(z, labels, base).detach()
            if self.options["interpolate"]:
                e = rho * e + (1 - rho) * base
            losses.append(F.cross_entropy(self.model.head(e), labels))
        mu = min(0.5, rho)
        real = F.cross_entropy(self.model.head(v), y)
        descend(sgd, (1 - mu) * real + mu * sum(losses) / len(losses))

    def step_b(self, sgd: Any, v: Tensor, s: Tensor, rng: torch.Generator) -> None:
        self.g.train()
        (z,) = self.drawn(1, len(s), rng)
        out = self.g(with_labels(z, s))
        if self.options["dist_g"] == "mmd":
            apart = discrepancy(out, v)
        else:
            apart = F.mse_loss(out, self.prototypes[s])
        right = F.cross_entropy(self.model.head(out), s)
        descend(sgd, right - self.options["lam_g"] * apart, self.options["generator_clip"])

    def step_c(self, sgd: Any, v: Tensor, y: Tensor, s: Tensor, rng: torch.Generator) -> None:
        self.g.eval()
        self.r.train()
        distance = {"mmd": discrepancy, "mse": F.mse_loss}[self.options["dist_r"]]
        losses = []
        for z, labels, base in self.parts(v, y, s, rng):
            e = self.around(z, labels, base)
            p = F.softmax(self.model.head(e), dim=1)
            entropy = -(p * p.log()).sum(1).mean()
            losses.append(-entropy + self.options["lam_r"] * distance(e, base))
        descend(sgd, sum(losses) / len(losses))

    def parts(
        self, v: Tensor, y: Tensor, s: Tensor, rng: torch.Generator
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return noise, labels and base of each part: around prototypes, around real features."""
        prototype, real = (s, self.prototypes[s]), (y, v)
        chosen = {"both": [prototype, real], "prototype": [prototype], "real": [real]}
        parts = chosen[self.options["augment"]]
        noise = self.drawn(len(parts), len(y), rng)
        return [(z, *part) for z, part in zip(noise, parts, strict=True)]

    def drawn(self, parts: int, batch: int, rng: torch.Generator) -> Tensor:
        draw = {"uniform": torch.rand, "gaussian": torch.randn}[self.options["noise"]]
        return draw(parts, batch, self.noise, generator=rng).double()

    def around(self, z: Tensor, labels: Tensor, base: Tensor) -> Tensor:
        """Return base + r(g(z, labels), labels), or g(z, labels) without RTNet."""
        made = self.g(with_labels(z, labels))
        if not self.options["use_rtnet"]:
            return made
        return base + self.r(with_labels(made, labels))


def two_layers(
    purpose: str, seed: int, client: int, inputs: int, hidden: int, outputs: int
) -> nn.Sequential:
    """Return a network of random weights of this address; it reads one-hot labels too."""
    with torch.random.fork_rng():
        torch.manual_seed(fedsim.rng.derive(seed, purpose, 0, client))
        return nn.Sequential(
            nn.Linear(inputs + CLASSES, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, outputs),
            nn.BatchNorm1d(outputs),
        ).double()


def generator(seed: int, noise: int, dim: int) -> nn.Sequential:
    return two_layers("fraug/generator", seed, -1, noise, dim, dim).append(nn.ReLU())


def with_labels(x: Tensor, labels: Tensor) -> Tensor:
    return torch.cat([x, F.one_hot(labels, CLASSES).double()], dim=1)


def discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """Return the biased MMD of two batches with five Gaussians; their width has no gradient."""
    rows = torch.cat([a, b])
    n = len(rows)
    squares = ((rows[:, None] - rows[None, :]) ** 2).sum(2)
    width = squares.detach().sum() / (n * n - n) / 4
    kernel = torch.stack([torch.exp(-squares / (width * 2**q)) for q in range(5)]).sum(0)
    k = len(a)
    return (
        kernel[:k, :k].mean()
        + kernel[k:, k:].mean()
        - kernel[:k, k:].mean()
        - kernel[k:, :k].mean()
    )


def descend(sgd: torch.optim.Optimizer, loss: Any, clip: float | None = None) -> None:
    """Take one step; gradients of networks that are not the optimiser's are dropped."""
    (group,) = sgd.param_groups
    for p, gradient in zip(
        group["params"], torch.autograd.grad(loss, group["params"]), strict=True
    ):
        p.grad = gradient
    if clip is not None:
        nn.utils.clip_grad_norm_(group["params"], clip)
    sgd.step()


def named(params: Params) -> dict[str, Tensor]:
    """Return the tensors of a generator or RTNet as `two_layers` names them."""
    parts = {name: name.split(".") for name in params}
    return {f"{LAYERS[layer]}.{tensor}": params[name] for name, (layer, tensor) in parts.items()}


def mean(states: Sequence[Mapping[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    """Return the weighted mean of tensors; of counters, which have none, the first."""
    return {
        name: torch.stack([w * s[name] for w, s in zip(weights, states, strict=True)]).sum(0)
        / sum(weights)
        if first.is_floating_point()
        else first
        for name, first in states[0].items()
    }


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Assert that tensors are equal to 5e-5; counters do not count."""
    for name, tensor in found.items():
        if tensor.is_floating_point():
            difference = float((tensor.double() - expected[name]).abs().max())
            assert difference < 5e-5, name


class Trained:
    """The shipped client and strategy with two clients."""

    def __init__(self, model: str, options: dict[str, Any], seed: int = SEED) -> None:
        client = {name: value for name, value in options.items() if name != "z_dim"}
        self.player = Player(
            seed=seed,
            model=MODELS[model],
            strategy={"name": "fraug"},
            client={"batch_size": BATCH, "steps": STEPS, **client},
        )
        worker = self.player.worker
        self.strategy = FRAug(FRAug.Config(gamma=GAMMA, z_dim=options.get("z_dim")))
        context = ServerContext(seed, ROUNDS, 8, 8, CLASSES, worker.model, worker.dataset)
        self.strategy.bind(self.player.initial, context)
        self.states: dict[int, dict[str, Any]] = {client: {} for client in CLIENTS}

    def round(self, round: int) -> list[Update]:
        """Play a round; return what the clients send."""
        payload = dict(self.strategy.configure(self.strategy.state, round, CLIENTS))
        updates = []
        for client in CLIENTS:
            player, context = self.player, self.player.context(client, round)
            self.states[client], update = player.client.train(
                payload,
                self.states[client],
                player.data(client),
                player.rng(client, round),
                context,
            )
            updates.append(update)
        self.strategy.state, _ = self.strategy.aggregate(self.strategy.state, updates)
        return updates

    def batches(self, client: int, round: int) -> list[tuple[Tensor, Tensor]]:
        view, rng = self.player.data(client).train, self.player.rng(client, round)
        return list(view.batches(BATCH, rng, 1, STEPS))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("options", OPTIONS)
def test_two_rounds_are_those_of_the_plain_client(model: str, options: str) -> None:
    """What is sent and what is kept, with the server's means between the rounds."""
    trained = Trained(model, OPTIONS[options])
    module = trained.player.module(trained.player.initial)
    clients = [Plain(OPTIONS[options], module, client) for client in CLIENTS]
    theta = {name: tensor.double() for name, tensor in trained.strategy.state.model.items()}
    omega = copy.deepcopy(clients[0].g.state_dict())
    for round in (1, 2):
        updates = trained.round(round)
        for plain, update in zip(clients, updates, strict=True):
            plain.train(theta, omega, round, trained.batches(plain.client, round))
            state, weights = trained.states[plain.client], plain.model.state_dict()
            assert set(update.tensors["model"]) | set(state["own"]) == set(weights)
            assert_close(update.tensors["model"], weights)
            assert_close(state["own"], weights)
            assert_close(named(update.tensors["generator"]), plain.g.state_dict())
            assert_close(named(state["rtnet"]), plain.r.state_dict())
            assert_close({"prototypes": state["prototypes"]}, {"prototypes": plain.prototypes})
            assert state["steps"] == plain.steps == STEPS * round
        sizes = [float(len(trained.player.data(client).train)) for client in CLIENTS]
        assert [update.weight for update in updates] == sizes
        models = [{name: plain.model.state_dict()[name] for name in theta} for plain in clients]
        theta = mean(models, sizes)
        omega = mean([plain.g.state_dict() for plain in clients], sizes)
        assert_close(trained.strategy.state.model, theta)
        assert_close(named(trained.strategy.state.generator), omega)


# What a round draws


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Everything that generators read, (rows, z_dim + classes), in the order of the steps."""
    inputs: list[Tensor] = []
    for name in ("evaluated", "trained"):
        original = getattr(Stack, name)

        def recording(self: Stack, x: Tensor, *rest: Any, original: Any = original) -> Tensor:
            if self.positive:
                inputs.append(x[0].clone())
            out: Tensor = original(self, x, *rest)
            return out

        monkeypatch.setattr(Stack, name, recording)
    return inputs


def test_no_vector_of_noise_occurs_twice(read: list[Tensor]) -> None:
    """Not between clients, rounds, steps or parts."""
    trained = Trained("plain", {})
    for round in (1, 2):
        trained.round(round)
    noise = torch.cat(read)[:, :-CLASSES]
    assert noise.shape == (2 * len(CLIENTS) * STEPS * 5 * BATCH, 8)
    assert len(noise.unique(dim=0)) == len(noise)


@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
def test_distribution_of_noise(kind: str, read: list[Tensor]) -> None:
    """On [0, 1) or standard normal, by the largest gap between the distribution functions."""
    trained = Trained("normed", {"noise": kind})
    trained.round(1)
    values = torch.cat(read)[:, :-CLASSES].flatten().double().sort().values
    n = len(values)
    assert n == len(CLIENTS) * STEPS * 5 * BATCH * 32
    if kind == "uniform":
        assert 0 <= float(values[0]) < float(values[-1]) < 1
        expected = values
    else:
        expected = torch.special.ndtr(values)
    gap = (expected - (torch.arange(n) + 0.5) / n).abs().max()
    assert float(gap) < 1.63 / math.sqrt(n)  # what one sample in a hundred exceeds


def test_balanced_labels_go_on_where_the_round_before_ended(read: list[Tensor]) -> None:
    trained = Trained("plain", {"augment": "prototype"})
    for round in (1, 2):
        trained.round(round)
    labels = torch.stack(read)[:, :, -CLASSES:].argmax(2)
    assert labels.shape == (2 * len(CLIENTS) * STEPS * 3, BATCH)
    for step, (a, b, c) in enumerate(labels.unflatten(0, (-1, 3)).tolist()):
        made = step % STEPS + STEPS * (step // (STEPS * len(CLIENTS)))
        assert a == b == c == [(8 * made + i) % 10 for i in range(8)]


def test_networks_start_from_the_seed() -> None:
    starts = []
    for seed in (SEED, SEED + 1):
        trained = Trained("plain", {"z_dim": 5}, seed)
        found = named(trained.strategy.state.generator)
        assert_close(found, generator(seed, 5, 16).state_dict())
        starts.append(found["0.weight"])
    assert not starts[0].equal(starts[1])


def test_each_client_starts_from_an_rtnet_of_its_own() -> None:
    trained = Trained("plain", {"use_rtnet": False})
    trained.round(1)
    one, two = (named(trained.states[client]["rtnet"]) for client in CLIENTS)
    assert_close(one, two_layers("fraug/rtnet", SEED, 0, 16, 8, 16).state_dict())
    assert_close(two, two_layers("fraug/rtnet", SEED, 1, 16, 8, 16).state_dict())
    assert not one["0.weight"].equal(two["0.weight"])


# What travels


def test_bytes_by_hand(tmp_path: Path) -> None:
    """Of the model without BatchNorm's statistics and of the generator, each way; no RTNet.

    Model: 4 x 9 + 4 of the convolution, 4 + 4 of its BatchNorm, 10 x 64 + 10 of the head.
    Generator: 64 x (5 + 10) + 64, 64 x 64 + 64, four numbers for each of the 2 x 64 normalised
    ones, and two counters of eight bytes. On the way down also the round, rho and mu.
    """
    strategy = {"name": "fraug", "z_dim": 5}
    run = fedsim.run(tiny(strategy=strategy, model=MODELS["normed"], rounds=2), out=tmp_path)
    size = 4 * (40 + 8 + 650) + 4 * (1024 + 4160 + 512) + 2 * 8
    for way, expected in (("bytes_up", size), ("bytes_down", size + 3 * 8)):
        values = run.clients[run.clients["name"] == way]["value"]
        assert values.tolist() == 2 * 8 * [expected], way
