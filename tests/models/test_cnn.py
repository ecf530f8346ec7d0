import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedsim.errors import InputError
from fedsim.models.cnn import cnn
from fedsim.params import FlatModel

FASHION = (1, 28, 28)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_five_by_five_network_has_46730_parameters() -> None:
    # 16*25+16 + 32*16*25+32 + 64*(32*4*4)+64 + 10*64+10
    assert count(cnn(FASHION, 10)) == 46_730


def test_three_by_three_network_has_1199882_parameters() -> None:
    # 32*9+32 + 64*32*9+64 + 128*(64*12*12)+128 + 10*128+10
    model = cnn(FASHION, 10, channels=(32, 64), kernel=3, hidden=128, pool="last")
    assert count(model) == 1_199_882


def test_padding_keeps_the_size_that_pools_then_halve() -> None:
    # 8x8 -> 4x4 -> 2x2: 16*9+16 + 32*16*9+32 + 64*(32*4)+64 + 10*64+10
    model = cnn((1, 8, 8), 10, kernel=3, padding=1)
    assert count(model) == 160 + 4640 + 8256 + 650


def test_fraugs_network_for_digits_by_hand() -> None:
    """Pools of side 3 halve 32 x 32 to 8 x 8; BatchNorm everywhere has a scale and a shift."""
    model = cnn(
        (3, 32, 32), 10, channels=(64, 64, 128), kernel=5, padding=2, pool=(3, 3, 1),
        hidden=(2048, 512), norm="batch-all",
    ).eval()  # fmt: skip
    convolutions = 64 * 75 + 64 + 64 * 1600 + 64 + 128 * 1600 + 128
    linear = 2048 * 8192 + 2048 + 512 * 2048 + 512 + 10 * 512 + 10
    norms = 2 * (64 + 64 + 128 + 2048 + 512)
    assert count(model) == convolutions + linear + norms == 18_151_370
    shapes = []
    x = torch.randn(2, 3, 32, 32)
    for layer in model.get_submodule("body").children():
        x = layer(x)
        if isinstance(layer, nn.MaxPool2d | nn.Flatten | nn.ReLU):
            shapes.append(tuple(x.shape[1:]))
    first, second, third = (64, 16, 16), (64, 8, 8), (128, 8, 8)
    assert shapes == [first, first, second, second, third, (8192,), (2048,), (512,)]


def test_sides_of_pools_are_those_of_their_names() -> None:
    """The same network, bit for bit, which also trains several clients in one kernel."""
    for name, sides in (("each", (2, 2)), ("last", (1, 2))):
        torch.manual_seed(0)
        named = cnn(FASHION, 10, pool=name, kernel=3)  # type: ignore[arg-type]
        torch.manual_seed(0)
        listed = cnn(FASHION, 10, pool=sides, kernel=3, hidden=(64,))
        x = torch.randn(2, 1, 28, 28)
        assert named(x).equal(listed(x))
        assert type(named) is type(listed)
        assert hasattr(listed, "batched_gradients")


def test_a_pool_of_side_three_reaches_over_the_edge() -> None:
    torch.manual_seed(0)
    model = cnn((1, 5, 5), 3, channels=(2,), kernel=1, pool=(3,), hidden=(6, 4)).eval()
    first, *linear = (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    x = torch.randn(4, 1, 5, 5)
    z = F.pad(first(x), (1, 1, 1, 1), value=-math.inf)
    z = z.unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5)).relu().flatten(1)
    assert z.shape == (4, 2 * 3 * 3)
    expected = linear[2](F.relu(linear[1](F.relu(linear[0](z)))))
    torch.testing.assert_close(model(x), expected)


def test_one_sample_is_normalised_by_the_running_statistics() -> None:
    """In hidden layers, where it has no variance; the statistics stay."""
    torch.manual_seed(0)
    body = cnn((1, 4, 4), 3, channels=(2,), kernel=1, hidden=(6,), norm="batch-all").body
    *_, norm, _relu = body.children()  # type: ignore[operator]
    h = torch.randn(5, 6)
    norm(h)  # the mean moves a tenth of the way from 0
    before = norm.running_mean.clone()
    torch.testing.assert_close(before, 0.1 * h.mean(0))
    variance = 0.9 + 0.1 * h.var(0)
    torch.testing.assert_close(norm(h[:1]), (h[:1] - before) / (variance + 1e-5).sqrt())
    assert norm.running_mean.equal(before)
    assert int(norm.num_batches_tracked) == 1
    torch.testing.assert_close(norm(h).mean(0), torch.zeros(6))


def test_pooling_before_relu_equals_relu_before_pooling() -> None:
    torch.manual_seed(0)
    model = cnn(FASHION, 10).eval()
    first, second, hidden, head = (
        m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)
    )
    x = torch.randn(4, 1, 28, 28)
    z = F.max_pool2d(F.relu(first(x)), 2)
    z = F.max_pool2d(F.relu(second(z)), 2)
    expected = head(F.relu(hidden(z.flatten(1))))
    torch.testing.assert_close(model(x), expected)


def test_a_flat_model_computes_what_the_module_did() -> None:
    torch.manual_seed(0)
    model = cnn((3, 12, 12), 5, channels=(4, 6), kernel=3, hidden=7)
    x = torch.randn(2, 3, 12, 12)
    expected = model(x)
    FlatModel(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


def test_the_forward_pass_leaves_its_input_as_it_was() -> None:
    x = torch.randn(2, 1, 28, 28)
    before = x.clone()
    cnn(FASHION, 10)(x).sum().backward()
    assert torch.equal(x, before)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = cnn(FASHION, 10, dropout=0.5)
    x = torch.randn(2, 1, 28, 28)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_logits_are_the_head_of_the_body() -> None:
    model = cnn(FASHION, 7, hidden=12)
    x = torch.randn(3, 1, 28, 28)
    body, head = model.get_submodule("body"), model.get_submodule("head")
    assert body(x).shape == (3, 12)
    assert isinstance(head, nn.Linear)
    assert torch.equal(model(x), head(body(x)))
    assert model(x).shape == (3, 7)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": 3},
        {"kernel": 3, "padding": 1, "pool": "last"},
        {"kernel": 5, "padding": 2, "channels": (4,)},
        {"kernel": 3, "padding": 1, "channels": (2, 3, 4)},
    ],
)
@pytest.mark.parametrize("shape", [(1, 10, 12), (3, 11, 10)])
@pytest.mark.parametrize("clients", [1, 3])
def test_batched_gradients_are_those_of_autograd(
    options: dict[str, Any], shape: tuple[int, int, int], clients: int
) -> None:
    torch.manual_seed(1)
    module = cnn(shape, 4, hidden=6, **{"channels": (3, 5), **options})
    model = FlatModel(module)
    flat = model.flat.clone() + 0.1 * torch.randn(clients, model.layout.size)
    x, y = torch.randn(clients, 5, *shape), torch.randint(0, 4, (clients, 5))
    lengths = [5, 3, 1][:clients]  # the batches of the second and third client are padded
    share = torch.zeros(clients, 5)
    for i, n in enumerate(lengths):
        share[i, :n] = 1 / n
    before = flat.clone(), x.clone()
    losses, grads = module.batched_gradients(flat, x, y, share)  # type: ignore[operator]
    assert torch.equal(flat, before[0])
    assert torch.equal(x, before[1])
    for i, n in enumerate(lengths):
        model.flat.copy_(flat[i])
        loss = F.cross_entropy(module(x[i, :n]), y[i, :n])
        expected = torch.empty_like(flat[i])
        for view, grad in zip(
            model.layout.views(expected).values(),
            torch.autograd.grad(loss, model.parameters),
            strict=True,
        ):
            view.copy_(grad)
        torch.testing.assert_close(losses[i], loss.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grads[i], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"channels": ()}, "channels"),
        ({"channels": (4, 0)}, "channels"),
        ({"kernel": 0}, "kernel"),
        ({"hidden": 0}, "hidden"),
        ({"hidden": (8, 0)}, "hidden"),
        ({"hidden": ()}, "hidden"),
        ({"pool": (2,)}, "pool must have 2 sides"),
        ({"pool": (2, 0)}, "sides of pool"),
        ({"padding": -1}, "padding"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        cnn(FASHION, 10, **options)  # type: ignore[arg-type]


def test_an_image_too_small_for_the_pools_is_refused() -> None:
    with pytest.raises(InputError, match="8 x 8 pixels are too small"):
        cnn((1, 8, 8), 10)
