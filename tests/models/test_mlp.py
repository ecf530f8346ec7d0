import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.errors import InputError
from fedsim.models.mlp import mlp
from fedsim.params import FlatModel


def test_one_hidden_layer_of_64_has_50890_parameters() -> None:
    # 784*64 + 64 + 64*10 + 10
    assert sum(p.numel() for p in mlp((1, 28, 28), 10).parameters()) == 50_890


@pytest.mark.parametrize("hidden", [(), (8, 0)])
def test_bad_widths_are_refused(hidden: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="hidden"):
        mlp((1, 2, 2), 3, hidden=hidden)


def gradients(model: FlatModel, flat: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and flat gradient by autograd at parameters `flat`."""
    model.flat.copy_(flat)
    loss = F.cross_entropy(model.module(x), y)
    grads = torch.autograd.grad(loss, model.parameters)
    return loss.detach(), torch.cat([g.reshape(-1) for g in grads])


@pytest.mark.parametrize("hidden", [(6,), (6, 5)])
def test_batched_gradients_are_those_of_autograd(hidden: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    module = mlp((2, 3, 3), 4, hidden=hidden)
    model = FlatModel(module)
    size = model.layout.size
    flat = model.flat.clone() + 0.3 * torch.randn(3, size)
    x, y = torch.randn(3, 5, 2, 3, 3), torch.randint(0, 4, (3, 5))
    lengths = [5, 3, 1]  # the second and third client's batches are padded
    share = torch.zeros(3, 5)
    for i, n in enumerate(lengths):
        share[i, :n] = 1 / n
    before = flat.clone()
    with torch.no_grad():
        losses, grads = module.batched_gradients(flat, x, y, share)  # type: ignore[operator]
    assert torch.equal(flat, before)
    for i, n in enumerate(lengths):
        loss, grad = gradients(model, flat[i], x[i, :n], y[i, :n])
        torch.testing.assert_close(losses[i], loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grads[i], grad, rtol=1e-4, atol=1e-6)
