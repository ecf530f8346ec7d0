from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedsim
from fedsim.client import ClientContext, Task, Update
from fedsim.data.dataset import Card, Split
from fedsim.data.partition import ClientIndices
from fedsim.data.views import ClientData
from fedsim.errors import InputError
from fedsim.models.cnn import cnn
from fedsim.models.mlp import mlp
from fedsim.models.resnet import resnet
from fedsim.params import FlatModel, Params
from fedsim.training.client_groups import GroupTraining
from fedsim.training.local_sgd import SGD, Fit, LocalSGD, ServerRound
from tests.support.runs import TESTS, events, tiny

NOBODY = np.array([], np.int32)


def context(module: nn.Module, client: int = 0, round: int = 1) -> ClientContext:
    model = FlatModel(module)
    return ClientContext(client, round, 0, 50, 3, model, model.params(), torch.device("cpu"))


def client_data(rows: list[int] | range, split: Split, card: Card) -> ClientData:
    return ClientData(split, ClientIndices(np.array(rows, np.int32), NOBODY, NOBODY), card)


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# A model of one weight without bias: logits (w x, 0) for pixel x. With x = 1 and the label 0 the
# loss is log(1 + exp(-w)) and its derivative -1 / (1 + exp(w)).
class OneWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        z = self.w * x.flatten(1)
        return torch.cat([z, torch.zeros_like(z)], 1)


ONE_CARD = Card("t", "s", "l", ("a", "b"), (1, 1, 1), (0.0,), (1.0,), "d")
ONES = Split(np.full((4, 1, 1, 1), 255, np.uint8), np.zeros(4, np.int64))


def sigmoid(z: float) -> float:
    return 1 / (1 + float(np.exp(-z)))


def fit_one(rows: range = range(1), round: int = 1, **options: Any) -> tuple[float, Update]:
    ctx = context(OneWeight(), round=round)
    client = LocalSGD(LocalSGD.Config(**options))
    _, update = client.train(
        {"model": ctx.model.params()}, None, client_data(rows, ONES, ONE_CARD), generator(), ctx
    )
    return float(update.tensors["model"]["w"]), update


def test_two_steps_by_hand() -> None:
    w, update = fit_one(lr=1.0, epochs=2)
    first = 0.5  # gradient -1/2 at w = 0
    second = first + sigmoid(-first)
    assert w == pytest.approx(second, rel=1e-6)
    mean = (np.log(2) + np.log(1 + np.exp(-first))) / 2
    assert update.metrics["train_loss"] == pytest.approx(mean, rel=1e-6)
    assert update.weight == 1.0


def test_momentum_by_hand() -> None:
    w, _ = fit_one(lr=1.0, epochs=2, momentum=0.5)
    assert w == pytest.approx(0.5 + (0.5 * 0.5 + sigmoid(-0.5)), rel=1e-6)


def test_weight_decay_by_hand() -> None:
    w, _ = fit_one(lr=1.0, epochs=2, weight_decay=0.1)
    assert w == pytest.approx(0.5 + (sigmoid(-0.5) - 0.1 * 0.5), rel=1e-6)


def test_clipping_by_hand_comes_before_weight_decay() -> None:
    w, _ = fit_one(lr=1.0, epochs=2, weight_decay=0.1, clip_norm=0.2)
    assert w == pytest.approx(0.2 + (0.2 - 0.1 * 0.2), rel=1e-4)


def test_the_rate_decays_with_the_round() -> None:
    assert fit_one(lr=1.0, lr_decay=0.5, round=3)[0] == pytest.approx(0.25 * 0.5)


class Counting(LocalSGD):
    def loss(self, fit: Fit, x: Tensor, y: Tensor) -> Tensor:
        sizes.append(len(y))
        return super().loss(fit, x, y)


sizes: list[int] = []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"epochs": 2}, [3, 1, 3, 1]),
        ({"epochs": 9, "steps": 5}, [3, 1, 3, 1, 3]),
        ({"epochs": 9, "steps": 1}, [3]),
    ],
)
def test_steps_take_the_place_of_epochs(options: dict[str, Any], expected: list[int]) -> None:
    ctx = context(OneWeight())
    sizes.clear()
    client = Counting(Counting.Config(batch_size=3, **options))
    data = client_data(range(4), ONES, ONE_CARD)
    _, update = client.train({"model": ctx.model.params()}, None, data, generator(), ctx)
    assert sizes == expected
    assert update.weight == 4.0


def test_an_empty_client_is_named() -> None:
    ctx = context(OneWeight(), client=17)
    task = Task({"model": ctx.model.params()}, None, client_data([], ONES, ONE_CARD),
                generator(), ctx)  # fmt: skip
    with pytest.raises(ValueError, match="client 17"):
        LocalSGD().train(task.payload, None, task.data, task.rng, ctx)
    with pytest.raises(ValueError, match="client 17"):
        LocalSGD().train_group([task, task])


CARD = Card("t", "s", "l", ("a", "b", "c"), (2, 8, 8), (0.4, 0.5), (0.2, 0.3), "d")


def noise(n: int, seed: int = 0) -> Split:
    r = np.random.default_rng(seed)
    y = r.integers(0, 3, n)
    x = r.integers(0, 200, (n, 8, 8, 2)) + 20 * y[:, None, None, None]
    return Split(x.astype(np.uint8), y.astype(np.int64))


SPLIT = noise(120)
SHAPE = (2, 8, 8)


def reference(
    module: nn.Module, data: ClientData, config: LocalSGD.Config, rng: torch.Generator
) -> tuple[dict[str, Tensor], float]:
    """Train with torch.optim.SGD on torch's own memory layout; return state and mean loss."""
    module.train()
    optimiser = torch.optim.SGD(
        module.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay
    )
    total, seen = 0.0, 0
    for x, y in data.train.batches(config.batch_size, rng, config.epochs, config.steps):
        loss = F.cross_entropy(module(x.contiguous()), y)
        optimiser.zero_grad()
        loss.backward()
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), config.clip_norm)
        optimiser.step()
        total += float(loss.detach()) * len(y)
        seen += len(y)
    return {k: v.detach() for k, v in module.state_dict().items()}, total / seen


OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9, "weight_decay": 0.01},
    {"momentum": 0.5, "weight_decay": 0.01, "clip_norm": 0.5},
    {"steps": 5},
]
MODELS = {
    "cnn": lambda: cnn(SHAPE, 3, channels=(4, 6), kernel=3, hidden=8, padding=1),
    "mlp": lambda: mlp(SHAPE, 3, hidden=(8,)),
    "resnet": lambda: resnet(SHAPE, 3, width=4),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_training_equals_torch_optim(name: str, options: dict[str, Any]) -> None:
    config = LocalSGD.Config(epochs=2, batch_size=16, lr=0.05, **options)
    torch.manual_seed(1)
    ctx = context(MODELS[name]())
    start = ctx.model.params()
    plain = MODELS[name]()
    plain.load_state_dict({k: v.clone() for k, v in start.items()})
    data = client_data(range(40), SPLIT, CARD)
    _, update = LocalSGD(config).train({"model": start}, None, data, generator(), ctx)
    expected, loss = reference(plain, data, config, generator())
    trained = update.tensors["model"]
    assert set(trained) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(trained[key], value, rtol=2e-3, atol=2e-5)
        assert trained[key].dtype == value.dtype
    assert update.metrics["train_loss"] == pytest.approx(loss, rel=1e-4)


def test_the_payload_is_left_as_it_was() -> None:
    ctx = context(resnet(SHAPE, 3, width=4))
    start = ctx.model.params()
    before = start.clone()
    _, update = LocalSGD().train(
        {"model": start}, None, client_data(range(40), SPLIT, CARD), generator(), ctx
    )
    assert torch.equal(start.flat, before.flat)
    for key, value in before.integers.items():
        assert torch.equal(start.integers[key], value)
    assert not torch.equal(update.tensors["model"].flat, before.flat)


class Prox(LocalSGD):
    """FedProx: mu / 2 |w - w_t|^2 in the loss, as its gradient; mu = 0.5."""

    def gradient(self, fit: Fit, grads: list[Tensor]) -> list[Tensor]:
        anchor = fit.payload["model"]
        return [
            g + 0.5 * (p - anchor[n])
            for g, p, n in zip(grads, fit.parameters, fit.names, strict=True)
        ]


class Clamped(LocalSGD):
    def after_step(self, fit: Fit) -> None:
        for p in fit.parameters:
            p.clamp_(max=0.3)


class Tilted(LocalSGD):
    def loss(self, fit: Fit, x: Tensor, y: Tensor) -> Tensor:
        return super().loss(fit, x, y) - 2.0 * fit.parameters[0].sum()


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Prox, 0.5 + (sigmoid(-0.5) - 0.5 * 0.5)),
        (Clamped, 0.3),
        (Tilted, 2.5 + (sigmoid(-2.5) + 2.0)),
    ],
)
def test_hooks_change_the_step_by_hand(method: type[LocalSGD], expected: float) -> None:
    ctx = context(OneWeight())
    client = method(method.Config(lr=1.0, epochs=2))
    data = client_data(range(1), ONES, ONE_CARD)
    _, update = client.train({"model": ctx.model.params()}, None, data, generator(), ctx)
    assert float(update.tensors["model"]["w"]) == pytest.approx(expected, rel=1e-6)


def test_a_server_trains_with_the_same_loop() -> None:
    model = FlatModel(OneWeight())
    view = client_data(range(1), ONES, ONE_CARD).train
    trainer = SGD(SGD.Config(lr=1.0, lr_decay=0.5, epochs=2))
    _, metrics = trainer.fit({}, None, view, generator(), ServerRound(model, 3, 2))
    first = 0.25 * 0.5
    assert float(model.params()["w"]) == pytest.approx(first + 0.25 * sigmoid(-first), rel=1e-6)
    mean = (np.log(2) + np.log(1 + np.exp(-first))) / 2
    assert metrics == {"train_loss": pytest.approx(mean, rel=1e-6)}


class HeadOnly(LocalSGD):
    def trainable(self, name: str) -> bool:
        return name.startswith("head.")


def test_only_what_is_trainable_changes() -> None:
    ctx = context(cnn(SHAPE, 3, channels=(4,), kernel=3, hidden=8))
    start = ctx.model.params()
    config = HeadOnly.Config(momentum=0.9, weight_decay=0.1, clip_norm=1.0)
    data = client_data(range(40), SPLIT, CARD)
    _, update = HeadOnly(config).train({"model": start}, None, data, generator(), ctx)
    changed = {k for k, v in update.tensors["model"].items() if not torch.equal(v, start[k])}
    assert changed == {"head.weight", "head.bias"}


class Projecting:
    """A mixin: its hook comes from outside of LocalSGD's own subclasses."""

    def after_step(self, fit: Fit) -> None:
        fit.parameters[0].clamp_(max=0.3)


class Mixed(Projecting, LocalSGD):
    pass


RAGGED = [range(40), range(40, 47), range(47, 48), range(48, 80), range(80, 113)]
EVEN = [range(8 * i, 8 * i + 8) for i in range(5)]


def tasks(ctx: ClientContext, clients: list[range]) -> list[Task]:
    payload = {"model": ctx.model.params()}
    return [
        Task(payload, None, client_data(rows, SPLIT, CARD), generator(i), replace(ctx, client_id=i))
        for i, rows in enumerate(clients)
    ]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("clients", [RAGGED, EVEN])
@pytest.mark.parametrize("hidden", [(8,), (8, 5)])
def test_a_group_equals_the_loop(
    options: dict[str, Any], clients: list[range], hidden: tuple[int, ...]
) -> None:
    client = LocalSGD(LocalSGD.Config(epochs=3, batch_size=5, lr=0.1, **options))
    torch.manual_seed(2)
    ctx = context(mlp(SHAPE, 3, hidden=hidden), round=2)
    start = ctx.model.params()
    before = start.flat.clone()
    together = client.train_group(tasks(ctx, clients)).split()
    assert len(together) == len(clients)
    assert torch.equal(start.flat, before)
    for task, update in zip(tasks(ctx, clients), together, strict=True):
        _, alone = client.train(task.payload, None, task.data, task.rng, task.ctx)
        one, other = update.tensors["model"], alone.tensors["model"]
        assert isinstance(one, Params)
        # The tolerance that LocalSGD states: 1e-5 of the largest weight.
        limit = 1e-5 * float(other.flat.abs().max())
        assert float((one.flat - other.flat).abs().max()) <= limit
        assert update.weight == alone.weight
        assert update.metrics == pytest.approx(alone.metrics, rel=1e-5)


def test_a_group_of_convolutional_networks_equals_the_loop() -> None:
    client = LocalSGD(LocalSGD.Config(epochs=2, batch_size=5, lr=0.05, momentum=0.5, clip_norm=1.0))
    torch.manual_seed(2)
    ctx = context(cnn(SHAPE, 3, channels=(4, 6), kernel=3, hidden=8, padding=1))
    together = client.train_group(tasks(ctx, RAGGED)).split()
    for task, update in zip(tasks(ctx, RAGGED), together, strict=True):
        _, alone = client.train(task.payload, None, task.data, task.rng, task.ctx)
        one, other = update.tensors["model"].flat, alone.tensors["model"].flat
        limit = 1e-3 * float(other.abs().max())
        assert float((one - other).abs().max()) <= limit
        assert update.metrics == pytest.approx(alone.metrics, rel=1e-4)


def test_what_decides_whether_clients_train_together() -> None:
    perceptron, convolutions = mlp(SHAPE, 3), cnn(SHAPE, 3, kernel=3, padding=1)
    assert LocalSGD().group_size(perceptron) > 1
    assert LocalSGD().group_size(convolutions) > 1
    assert LocalSGD().group_size(resnet(SHAPE, 3)) == 1
    assert LocalSGD().group_size(cnn(SHAPE, 3, kernel=3, padding=1, dropout=0.5)) == 1
    assert LocalSGD(LocalSGD.Config(vectorise=False)).group_size(perceptron) == 1
    for method in (Prox, Clamped, Tilted, HeadOnly, Mixed):
        assert method().group_size(perceptron) == 1


def test_a_subclass_trains_in_groups_again_where_it_names_a_trainer() -> None:
    class Named(Prox):
        group = GroupTraining

    class Below(Named):
        """Overrides nothing."""

    class Renewed(Named):
        def after_step(self, fit: Fit) -> None:
            fit.parameters[0].zero_()

    together = [cls().group_size(mlp(SHAPE, 3)) > 1 for cls in (Named, Below, Renewed)]
    assert together == [True, True, False]


def test_large_batches_of_convolutions_are_not_grouped() -> None:
    # 24 x 24 x 16 values of 4 bytes a sample: 85 samples fill 3 MiB
    model = cnn((1, 28, 28), 10)
    for batch_size, clients in ((10, 8), (20, 4), (42, 2), (64, 1), (1000, 1)):
        assert LocalSGD(LocalSGD.Config(batch_size=batch_size)).group_size(model) == clients


def test_vectorise_true_is_refused_where_it_cannot_be() -> None:
    wanted = LocalSGD.Config(vectorise=True)
    assert LocalSGD(wanted).group_size(mlp(SHAPE, 3)) > 1
    with pytest.raises(InputError, match="batched_gradients"):
        LocalSGD(wanted).group_size(resnet(SHAPE, 3))
    with pytest.raises(InputError, match="gradient"):
        Prox(Prox.Config(vectorise=True)).group_size(mlp(SHAPE, 3))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epochs": 0}, "epochs"),
        ({"steps": 0}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"lr_decay": 0.0}, "lr_decay"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"clip_norm": 0.0}, "clip_norm"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        LocalSGD.Config(**options)


def test_a_worker_does_not_import_torch_optim() -> None:
    import subprocess
    import sys

    text = (
        "import sys, fedsim.training.local_sgd, fedsim.models.cnn, fedsim.evaluate;"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", text], check=False).returncode == 0


class Centred(OneWeight):
    """Brings its own loss: half the squared distance of w to the first coordinate of a box."""

    targets = ("boxes", "box_labels")

    def loss(self, outputs: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        assert labels.shape == (len(outputs), 1)
        return 0.5 * (outputs[:, 0] - boxes[:, 0, 0]).square().mean()


BOXED = Split(
    np.full((4, 1, 1, 1), 255, np.uint8),
    np.zeros(4, np.int64),
    {
        "boxes": np.array([1, 2, 3, 6], np.float32).reshape(4, 1, 1).repeat(4, 2),
        "box_labels": np.zeros((4, 1), np.int64),
    },
)


def test_a_model_may_bring_its_own_loss_and_targets() -> None:
    ctx = context(Centred())
    client = LocalSGD(LocalSGD.Config(lr=0.5))
    data = client_data(range(4), BOXED, ONE_CARD)
    _, update = client.train({"model": ctx.model.params()}, None, data, generator(), ctx)
    # One step: the gradient of the mean loss at w = 0 is minus the mean 3 of the coordinates.
    assert float(update.tensors["model"]["w"]) == pytest.approx(1.5)
    assert update.metrics["train_loss"] == pytest.approx((1 + 4 + 9 + 36) / 8)


def test_a_batch_without_a_loss_is_passed_over() -> None:
    """Neither its weights nor its momentum, decay and share in the loss count."""

    class Picky(LocalSGD):
        passed_over: set[int]

        def loss(self, fit: Fit, x: Tensor, y: Tensor) -> Tensor | None:
            step = fit.scratch["step"] = fit.scratch.get("step", 0) + 1
            return None if step in self.passed_over else super().loss(fit, x, y)

    def trained(passed_over: set[int], rows: int) -> tuple[float, float]:
        ctx = context(OneWeight())
        client = Picky(Picky.Config(batch_size=1, lr=1.0, momentum=0.9, weight_decay=0.5))
        client.passed_over = passed_over
        data = client_data(range(rows), ONES, ONE_CARD)
        _, update = client.train({"model": ctx.model.params()}, None, data, generator(), ctx)
        return float(update.tensors["model"]["w"]), update.metrics["train_loss"]

    expected = (pytest.approx(0.5), pytest.approx(float(np.log(2))))
    assert trained({2, 3}, 3) == trained(set(), 1) == expected
    assert trained({1}, 1) == (0.0, 0.0)


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "pfedme", "per-fedavg"])
def test_a_parameter_that_the_output_does_not_depend_on_stays(
    strategy: str, tmp_path: Path
) -> None:
    model = {"name": f"{TESTS}/models.py:with_a_spare"}
    run = fedsim.run(tiny(strategy={"name": strategy}, model=model), out=tmp_path)
    assert events(run) == []
    assert run.arrays()["spare"].tolist() == [1.0, 1.0, 1.0]
    assert run.final["test/generic/accuracy"] > 0.3


class Doubled(LocalSGD):
    """Another loss, and a group training of its own."""

    def loss(self, fit: Fit, x: Tensor, y: Tensor) -> Tensor:
        return 2 * self.criterion(fit, fit.ctx.model.module(x), y)

    def train_group(self, tasks: Any) -> Any:
        return super().train_group(tasks)


class Below(Doubled):
    """Nothing of its own."""


def test_a_class_below_one_that_trains_groups_trains_groups() -> None:
    assert Below().group_size(mlp(SHAPE, 3)) == LocalSGD().group_size(mlp(SHAPE, 3)) > 1


def test_replaced_hooks_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"Old\.after_group_step has no effect"):

        class Old(LocalSGD):
            def after_group_step(self, fit: Any, batch: Any) -> None: ...
