"""The four-stage residual networks, and what all bodies have in common."""

from typing import Any

import pytest
import torch

from fedsim.errors import InputError
from fedsim.models.cnn import cnn
from fedsim.models.mlp import mlp
from fedsim.models.resnet import resnet
from fedsim.models.resnet_imagenet import resnet_imagenet


# Parameters of torchvision's models with 1000 classes.
@pytest.mark.parametrize(
    ("depth", "size"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_parameters_are_those_of_the_paper(depth: Any, size: int) -> None:
    with torch.device("meta"):
        module = resnet_imagenet((3, 224, 224), 1000, depth=depth, stem="large")
    assert sum(p.numel() for p in module.parameters()) == size


@pytest.mark.parametrize("stem", ["small", "large"])
def test_shapes(stem: str) -> None:
    module = resnet_imagenet((3, 32, 32), 7, width=8, stem=stem).eval()  # type: ignore[arg-type]
    x = torch.randn(2, 3, 32, 32)
    shapes = []
    for layer in module.body:  # type: ignore[union-attr]
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    sides = [32, 32, 16, 8, 4] if stem == "small" else [16, 8, 4, 2, 1]
    assert shapes[2] == (8, sides[0], sides[0])
    assert shapes[-5] == (32, sides[3], sides[3])
    assert shapes[-3] == (64, sides[4], sides[4])
    assert shapes[-1] == (64,)
    assert module.head(x).shape == (2, 7)  # type: ignore[operator]


def test_bad_options() -> None:
    with pytest.raises(InputError, match="depth must be one of 18, 34, 50, 101, 152, got 20"):
        resnet_imagenet((3, 32, 32), 7, depth=20)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs a data set of images"):
        resnet_imagenet((20, 100), 7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: mlp((1, 28, 28), 10, hidden=(32, 16)),
        lambda: cnn((1, 28, 28), 10, channels=(4, 8), kernel=3, padding=1, hidden=16),
        lambda: resnet((1, 28, 28), 10, width=8),
        lambda: resnet_imagenet((1, 28, 28), 10, width=8),
        lambda: resnet_imagenet((1, 28, 28), 10, width=8, depth=50),
    ],
)
def test_features_are_not_negative(make) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    module = make().train()
    features = module.body(torch.randn(16, 1, 28, 28))
    assert float(features.detach().min()) >= 0
    assert float(features.detach().max()) > 0
