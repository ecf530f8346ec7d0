import pytest
import torch
from torch import nn

from fedsim.errors import InputError
from fedsim.models.resnet import resnet


def test_depth_eight_has_the_layers_of_the_paper() -> None:
    model = resnet((3, 32, 32), 10)
    kernels = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    # the first one, two in each of three blocks, and two 1x1 shortcuts
    assert len([m for m in kernels if m.kernel_size == (3, 3)]) == 7
    assert len([m for m in kernels if m.kernel_size == (1, 1)]) == 2
    # 3x3 kernels 432 + 2*2304 + 4608+9216 + 18432+36864, shortcuts 512+2048,
    # BatchNorm 2*(3*16 + 3*32 + 3*64), head 650
    assert sum(p.numel() for p in model.parameters()) == 74160 + 2560 + 672 + 650


def test_depth_fourteen_has_two_blocks_a_stage() -> None:
    model = resnet((1, 16, 16), 10, depth=14, width=4)
    kernels = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len([m for m in kernels if m.kernel_size == (3, 3)]) == 13


def test_norm_chooses_the_layers_and_their_buffers() -> None:
    assert not list(resnet((1, 8, 8), 10, norm="none").buffers())
    assert not list(resnet((1, 8, 8), 10, norm="group").buffers())
    batch = resnet((1, 8, 8), 10)
    # running mean, running variance and a counter for each of nine layers
    assert len(list(batch.buffers())) == 27


def test_logits_are_the_head_of_the_body() -> None:
    model = resnet((1, 9, 7), 5, width=4).eval()
    x = torch.randn(2, 1, 9, 7)
    body, head = model.get_submodule("body"), model.get_submodule("head")
    assert body(x).shape == (2, 16)
    assert torch.equal(model(x), head(body(x)))
    assert model(x).shape == (2, 5)


def test_an_image_of_one_pixel_is_enough() -> None:
    assert resnet((1, 1, 1), 3, width=2).eval()(torch.zeros(1, 1, 1, 1)).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"depth": 10}, "depth"), ({"depth": 2}, "depth"), ({"width": 0}, "width")],
)
def test_bad_options_are_named(options: dict[str, int], named: str) -> None:
    with pytest.raises(InputError, match=named):
        resnet((3, 32, 32), 10, **options)  # type: ignore[arg-type]


def test_groups_need_a_width_of_eights() -> None:
    with pytest.raises(InputError, match="multiple of 8"):
        resnet((3, 32, 32), 10, width=12, norm="group")
