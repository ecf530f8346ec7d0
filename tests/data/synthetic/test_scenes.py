import hashlib

import numpy as np
import pytest

from fedsim.data.synthetic.scenes import (
    Backgrounds,
    Draws,
    Objects,
    Scenes,
    choose,
    render,
    resize,
    scatter,
)


def one(
    pictures: np.ndarray, *places: tuple[int, int, int, int], size: int = 64, ground: int = 100
) -> Scenes:
    """Render one scene of places (picture, side, x, y) on a plain ground."""
    objects = Objects(*(np.array([column]) for column in zip(*places, strict=True)))
    grounds = Backgrounds([np.full((size, size, 3), ground, np.uint8)], size)
    (scenes,) = render(pictures, objects, grounds, np.full((1, 5), 0.9))
    return scenes


def picture(alpha: np.ndarray, colour: tuple[int, int, int] = (10, 200, 30)) -> np.ndarray:
    rgba = np.zeros((*alpha.shape, 4), np.uint8)
    rgba[..., :3], rgba[..., 3] = colour, alpha
    return rgba


def test_the_box_is_tight_around_the_opaque_pixels() -> None:
    alpha = np.zeros((8, 8))
    alpha[2:5, 1:6] = 255
    alpha[7, 7] = 127  # drawn, but too faint to count
    scenes = one(picture(alpha)[None], (0, 8, 20, 30))
    assert scenes.boxes[0, 0].tolist() == [21, 32, 26, 35]
    assert scenes.shown.tolist() == [[True]]
    image = scenes.images[0].astype(int)
    assert (image[32:35, 21:26] == (10, 200, 30)).all()
    # 100 * 128 / 255 is 50.2; the colours times 127 / 255 are 4.98, 99.6 and 14.9.
    assert image[37, 27].tolist() == [50 + 5, 50 + 100, 50 + 15]
    untouched = np.ones((64, 64), bool)
    untouched[32:35, 21:26] = untouched[37, 27] = False
    assert (image[untouched] == 100).all()


def test_a_box_shrinks_to_what_is_visible() -> None:
    square = picture(np.full((8, 8), 255))[None]
    scenes = one(square, (0, 8, 10, 10), (0, 8, 14, 10))  # half stays visible
    assert scenes.boxes[0].tolist() == [[10, 10, 14, 18], [14, 10, 22, 18]]
    assert scenes.shown.all()


def test_an_object_that_hides_more_than_half_is_not_pasted() -> None:
    squares = np.stack([picture(np.full((8, 8), 255), c) for c in ((1, 1, 1), (9, 9, 9))])
    scenes = one(squares, (0, 8, 10, 10), (1, 8, 13, 10))
    assert scenes.boxes[0].tolist() == [[10, 10, 18, 18], [0, 0, 0, 0]]
    assert scenes.shown.tolist() == [[True, False]]
    assert not (scenes.images == 9).any()


def test_what_two_hide_together_counts() -> None:
    square = picture(np.full((8, 8), 255))[None]
    # A quarter from the left, then three eighths from the right would leave three eighths.
    scenes = one(square, (0, 8, 20, 20), (0, 8, 14, 20), (0, 8, 25, 20))
    assert scenes.shown.tolist() == [[True, True, False]]
    assert scenes.boxes[0, 0].tolist() == [22, 20, 28, 28]


def test_no_picture_and_an_invisible_one_are_not_shown() -> None:
    faint = picture(np.full((8, 8), 127))[None]
    scenes = one(faint, (-1, 8, 0, 0), (0, 8, 5, 5))
    assert scenes.shown.tolist() == [[False, False]]
    assert (scenes.images == 100).all()


def test_resize_keeps_what_needs_no_change() -> None:
    bits = np.random.Philox(key=1).random_raw(32 * 32 * 4).astype(np.uint8)
    pictures = bits.reshape(1, 32, 32, 4)
    assert (resize(pictures, 32) == pictures).all()
    for side in (5, 20, 33, 96):
        assert (resize(np.full((2, 32, 32, 4), 201, np.uint8), side) == 201).all()


def test_resize_by_two() -> None:
    row = np.array([0, 64, 128, 192], np.uint8)
    pictures = np.broadcast_to(row, (4, 4))[None, ..., None]
    # A tent two pixels wide to each side: 3, 3 and 1 of 7, in 64ths 27.4, 27.4 and 9.1: 27, 27
    # and 9, and the first of the largest takes what is missing.
    wanted = [(28 * 0 + 27 * 64 + 9 * 128) // 64, (9 * 64 + 28 * 128 + 27 * 192) // 64]
    assert resize(pictures, 2)[0, 0, :, 0].tolist() == wanted
    # Enlarged, a new pixel lies a quarter from the old one: weights 3 and 1 of 4.
    assert resize(pictures, 8)[0, 0, :, 0].tolist() == [0, 16, 48, 80, 112, 144, 176, 192]


def test_scatter_keeps_squares_apart() -> None:
    u = Draws(0, "test").uniform(200, 4, 4 + 2)
    side = 20 + choose(u[..., 0], 29)
    picture = np.where(u[..., 1] < 0.9, 0, -1)
    places = Draws(0, "places").uniform(200, 4, 4, 2)
    objects = scatter(picture, side, places, 128)
    assert (objects.x >= 0).all()
    assert (objects.x + side <= 128).all()
    assert (objects.y >= 0).all()
    assert (objects.y + side <= 128).all()
    assert (objects.picture[picture < 0] == -1).all()
    assert (objects.picture == 0).sum() > 0.95 * (picture == 0).sum()
    for i in range(200):
        there = np.flatnonzero(objects.picture[i] >= 0)
        for a in there:
            for b in there[there < a]:
                wide, high = (
                    min(p[i, a] + side[i, a], p[i, b] + side[i, b]) - max(p[i, a], p[i, b])
                    for p in (objects.x, objects.y)
                )
                shared = max(wide, 0) * max(high, 0)
                assert shared <= 0.25 * min(side[i, a], side[i, b]) ** 2


def test_scatter_leaves_out_what_fits_nowhere() -> None:
    places = np.zeros((1, 2, 3, 2))  # always the upper left corner
    objects = scatter(np.zeros((1, 2), int), np.full((1, 2), 40), places, 64)
    assert objects.picture.tolist() == [[0, -1]]


def test_backgrounds_are_crops_whole_halved_and_mirrored() -> None:
    photograph = np.zeros((130, 200, 3), np.uint8)
    photograph[..., 0] = np.arange(200)
    photograph[..., 1] = np.arange(130)[:, None]
    grounds = Backgrounds([np.zeros((60, 300, 3), np.uint8), photograph], 64)  # the first is small
    whole = grounds.crop(np.array([0.0, 0.0, 0.999, 0.5, 0.9]))
    assert whole[0, 0, :2].tolist() == [68, 66]
    assert whole[63, 63, :2].tolist() == [131, 129]
    mirrored = grounds.crop(np.array([0.0, 0.0, 0.999, 0.5, 0.1]))
    assert (mirrored == whole[:, ::-1]).all()
    half = grounds.crop(np.array([0.0, 0.9, 0.0, 0.0, 0.9]))
    assert half[0, :3, 0].tolist() == [1, 3, 5]  # the mean of 0 and 1 is rounded up
    assert half[:3, 0, 1].tolist() == [1, 3, 5]


def test_draws_do_not_depend_on_how_many_are_taken_at_once() -> None:
    at_once = Draws(3, "a").uniform(10, 7)
    draws = Draws(3, "a")
    assert (np.concatenate([draws.uniform(4, 7), draws.uniform(6, 7)]) == at_once).all()
    assert at_once.min() >= 0
    assert at_once.max() < 1
    assert not (Draws(3, "b").uniform(10, 7) == at_once).any()
    assert not (Draws(4, "a").uniform(10, 7) == at_once).any()


@pytest.mark.parametrize("count", [1, 7, 8, 9, 30])
def test_the_same_bytes_on_any_machine_and_in_any_number(count: int) -> None:
    draws = Draws(0, "scenes")
    pictures = draws.raw(6, 32, 32, 4).astype(np.uint8)
    photograph = draws.raw(300, 200, 3).astype(np.uint8)
    u = draws.uniform(30, 5 + 3 * 10)[:count]
    own = u[:, 5:].reshape(count, 3, 10)
    side = 20 + choose(own[..., 1], 29)
    objects = scatter(choose(own[..., 0], 6), side, own[..., 2:].reshape(count, 3, 4, 2), 128)
    made = list(render(pictures, objects, Backgrounds([photograph], 128), u[:, :5]))
    images = np.concatenate([scenes.images for scenes in made])
    boxes = np.concatenate([scenes.boxes for scenes in made])
    assert images.shape == (count, 128, 128, 3)
    assert hashlib.sha256(images[0].tobytes()).hexdigest()[:16] == "9ed4e72967e2a8c9"
    if count == 30:
        assert hashlib.sha256(images.tobytes()).hexdigest()[:16] == "12eedf076e3f8676"
        assert hashlib.sha256(boxes.tobytes()).hexdigest()[:16] == "4e6675c3ad835458"
