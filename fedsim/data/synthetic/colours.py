"""Names of colours, and the main colour of a picture."""

from __future__ import annotations

import numpy as np

_NAMES = "black grey white red orange brown yellow green blue purple pink"
COLOURS = tuple(_NAMES.split())


def colour_names(pixels: np.ndarray) -> np.ndarray:
    """Return the number in `COLOURS` of each colour, int64 (...), pixels uint8 (..., 3), RGB.

    Little chroma (below 45 of 255) is black, grey or white by the brightest channel; else the hue
    decides, with dark orange brown, and red pink where it is pale.
    """
    r, g, b = (pixels[..., channel].astype(np.int64) for channel in range(3))
    high, low = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
    chroma = high - low
    safe = np.maximum(chroma, 1)
    hue = np.where(  # degrees
        high == r,
        60 * (g - b) // safe % 360,
        np.where(high == g, 120 + 60 * (b - r) // safe, 240 + 60 * (r - g) // safe),
    )
    name = {colour: number for number, colour in enumerate(COLOURS)}
    cases = (
        ((chroma < 45) & (high < 80), "black"),
        ((chroma < 45) & (high < 205), "grey"),
        (chroma < 45, "white"),
        (((hue >= 330) | (hue < 12)) & (low >= 110), "pink"),
        ((hue >= 345) | (hue < 12), "red"),
        ((hue < 45) & (high < 190), "brown"),
        (hue < 40, "orange"),
        (hue < 66, "yellow"),
        (hue < 170, "green"),
        (hue < 250, "blue"),
        (hue < 305, "purple"),
    )
    conditions = [condition for condition, _ in cases]
    return np.select(conditions, [name[colour] for _, colour in cases], name["pink"])


def main_colours(pictures: np.ndarray, share: float = 0.6) -> np.ndarray:
    """Return the colour that at least `share` of a picture's visible pixels have, else -1.

    pictures uint8 (m, h, w, 4), RGBA; visible is an alpha of at least 128. Returns int64 (m,).
    """
    visible = pictures[..., 3] >= 128
    names = np.where(visible, colour_names(pictures[..., :3]), -1)
    counts = np.stack([(names == i).sum((1, 2)) for i in range(len(COLOURS))], axis=1)
    most = counts.argmax(1)
    clear = counts.max(1) >= share * np.maximum(visible.sum((1, 2)), 1)
    return np.where(clear, most, -1)
