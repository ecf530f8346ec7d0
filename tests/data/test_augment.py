import pytest
import torch

from fedsim.data.augment import Augmentation
from fedsim.errors import InputError


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_options_images_stay_as_they_are() -> None:
    x = torch.rand(4, 5, 6, 3) * 255
    own = Augmentation()
    assert torch.equal(own.pixels(x.clone(), generator()), x)
    y = x.permute(0, 3, 1, 2)
    assert torch.equal(own.normalised(y, generator()), y)


def test_a_crop_shifts_by_up_to_the_reach_and_lets_black_in() -> None:
    x = torch.zeros(2000, 7, 7, 1)
    x[:, 3, 3] = 200.0
    shifted = Augmentation(crop=2).pixels(x.clone(), generator())
    found = shifted[..., 0].nonzero()
    assert len(found) == 2000  # one bright pixel an image, as the reach is below the margin
    moves = {(int(r) - 3, int(c) - 3) for _, r, c in found}
    assert moves == {(r, c) for r in range(-2, 3) for c in range(-2, 3)}
    ones = Augmentation(crop=3).pixels(torch.ones(50, 7, 7, 1), generator())
    # Shifted by (r, c), (7 - |r|) (7 - |c|) pixels are left; the others are black.
    areas = {(7 - r) * (7 - c) for r in range(4) for c in range(4)}
    assert {int(a) for a in ones.sum((1, 2, 3))} <= areas


def test_half_of_the_images_are_mirrored() -> None:
    x = torch.arange(3.0).view(1, 1, 3, 1).repeat(4000, 2, 1, 1)
    flipped = Augmentation(flip=True).pixels(x.clone(), generator())[:, 0, :, 0]
    mirrored = (flipped == torch.tensor([2.0, 1.0, 0.0])).all(1)
    assert ((flipped == torch.tensor([0.0, 1.0, 2.0])).all(1) | mirrored).all()
    assert abs(int(mirrored.sum()) - 2000) < 4 * 32  # four standard deviations


def test_jitter_keeps_grey_grey_and_the_range() -> None:
    grey = torch.full((500, 2, 2, 3), 100.0)
    changed = Augmentation(jitter=0.4).pixels(grey.clone(), generator())
    assert torch.allclose(changed, changed[..., :1].expand_as(changed), atol=1e-3)
    # A flat image has no contrast and no colour: only brightness, 100 x [0.6, 1.4], is left.
    assert 60 <= changed.min() < 64
    assert 136 < changed.max() <= 140.001
    bright = Augmentation(jitter=0.9).pixels(torch.rand(50, 4, 4, 3) * 255, generator())
    assert bright.min() >= 0
    assert bright.max() <= 255


def test_colourless_images_have_the_luminance_of_bt601() -> None:
    x = torch.tensor([100.0, 50.0, 200.0]).view(1, 1, 1, 3).repeat(1000, 1, 1, 1)
    always = Augmentation(grayscale=1.0).pixels(x.clone(), generator())
    expected = 0.299 * 100 + 0.587 * 50 + 0.114 * 200
    assert torch.allclose(always, torch.full_like(always, expected), atol=1e-3)
    some = Augmentation(grayscale=0.2).pixels(x.clone(), generator())
    colourless = int((some[:, 0, 0, 0] != 100).sum())
    assert abs(colourless - 200) < 4 * 12.7


@pytest.mark.parametrize("side", [3, 4])
def test_a_cutout_is_a_square_cut_off_at_the_border(side: int) -> None:
    x = torch.ones(3000, 2, 9, 9)
    holes = Augmentation(cutout=side).normalised(x, generator()) == 0
    assert torch.equal(holes[:, 0], holes[:, 1])
    areas = holes[:, 0].sum((1, 2))
    assert int(areas.max()) == side * side
    middle = holes[:, 0, 4, 4].float().mean()
    # The centre pixel is hit by side x side of the 81 centres.
    assert abs(float(middle) - side * side / 81) < 4 * (side / 9) / 3000**0.5
    widths = holes[:, 0].any(1).sum(1)
    assert set(widths.tolist()) <= set(range(side // 2, side + 1))


def test_the_same_generator_gives_the_same_images() -> None:
    x = torch.rand(8, 6, 6, 3) * 255
    own = Augmentation(crop=1, flip=True, jitter=0.3, grayscale=0.3, cutout=2)
    first, again = (own.pixels(x.clone(), generator()) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, own.pixels(x.clone(), generator(4)))


@pytest.mark.parametrize(
    ("options", "name"),
    [({"crop": -1}, "crop"), ({"jitter": 1.0}, "jitter"), ({"grayscale": 2}, "grayscale"),
     ({"cutout": -2}, "cutout")],
)  # fmt: skip
def test_bad_options_are_named(options: dict[str, float], name: str) -> None:
    with pytest.raises(InputError, match=f"augment.{name}"):
        Augmentation(**options)  # type: ignore[arg-type]
