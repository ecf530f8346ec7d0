import hashlib

import numpy as np
import pytest

from fedsim.data.synthetic.scenes import Draws
from fedsim.data.synthetic.weather import WEATHERS, apply_weather
from fedsim.errors import InputError

FALLING = ("rain", "snow")
DIGESTS = {
    "fog": "dbb59e33d30d8aac",
    "rain": "e45ac00db3865ea8",
    "night": "230f1fd850ef3140",
    "overcast": "bb13ded0d7662e90",
    "snow": "c6c9efd58e9b6f22",
}


def pictures(n: int = 6, size: int = 64) -> np.ndarray:
    return Draws(1, "pictures").raw(n, size, size, 3).astype(np.uint8)


def plain(grey: int, n: int = 4, size: int = 64) -> np.ndarray:
    return np.full((n, size, size, 3), grey, np.uint8)


def under(name: str, images: np.ndarray, strength: float, seed: int = 0) -> np.ndarray:
    return apply_weather(images, name, np.full(len(images), strength), Draws(seed, name))


@pytest.mark.parametrize("name", WEATHERS)
def test_strength_0_changes_nothing(name: str) -> None:
    images = pictures()
    assert (under(name, images, 0) == images).all()


@pytest.mark.parametrize("name", [name for name in WEATHERS if name != "clear"])
def test_stronger_weather_changes_more(name: str) -> None:
    images = pictures()
    change = [
        np.abs(under(name, images, strength).astype(int) - images).mean()
        for strength in (0, 0.25, 0.5, 1)
    ]
    assert change == sorted(change)
    assert change[1] > 3


@pytest.mark.parametrize("name", WEATHERS)
def test_an_image_does_not_depend_on_the_others(name: str) -> None:
    images, strength = pictures(), np.linspace(0.2, 1, 6)
    at_once = apply_weather(images, name, strength, Draws(5, name))
    draws = Draws(5, name)
    pieces = [
        apply_weather(images[rows], name, strength[rows], draws)
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    assert (np.concatenate(pieces) == at_once).all()


@pytest.mark.parametrize("name", [name for name in WEATHERS if name != "clear"])
def test_the_same_bytes_on_any_machine(name: str) -> None:
    changed = under(name, pictures(), 0.7)
    assert changed.dtype == np.uint8
    assert hashlib.sha256(changed.tobytes()).hexdigest()[:16] == DIGESTS[name]


def test_the_images_given_are_left_alone() -> None:
    images = pictures()
    before = images.copy()
    for name in WEATHERS:
        under(name, images, 1)
    assert (images == before).all()


def test_fog_hides_what_is_far_up_most() -> None:
    images = pictures(20)
    changed = under("fog", images, 0.8).astype(float)
    contrast = [changed[:, rows].std() for rows in (slice(0, 16), slice(24, 40), slice(48, 64))]
    assert contrast == sorted(contrast)
    assert contrast[0] < 0.5 * images.std()
    assert changed[:, :4].mean() > 170


def test_night_is_dark_bluish_and_noisy() -> None:
    changed = under("night", plain(200), 1).astype(float)
    means = changed.mean((0, 1, 2))
    # 200 * (1 - .78) is 44 before the tint of .7, .82 and 1.
    assert np.abs(means - [30.8, 36.08, 44]).max() < 0.3
    assert 8 < changed[..., 2].std() < 10


def test_overcast_takes_contrast_and_colour() -> None:
    images = pictures()
    changed = under("overcast", images, 1).astype(float)
    assert changed.std() < 0.4 * images.std()
    assert np.ptp(changed, axis=3).mean() < 0.4 * np.ptp(images, axis=3).mean()
    # A plain grey g of level L: (g * .4 + L * .6) * (.86, .91, .98) with L in 100..125.
    low, high = ((100 * 0.4 + level * 0.6) * np.array([0.86, 0.91, 0.98]) for level in (100, 125))
    grey = under("overcast", plain(100), 1).astype(float)
    assert (grey >= low - 0.51).all()
    assert (grey <= high + 0.51).all()


@pytest.mark.parametrize("name", FALLING)
def test_something_falls(name: str) -> None:
    changed = under(name, plain(60, 20), 0.8).astype(int)[..., 0]
    ground = np.median(changed)
    lit = (changed > ground + 15).mean()
    assert 0.01 < lit < 0.25
    rows, columns = (changed > ground + 15).mean((0, 2)), (changed > ground + 15).mean((0, 1))
    for share in (rows, columns):  # everywhere in the picture alike
        assert share.min() > 0.3 * lit
        assert share.max() < 2.5 * lit


def test_unknown_weather() -> None:
    with pytest.raises(InputError, match=r"clear, fog.*Did you mean 'rain'\?, got 'rainy'"):
        under("rainy", pictures(), 1)
