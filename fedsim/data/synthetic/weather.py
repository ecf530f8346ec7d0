"""Weather effects on pictures: fog, rain, night, overcast and snow, each with a strength.

Everything is whole-number or element-wise arithmetic on raw Philox draws, without sine or
exponential functions, whose last digits differ between machines: the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from fedsim.data.synthetic.scenes import Draws
from fedsim.errors import check, nearest

Effect = Callable[[np.ndarray, np.ndarray, Draws], np.ndarray]  # may write to the first


def apply_weather(images: np.ndarray, name: str, strength: np.ndarray, draws: Draws) -> np.ndarray:
    """Return the images under the weather `name`, uint8 (b, S, S, 3), S a multiple of 8.

    strength (b,) in [0, 1]; at 0 an image is unchanged. The number of draws for an image depends
    on its size and the weather alone, so image i is the same however many follow it.

    Raises:
        InputError: unknown weather.
    """
    requirement = f"a weather must be one of {', '.join(WEATHERS)}{nearest(name, WEATHERS)}"
    check(name in WEATHERS, requirement, name)
    if name == "clear":
        return images
    changed = WEATHERS[name](
        images.astype(np.float32), strength.astype(np.float32)[:, None, None, None], draws
    )
    changed += np.float32(0.5)
    return np.clip(changed, 0, 255, out=changed).astype(np.uint8)


def _clear(x: np.ndarray, s: np.ndarray, draws: Draws) -> np.ndarray:
    return x


def _fog(x: np.ndarray, s: np.ndarray, draws: Draws) -> np.ndarray:
    """Blend into grey, the more the further up, as if the ground receded; in drifting patches."""
    b, size = x.shape[:2]
    u = draws.uniform(b, 17).astype(np.float32)
    patches = _enlarge(u[:, :16].reshape(b, 4, 4), size)
    depth = np.linspace(1, 0.25, size, dtype=np.float32)[:, None]
    optical = s[..., 0] * 1.6 * depth * (0.7 + 0.6 * patches)
    clarity = 1 / ((1 + optical) * (1 + optical))
    light = (200 + 30 * u[:, 16])[:, None, None]
    for channel, tint in enumerate((0.98, 1, 1.01)):  # one at a time: three times as fast
        plane = x[..., channel]
        plane -= light * np.float32(tint)
        plane *= clarity
        plane += light * np.float32(tint)
    return x


def _rain(x: np.ndarray, s: np.ndarray, draws: Draws) -> np.ndarray:
    """Darken, take colour away and draw slanted streaks."""
    b, size = x.shape[:2]
    most = size * size // 90
    bits = draws.raw(b, most + 1)
    slant = ((bits[:, :1] & np.uint64(255)).astype(np.int64) - 128) * 6 // 10
    column, row, length, light = _fields(bits[:, 1:])
    count = np.arange(most) < s[:, 0, 0] * most
    # Coordinates in 256ths of a pixel; a streak may begin above and beside the picture.
    length = size // 16 + (length * size // 12 >> 16)
    longest = int(size // 16 + size // 12) + 1
    steps = np.arange(longest)
    rows = (row * (size + longest) >> 16)[..., None] - longest + steps
    columns = (column * (size + longest) >> 8)[..., None] - longest * 128
    columns = columns + slant[..., None] * steps
    value = (90 + (light * 110 >> 16))[..., None]
    drawn = count[..., None] & (steps < length[..., None]) & (rows >= 0) & (rows < size)
    layer = np.zeros((b, size, size), np.uint8)
    fraction = columns & 255
    for side, share in ((0, 256 - fraction), (1, fraction)):
        at = (columns >> 8) + side
        inside = drawn & (at >= 0) & (at < size)
        image = np.broadcast_to(np.arange(b)[:, None, None], inside.shape)[inside]
        where = (image * size + rows[inside]) * size + at[inside]
        opacity = (np.broadcast_to(value, inside.shape)[inside] * share[inside]) >> 8
        np.maximum.at(layer.reshape(-1), where, opacity.astype(np.uint8))
    x = _towards_grey(x, 0.5 * s)
    x *= 1 - 0.4 * s
    x += 12 * s
    return _cover(x, layer, 205)


def _night(x: np.ndarray, s: np.ndarray, draws: Draws) -> np.ndarray:
    """Little light, bluish, and the noise of a sensor turned up."""
    b, size = x.shape[:2]
    bits = draws.raw(b, size * size * 3 // 8).astype("<u8").view(np.uint8)
    noise = _NORMAL[bits].reshape(x.shape)
    tint = 1 - s * np.array([0.3, 0.18, 0.0], np.float32)
    dark = _towards_grey(x, 0.3 * s)
    dark *= (1 - 0.78 * s) * tint
    noise *= 9 * s
    dark += noise
    return dark


def _overcast(x: np.ndarray, s: np.ndarray, draws: Draws) -> np.ndarray:
    """Flat, dim light without shadows: less contrast and colour, a little blue."""
    u = draws.uniform(len(x), 1).astype(np.float32)[:, :, None, None]
    level = 100 + 25 * u
    flat = _towards_grey(x, 0.6 * s)
    flat *= 1 - 0.6 * s
    flat += 0.6 * level * s
    flat *= 1 - s * np.array([0.14, 0.09, 0.02], np.float32)
    return flat


def _snow(x: np.ndarray, s: np.ndarray, draws: Draws) -> np.ndarray:
    """A pale haze, and flakes of several sizes."""
    b, size = x.shape[:2]
    most = size * size // 70
    column, row, kind, light = _fields(draws.raw(b, most))
    count = np.arange(most) < s[:, 0, 0] * most
    # Many small flakes, few large ones, whose stamps are rows of _FLAKES.
    kind = (kind * kind >> 16) * len(_FLAKES) >> 16
    opacity = (110 + (light * 145 >> 16))[..., None, None] * _FLAKES[kind] >> 8
    reach = _FLAKES.shape[1]
    layer = np.zeros((b, size + 2 * reach, size + 2 * reach), np.uint8)
    rows = (row * (size + reach) >> 16)[..., None, None] + np.arange(reach)[:, None]
    columns = (column * (size + reach) >> 16)[..., None, None] + np.arange(reach)
    where = (np.arange(b)[:, None, None, None] * layer.shape[1] + rows) * layer.shape[2] + columns
    drawn = (opacity > 0) & count[..., None, None]
    np.maximum.at(layer.reshape(-1), where[drawn], opacity[drawn].astype(np.uint8))
    x = _towards_grey(x, 0.5 * s)
    x *= 1 - 0.38 * s
    x += 0.38 * 215 * s
    return _cover(x, layer[:, reach : reach + size, reach : reach + size], 250)


WEATHERS: dict[str, Effect] = {
    "clear": _clear,
    "fog": _fog,
    "rain": _rain,
    "night": _night,
    "overcast": _overcast,
    "snow": _snow,
}
"""The weathers by name, in the order of domain numbers."""


def _towards_grey(x: np.ndarray, share: np.ndarray) -> np.ndarray:
    grey = x[..., 0] * 0.299 + x[..., 1] * 0.587 + x[..., 2] * 0.114
    grey *= share[..., 0]
    x *= 1 - share
    x += grey[..., None]
    return x


def _cover(x: np.ndarray, layer: np.ndarray, light: int) -> np.ndarray:
    """Lay a grey of `light` over x in place, as opaque as `layer`, uint8 (b, S, S), says."""
    opacity = layer.astype(np.float32) / 255
    x *= (1 - opacity)[..., None]
    x += (light * opacity)[..., None]
    return x


def _fields(bits: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the four 16-bit parts of uint64, each int64 0..65535."""
    return tuple(
        ((bits >> np.uint64(16 * i)) & np.uint64(0xFFFF)).astype(np.int64) for i in range(4)
    )


def _enlarge(grid: np.ndarray, size: int) -> np.ndarray:
    """Enlarge float32 (b, k, k) to (b, size, size), linear between the corners."""
    last = grid.shape[1] - 1
    place = np.arange(size, dtype=np.float32) * np.float32(last / (size - 1))
    low = np.minimum(place.astype(np.int64), last - 1)
    share = place - low
    rows = grid[:, low] + (grid[:, low + 1] - grid[:, low]) * share[:, None]
    return rows[:, :, low] + (rows[:, :, low + 1] - rows[:, :, low]) * share


def _flakes() -> np.ndarray:
    """Return int64 (3, 5, 5): the opacities, 0..255, of round flakes of three sizes."""
    distance = (np.arange(5) - 2) ** 2 + ((np.arange(5) - 2) ** 2)[:, None]
    return np.stack([(256 - 256 * distance // r).clip(0, 255) for r in (2, 4, 8)])


_FLAKES = _flakes()

# A byte to a standard normal value, in hundredths so that no last digit of a library enters.
_NORMAL = np.array(
    [round(100 * NormalDist().inv_cdf((i + 0.5) / 256)) for i in range(256)], np.float32
) / np.float32(100)
