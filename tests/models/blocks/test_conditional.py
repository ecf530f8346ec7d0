"""Stacked networks against one module a client, differentiated by autograd."""

import pytest
import torch
import torch.nn.functional as F

from fedsim.models.blocks.conditional import Conditional, Padding, Stack
from fedsim.params import FlatModel

SIZES = [7, 5, 3]
INPUTS, DIM, CLASSES = 5, 6, 4


@pytest.mark.parametrize(("parts", "positive"), [(1, True), (2, False), (3, False)])
def test_passes_are_those_of_one_module_a_client(parts: int, positive: bool) -> None:
    """Short batches are padded; with several parts each is a batch of its own."""
    torch.manual_seed(0)
    n, clients = max(SIZES), len(SIZES)
    template = FlatModel(Conditional(INPUTS, DIM, DIM, CLASSES, positive)).params()
    start = template.flat + 0.1 * torch.randn(clients, len(template.flat)).abs()
    stack = Stack(template, start.clone(), positive)
    share = torch.zeros(clients, n)
    for i, k in enumerate(SIZES):
        share[i, :k] = 1 / k
    x = torch.randn(clients, parts, n, INPUTS)
    y = torch.randint(0, CLASSES, (clients, parts, n))
    inputs = torch.cat([x, F.one_hot(y, CLASSES).float()], 3).flatten(1, 2)
    delta = torch.randn(clients, parts, n, DIM) * (share > 0)[:, None, :, None]
    padding = Padding(share, SIZES, parts)
    before = stack.evaluated(inputs).clone().unflatten(1, (parts, n))
    out = stack.trained(inputs, padding).clone().unflatten(1, (parts, n))
    gradient = stack.backward(delta.flatten(1, 2), padding)
    after = stack.evaluated(inputs).unflatten(1, (parts, n))
    for i, k in enumerate(SIZES):
        model = FlatModel(Conditional(INPUTS, DIM, DIM, CLASSES, positive))
        model.flat.copy_(start[i])
        module = model.module

        def each(i: int = i, k: int = k, module: torch.nn.Module = module) -> torch.Tensor:
            return torch.stack([module(x[i, p, :k], y[i, p, :k]) for p in range(parts)])

        module.eval()
        torch.testing.assert_close(before[i, :, :k], each())
        module.train()
        outputs = each()
        torch.testing.assert_close(out[i, :, :k], outputs)
        grads = torch.autograd.grad((outputs * delta[i, :, :k]).sum(), model.parameters)
        expected = torch.cat([g.reshape(-1) for g in grads])
        limit = 2e-5 * float(expected.abs().max())
        torch.testing.assert_close(gradient[i], expected, rtol=0, atol=limit)
        torch.testing.assert_close(stack.flat[i], model.flat)  # the running statistics moved
        module.eval()
        torch.testing.assert_close(after[i, :, :k], each())


def test_a_client_without_samples_keeps_its_statistics() -> None:
    torch.manual_seed(0)
    template = FlatModel(Conditional(INPUTS, DIM, DIM, CLASSES, True)).params()
    stack = Stack(template, template.flat.repeat(2, 1), positive=True)
    share = torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    padding = Padding(share, [2, 0])
    inputs = torch.randn(2, 2, INPUTS + CLASSES)
    stack.trained(inputs, padding)
    delta = torch.randn(2, 2, DIM) * (share > 0)[:, :, None]
    gradient = stack.backward(delta, padding)
    assert not stack.flat[0].equal(template.flat)
    assert stack.flat[1].equal(template.flat)
    assert bool(gradient[0].any())
    assert not bool(gradient[1].any())
