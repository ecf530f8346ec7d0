"""FedBN, SiloBN and FRAug: what stays where, and each of FRAug's steps."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fedsim
from clients._augmenter import Augmenter, balanced_labels, entropies, move_prototypes
from fedsim.errors import InputError
from fedsim.models.blocks.conditional import Conditional, generator_network, transformation_network
from fedsim.params import Params
from fedsim.training.local_sgd import Fit
from strategies.fraug import FRAug
from tests.support.discrepancy import mmd
from tests.support.played import Player, changed
from tests.support.runs import TESTS, model_bits, tiny

NORMED = {"name": f"{TESTS}/models.py:normed"}
RESNET = {"name": "resnet", "depth": 8, "width": 4}
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


def run(tmp_path: Path, name: str, strategy: str, **changes: Any) -> fedsim.Run:
    options = changes.pop("options", {})
    settings = {"model": NORMED, **changes, "strategy": {"name": strategy, **options}}
    return fedsim.run(tiny(name=name, **settings), out=tmp_path)


def payload_of(player: Player, strategy: FRAug, round: int = 1) -> dict[str, Any]:
    """Return what the strategy sends, the model changed so that it is nobody's start."""
    from fedsim.strategy import ServerContext

    context = ServerContext(0, 10, 8, 8, 10, player.worker.model, player.worker.dataset)
    strategy.bind(changed(player.initial, 0.01), context)
    return dict(strategy.configure(strategy.state, round, range(8)))


class Scene:
    """FRAug's client in the middle of a round: fit, augmenter and a batch."""

    def __init__(self, strategy: dict[str, Any] | None = None, **client: Any) -> None:
        self.player = Player(strategy={"name": "fraug"}, client=client, model=NORMED)
        self.strategy = FRAug(FRAug.Config(**(strategy or {})))
        self.payload = payload_of(self.player, self.strategy)
        self.context = self.player.context()
        self.client = self.player.client
        self.module: Any = self.context.model.module
        self.client.start(self.payload, {}, self.context)
        self.augmenter = self.fresh({})
        names, parameters = self.context.model.parameter_names, self.context.model.parameters
        state = {"augmenter": self.augmenter}
        view = self.player.data().train
        self.fit = Fit(self.context, self.payload, state, names, [*parameters], 0.1, view)
        self.x, self.y = next(iter(view.batches(24, self.player.rng(), 1)))
        self.module.train()

    def fresh(self, state: dict[str, Any]) -> Augmenter:
        return Augmenter(self.client.config, self.payload, [state], [self.context])

    def begin(self) -> None:
        """Take in the batch with the features that the model makes of it now."""
        v = self.module.body(self.x).detach()[None]
        share = torch.full((1, len(self.y)), 1 / len(self.y))
        self.augmenter.begin(v, self.y[None], share, [len(self.y)])

    def head(self) -> tuple[Tensor, Tensor]:
        return self.module.head.weight.detach()[None], self.module.head.bias.detach()[None, :, None]

    def networks(self) -> tuple[Conditional, Conditional]:
        """Return independent modules that are the generator and RTNet as they are now."""
        dim, classes = self.module.head.weight.shape[1], 10
        made = []
        for build, stack in (
            (generator_network, self.augmenter.g),
            (transformation_network, self.augmenter.r),
        ):
            network = build(dim, dim // 2, classes)
            (params,) = stack.rows().split()
            network.load_state_dict({name: params[name].clone() for name in params})
            made.append(network)
        return made[0], made[1]

    def loss(self) -> Tensor:
        return self.client.loss(self.fit, self.x, self.y)

    def gradients(self) -> dict[str, Tensor]:
        names = self.fit.names
        return dict(zip(names, torch.autograd.grad(self.loss(), self.fit.parameters), strict=True))

    def after(self) -> None:
        with torch.no_grad():
            self.client.after_step(self.fit)

    def snapshot(self) -> dict[str, Tensor]:
        """Return copies of all tensors of model, generator and RTNet, and of the prototypes."""
        g, r = self.networks()
        parts = {"model": self.module, "g": g, "r": r}
        tensors = {
            f"{p}.{n}": t.clone() for p, m in parts.items() for n, t in m.state_dict().items()
        }
        return tensors | {"prototypes": self.augmenter.prototypes.clone()}


def assert_state(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    """Assert that two networks are equal but for counters of batches, which FRAug leaves alone."""
    for name, tensor in expected.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not tensor.equal(after[name])}


# What may travel


@pytest.mark.parametrize(
    ("strategy", "own"),
    [("fedbn", STATISTICS | {"weight", "bias"}), ("silobn", STATISTICS)],
)
def test_batch_norm_stays_by_type_of_layer(strategy: str, own: set[str], tmp_path: Path) -> None:
    """In a residual network that includes the normalisation of the shortcuts."""
    result = run(tmp_path, strategy, strategy, model=RESNET, rounds=1)
    module = Player(model=RESNET).worker.model.module
    norms = [n for n, m in module.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert any("shortcut" in name for name in norms)
    local = {f"{layer}.{tensor}" for layer in norms for tensor in own}
    assert set(result.arrays()) == set(module.state_dict()) - local
    size = sum(t.numel() * t.element_size() for t in result.arrays().values())
    assert set(result.clients[result.clients["name"] == "bytes_up"]["value"]) == {float(size)}


@pytest.mark.parametrize("strategy", ["fedbn", "silobn"])
def test_without_batch_norm_it_is_refused(strategy: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"'{strategy}' needs a model with BatchNorm"):
        fedsim.run(tiny(strategy={"name": strategy}), out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_fedbn_mode_of_fraug_is_refused_too(tmp_path: Path) -> None:
    words = "strategy 'fraug' with bn_mode 'fedbn' needs a model with BatchNorm"
    with pytest.raises(InputError, match=words):
        fedsim.run(tiny(strategy={"name": "fraug", "bn_mode": "fedbn"}), out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_batch_norm_the_default_mode_shares_all(tmp_path: Path) -> None:
    mlp = {"name": "mlp", "hidden": [16]}
    default = run(tmp_path, "default", "fraug", model=mlp, rounds=1)
    shared = run(tmp_path, "shared", "fraug", model=mlp, rounds=1, options={"bn_mode": "shared"})
    assert model_bits(default) == model_bits(shared)


@pytest.mark.parametrize(
    ("mode", "same"), [("stats_local", "silobn"), ("fedbn", "fedbn"), ("shared", "fedavg")]
)
def test_without_augmentation_it_is_its_sharing_rule(mode: str, same: str, tmp_path: Path) -> None:
    client = {"augment": "none", "momentum": 0.5}
    ours = run(tmp_path, "ours", "fraug", client=client, options={"bn_mode": mode})
    theirs = run(tmp_path, "theirs", same, client={"momentum": 0.5, "vectorise": False})
    assert model_bits(ours) == model_bits(theirs)
    kind = "generic" if same == "fedavg" else "personal"
    name = f"{kind}/accuracy"
    mine = ours.client_values("test", "personal/accuracy")["value"].tolist()
    assert mine == theirs.client_values("test", name)["value"].tolist()


def test_what_is_local_stays_local() -> None:
    """RTNets differ and are never sent; what is shared is named by the payload alone."""
    scene = Scene()
    player, payload = scene.player, scene.payload
    states = {}
    for client in (0, 1):
        context = player.context(client)
        states[client], update = player.client.train(
            payload, {}, player.data(client), player.rng(client), context
        )
        assert set(update.tensors) == {"model", "generator"}
        sent = set(update.tensors["model"])
        assert sent == set(player.initial) - {f"body.1.{s}" for s in STATISTICS}
        assert set(states[client]["own"]) == {f"body.1.{s}" for s in STATISTICS}
    one, two = states[0], states[1]
    assert not one["rtnet"].flat.equal(two["rtnet"].flat)
    assert not one["prototypes"].equal(two["prototypes"])
    assert not one["own"].flat.equal(two["own"].flat)


@pytest.mark.parametrize(("mode", "stays"), [("stats_local", False), ("fedbn", True)])
def test_scale_and_shift_follow_bn_mode(mode: str, stays: bool, tmp_path: Path) -> None:
    result = run(tmp_path, "fraug", "fraug", options={"bn_mode": mode}, rounds=1)
    assert ("body.1.weight" not in result.arrays()) == stays


def test_the_generators_batch_norm_can_stay(tmp_path: Path) -> None:
    scene = Scene(strategy={"generator_bn": "local"})
    norm = {f"{layer}.{t}" for layer in ("first_norm", "last_norm") for t in ("weight", "bias")}
    assert not norm & set(scene.payload["generator"])
    state, update = scene.client.train(
        scene.payload, {}, scene.player.data(), scene.player.rng(), scene.context
    )
    assert set(update.tensors["generator"]) == set(scene.payload["generator"])
    assert norm < set(state["generator"])
    scene.augmenter = scene.fresh(state)
    again, _ = scene.networks()
    mean = again.first_norm.running_mean
    assert mean is not None
    assert mean.equal(state["generator"]["first_norm.running_mean"])
    assert again.first.weight.detach().equal(scene.payload["generator"]["first.weight"])


# Step A


def test_at_mu_one_only_the_head_learns() -> None:
    scene = Scene()
    scene.payload["mu"] = 1.0
    found = scene.gradients()
    for name, gradient in found.items():
        assert bool(gradient.any()) == name.startswith("head."), name


def test_at_mu_zero_it_is_cross_entropy() -> None:
    scene = Scene()
    scene.payload["mu"] = 0.0
    reference = copy.deepcopy(scene.module)
    expected = torch.autograd.grad(
        F.cross_entropy(reference(scene.x), scene.y), list(reference.parameters())
    )
    for (name, found), wanted in zip(scene.gradients().items(), expected, strict=True):
        assert found.equal(wanted), name


def test_step_a_leaves_generator_and_rtnet_alone() -> None:
    scene = Scene()
    before = scene.snapshot()
    scene.loss().backward()
    assert moved(before, scene.snapshot()) == {
        *(f"model.body.1.{s}" for s in STATISTICS),  # the model is in training mode
        "prototypes",
    }


def test_the_loss_mixes_both_parts() -> None:
    scene = Scene()
    scene.payload["mu"] = 0.3
    found = scene.loss()
    (e_p, e_r), (s, y), (base_p, base_r) = (t[0].split(24) for t in scene.augmenter.synthetic())
    v = scene.module.body(scene.x)
    assert base_p.equal(scene.augmenter.prototypes[0][s])
    torch.testing.assert_close(base_r, v.detach())
    assert s.tolist() == [i % 10 for i in range(24)]
    assert y.equal(scene.y)
    head = scene.module.head
    synthetic = (F.cross_entropy(head(e_p), s) + F.cross_entropy(head(e_r), y)) / 2
    expected = 0.7 * F.cross_entropy(head(v), scene.y) + 0.3 * synthetic
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_prototypes_by_hand() -> None:
    """k moves from zero towards a constant: (1 - 0.7^k) a; an absent class stays."""
    a, other = torch.tensor([2.0, -1.0, 4.0]), torch.tensor([0.0, 8.0, 0.0])
    prototypes = torch.zeros(1, 4, 3)
    prototypes[0, 3] = 7.0
    padding = torch.tensor([9.0, 9.0, 9.0])
    members = F.one_hot(torch.tensor([[1, 1, 2, 0]]), 4).float()
    members[0, 3] = 0.0
    for k in range(1, 11):
        move_prototypes(prototypes, torch.stack([a, a, other, padding])[None], members, 0.3)
        torch.testing.assert_close(prototypes[0, 1], (1 - 0.7**k) * a)
        torch.testing.assert_close(prototypes[0, 2], (1 - 0.7**k) * other)
    assert prototypes[0, 0].tolist() == [0.0] * 3
    assert prototypes[0, 3].tolist() == [7.0] * 3
    halves = torch.zeros(1, 2, 1)
    one_class = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    move_prototypes(halves, torch.tensor([[[1.0], [3.0]]]), one_class, 1.0)
    assert halves.tolist() == [[[2.0], [0.0]]]  # the mean of the batch's features


def test_balanced_labels_go_round() -> None:
    first, second = balanced_labels(7, [0, 7], 10)
    assert first.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert second.tolist() == [7, 8, 9, 0, 1, 2, 3]
    counts = torch.bincount(balanced_labels(24, [5 * 24], 10)[0], minlength=10)
    assert int(counts.max() - counts.min()) <= 1


def test_rtnet_without_a_last_norm_adds_nothing() -> None:
    scene = Scene()
    scene.begin()
    named = scene.augmenter.r.template.layout.views(scene.augmenter.r.flat[0])
    named["last_norm.weight"].zero_()
    named["last_norm.bias"].zero_()
    e, _, base = scene.augmenter.synthetic()
    assert e.equal(base)


@pytest.mark.parametrize("rho", [0.0, 0.25, 1.0])
def test_interpolation_between_base_and_synthetic(rho: float) -> None:
    plain, mixed = Scene(), Scene(interpolate=True)
    mixed.payload["rho"] = rho
    for scene in (plain, mixed):
        scene.begin()
    (e, _, base), (found, _, same) = plain.augmenter.synthetic(), mixed.augmenter.synthetic()
    assert base.equal(same)
    torch.testing.assert_close(found, rho * e + (1 - rho) * base)


@pytest.mark.parametrize(("augment", "parts"), [("both", 2), ("real", 1), ("prototype", 1)])
def test_what_is_augmented(augment: str, parts: int) -> None:
    scene = Scene(augment=augment)
    scene.loss()
    _, (labels,), _ = scene.augmenter.synthetic()
    assert len(labels) == parts * 24
    assert labels[-24:].equal(scene.y) == (augment != "prototype")


def test_without_rtnet_it_is_the_generators_output() -> None:
    scene = Scene(use_rtnet=False, augment="prototype")
    scene.augmenter._rngs[0].manual_seed(5)
    scene.loss()
    (e,), (s,), _ = scene.augmenter.synthetic()
    noise = torch.rand(24, 32, generator=torch.Generator().manual_seed(5))
    g, _ = scene.networks()
    torch.testing.assert_close(e, g.eval()(noise, s).detach())
    before = scene.snapshot()
    scene.after()
    assert not any(name.startswith("r.") for name in moved(before, scene.snapshot()))


# Steps B and C


def test_steps_b_and_c_change_their_own_network_only() -> None:
    scene = Scene()
    scene.loss()
    head = scene.head()
    scene.module.eval()
    before = scene.snapshot()
    scene.augmenter.step_generator(head)
    between = scene.snapshot()
    assert {name.partition(".")[0] for name in moved(before, between)} == {"g"}
    scene.augmenter.step_rtnet(head)
    assert {name.partition(".")[0] for name in moved(between, scene.snapshot())} == {"r"}
    assert all(p.grad is None for p in scene.module.parameters())


@pytest.mark.parametrize("distance", ["mmd", "mse"])
def test_step_b_descends_its_loss(distance: str) -> None:
    """One step by torch.optim on a copy of the generator."""
    scene = Scene(dist_g=distance, lam_g=0.7, generator_lr=0.2)
    scene.augmenter._rngs[0].manual_seed(3)
    scene.loss()
    aug, head = scene.augmenter, scene.module.eval().head
    v = scene.module.body(scene.x).detach()
    copied, s = scene.networks()[0].train(), balanced_labels(24, [0], 10)[0]
    generator = torch.Generator().manual_seed(3)
    _, _, noise = (torch.rand(24, 32, generator=generator) for _ in range(3))  # two in step A
    optimizer = torch.optim.SGD(copied.parameters(), lr=0.2)
    out = copied(noise, s)
    target = aug.prototypes[0][s]
    apart = mmd(out, v) if distance == "mmd" else ((out - target) ** 2).mean()
    (F.cross_entropy(head(out), s) - 0.7 * apart).backward()
    optimizer.step()
    aug.features = v[None]
    aug.step_generator(scene.head())
    assert_state(scene.networks()[0], copied)


def test_step_c_descends_its_loss() -> None:
    scene = Scene(dist_r="mse", lam_r=0.4, rtnet_lr=0.2)
    scene.augmenter._rngs[0].manual_seed(3)
    scene.loss()
    aug, head = scene.augmenter, scene.module.eval().head
    v = scene.module.body(scene.x).detach()
    g, copied = scene.networks()
    g.eval()
    copied.train()
    s, y = balanced_labels(24, [0], 10)[0], scene.y
    generator = torch.Generator().manual_seed(3)
    # Two in step A, one in step B.
    *_, z_p, z_r = (torch.rand(24, 32, generator=generator) for _ in range(5))
    optimizer = torch.optim.SGD(copied.parameters(), lr=0.2)
    e_p = aug.prototypes[0][s] + copied(g(z_p, s).detach(), s)
    e_r = v + copied(g(z_r, y).detach(), y)

    def entropy(e: Tensor) -> Tensor:
        p = F.softmax(head(e), 1)
        return -(p * p.log()).sum(1).mean()

    near = ((e_p - aug.prototypes[0][s]) ** 2).mean() + ((e_r - v) ** 2).mean()
    (-(entropy(e_p) + entropy(e_r)) / 2 + 0.4 * near / 2).backward()
    optimizer.step()
    aug.features = v[None]
    aug.step_rtnet(scene.head())
    assert_state(scene.networks()[1], copied)


def test_entropy_of_uniform_logits() -> None:
    third = torch.full((1, 3), 1 / 3)
    value, _ = entropies(torch.zeros(1, 10, 3), third)
    assert float(value) == pytest.approx(math.log(10), rel=1e-6)
    sharp = torch.tensor([[[1000.0], [0.0], [0.0]]])
    assert float(entropies(sharp, torch.ones(1, 1))[0]) == 0.0


def test_a_single_sample_is_not_augmented() -> None:
    scene = Scene()
    scene.x, scene.y = scene.x[:1], scene.y[:1]
    before = scene.snapshot()
    scene.loss()
    scene.after()
    assert not any(n.startswith(("g.", "r.", "proto")) for n in moved(before, scene.snapshot()))


# Warm-up


def test_warm_up() -> None:
    rounds = 300
    ratios = [FRAug().ratios(t, rounds) for t in range(1, rounds + 2)]
    assert ratios[0] == pytest.approx((math.exp(-3), math.exp(-3)))
    assert ratios[-1][0] == 1.0
    assert all(a[0] < b[0] for a, b in pairwise(ratios))
    assert next(t for t, (_, mu) in enumerate(ratios) if mu == 0.5) == 231
    digits = FRAug(FRAug.Config(gamma=0.002))
    assert {digits.ratios(t, rounds)[1] for t in range(1, 301)} == {0.5}
    assert FRAug(FRAug.Config(warm_up="constant")).ratios(1, rounds)[1] == 0.5
    assert FRAug(FRAug.Config(warm_up="inverse")).ratios(51, rounds)[1] == pytest.approx(1 / 3)


def test_both_are_averaged_by_sample_counts() -> None:
    from fedsim.client import Update

    scene = Scene()
    model, generator = scene.payload["model"], scene.payload["generator"]

    def constant(params: Params, value: float) -> Params:
        return params.replace(torch.full_like(params.flat, value))

    updates = [
        Update({"model": constant(model, a), "generator": constant(generator, b)}, weight)
        for a, b, weight in ((1.0, 2.0, 1.0), (5.0, 6.0, 3.0))
    ]
    state, _ = scene.strategy.aggregate(scene.strategy.state, updates)
    assert set(state.model.flat.tolist()) == {4.0}
    assert set(state.generator.flat.tolist()) == {5.0}


@pytest.mark.parametrize(
    ("options", "client", "text"),
    [
        ({"bn_mode": "some"}, {}, "bn_mode"),
        ({"z_dim": 0}, {}, "z_dim must be >= 1"),
        ({"gamma": -1.0}, {}, "gamma must be >= 0"),
        ({}, {"prototype_momentum": 0.0}, r"prototype_momentum must be in \(0, 1\]"),
        ({}, {"lam_r": -1.0}, "lam_r must be >= 0"),
        ({}, {"generator_clip": 0.0}, "generator_clip must be > 0"),
        ({}, {"augment": "all"}, "augment"),
    ],
)
def test_bad_options(
    options: dict[str, Any], client: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=text):
        run(tmp_path, "bad", "fraug", options=options, client=client)
    assert not list(tmp_path.iterdir())
