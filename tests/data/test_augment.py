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


# Where things go


def squares(n: int = 40, size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (n, size, size, 1) with a bright rectangle each, and its box (n, 1, 4)."""
    draw = generator(5)
    corner = torch.randint(12, 24, (n, 2), generator=draw)
    side = torch.randint(6, 12, (n, 2), generator=draw)
    boxes = torch.cat([corner, corner + side], dim=1)
    x = torch.zeros(n, size, size, 1)
    for image, (x1, y1, x2, y2) in zip(x, boxes.tolist(), strict=True):
        image[y1:y2, x1:x2] = 200.0
    return x, boxes.float().unsqueeze(1)


@pytest.mark.parametrize(
    "options",
    [{"flip": True}, {"crop": 6}, {"scale": 0.4}, {"flip": True, "crop": 4, "scale": 0.3}],
)
def test_boxes_go_where_their_pixels_go(options: dict[str, float]) -> None:
    x, boxes = squares()
    moved, place = Augmentation(**options).placed(x, generator())  # type: ignore[arg-type]
    found, labels = place.boxes(boxes, torch.zeros(len(x), 1, dtype=torch.int64))
    assert (labels == 0).all()
    assert not torch.equal(found, boxes)
    for image, (x1, y1, x2, y2) in zip(moved[..., 0], found[:, 0].tolist(), strict=True):
        rows, columns = (image > 100).any(1).nonzero(), (image > 100).any(0).nonzero()
        # Interpolated edges may lie half a pixel off.
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert [float(e) for e in edges] == pytest.approx([x1, y1, x2, y2], abs=1.0)


def test_mapping_boxes_twice_through_a_mirror_is_the_identity() -> None:
    _, boxes = squares()
    labels = torch.ones(len(boxes), 1, dtype=torch.int64)
    _, place = Augmentation(flip=True).placed(torch.zeros(len(boxes), 48, 48, 1), generator())
    assert place.mirrored.any()
    once = place.boxes(boxes, labels)
    assert not torch.equal(once[0], boxes)
    twice, same = place.boxes(*once)
    assert torch.equal(twice, boxes)
    assert torch.equal(same, labels)


def test_boxes_that_leave_the_image_are_cut_off_or_gone() -> None:
    place = Augmentation().placed(torch.zeros(1, 20, 30, 1), generator())[1]
    place.shift = torch.tensor([[18.0, 0.0]])
    boxes = torch.tensor(
        [[[0.0, 0, 10, 10], [4, 0, 16, 10], [8, 0, 20, 10], [11.5, 0, 13, 4], [2, 2, 3, 3]]]
    )
    labels = torch.tensor([[0, 1, 2, 3, -1]])
    found, kept = place.boxes(boxes, labels)
    # Of 10, 12, 12 and 1.5 columns 10, 8, 4 and 0.5 are left; a quarter and a pixel must be.
    assert kept.tolist() == [[0, 1, 2, -1, -1]]
    assert found[0, :3].tolist() == [[18, 0, 28, 10], [22, 0, 30, 10], [26, 0, 30, 10]]
    assert found[0, 3:].abs().sum() == 0
    place.shift = torch.tensor([[21.0, 0.0]])
    assert place.boxes(boxes, labels)[1].tolist() == [[0, 1, -1, -1, -1]]


def test_a_zoom_keeps_the_picture_inside_or_shows_a_window_of_it() -> None:
    x = torch.full((500, 16, 16, 1), 100.0)
    zoomed, place = Augmentation(scale=0.5).placed(x, generator())
    assert float(place.factor.min()) > 0.5
    assert float(place.factor.max()) < 1.5
    assert abs(float(place.factor.mean()) - 1) < 4 * 0.29 / 500**0.5
    small = place.factor < 1
    lit = (zoomed > 50).float().mean((1, 2, 3)) * 256
    assert (lit[~small] == 256).all()
    sides = 16 * place.factor[small]
    assert ((lit[small] >= (sides - 1.01) ** 2) & (lit[small] <= (sides + 1.01) ** 2)).all()


def test_blur_is_binomial_and_keeps_the_mean() -> None:
    x = torch.zeros(1, 9, 9, 1)
    x[0, 4, 4] = 256.0
    soft = Augmentation(blur=1.0).pixels(x, generator())[0, :, :, 0]
    assert soft[4].tolist() == [0, 0, 6, 24, 36, 24, 6, 0, 0]
    assert float(soft.sum()) == 256.0
    flat = torch.full((300, 6, 5, 3), 7.0)
    assert torch.equal(Augmentation(blur=1.0).pixels(flat.clone(), generator()), flat)
    noisy = torch.rand(1000, 4, 4, 3)
    half = Augmentation(blur=0.5).pixels(noisy.clone(), generator())
    changed = int((half != noisy).flatten(1).any(1).sum())
    assert abs(changed - 500) < 4 * 16


@pytest.mark.parametrize(("name", "value"), [("scale", 1.0), ("scale", -0.1), ("blur", 1.5)])
def test_bad_values_of_what_moves_are_named(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"augment.{name}"):
        Augmentation(**{name: value})
