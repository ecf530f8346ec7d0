"""Digits from five dissimilar sources: two real, one derived, two synthetic.

mnist      real: scanned handwriting (mnist5k)
optical    real: scanned handwriting, 8x8 counts of ink made larger (UCI, as in scikit-learn)
overlaid   derived: mnist, its absolute difference to a piece of photograph (the recipe of MNIST-M,
           Ganin et al. 2016, arXiv:1505.07818)
printed    synthetic: digits of matplotlib's fonts, turned, moved and scaled
number     synthetic: the same fonts in colour over a photograph, with parts of neighbouring digits,
           blur and noise, in place of house numbers

This is not the Digits-5 benchmark (MNIST, MNIST-M, SVHN, SynthDigits, USPS).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim.data.arrays import dataset_of, divide
from fedsim.data.cache import cached_arrays
from fedsim.data.dataset import SPLITS, Card, Dataset
from fedsim.data.images import channel_stats
from fedsim.data.sources import track
from fedsim.data.synthetic.photographs import photographs, photographs_digest
from fedsim.data.synthetic.sheets import packaged_digest, read_sheet
from fedsim.rng import numpy_generator

DOMAINS = ("mnist", "optical", "overlaid", "printed", "number")
SIZE = 28
_PER_CLASS = 500

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique",
    "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic",
    "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta",
    "STIXGeneralItalic", "cmb10", "cmr10", "cmss10", "cmti10", "cmtt10",
)  # fmt: skip
"""matplotlib's fonts whose digits differ."""

_CARD = Card(
    title="Digits of five sources",
    source="MNIST and UCI digits (real); MNIST over photographs (derived); fonts (synthetic)",
    licence="CC-BY-SA-3.0 (MNIST), CC-BY-4.0 (UCI); photographs, fonts: see their packages",
    classes=tuple("0123456789"),
    description=(
        "mnist and optical are real scans of handwriting, overlaid is mnist over photographs, "
        "printed and number are synthetic. Not the Digits-5 benchmark."
    ),
    domains=DOMAINS,
)


def digit_domains() -> Dataset:
    """Digits of five sources (domains), 28x28 colour: 21,797 images, made at first use.

    Two sources are real, one is derived from real images, two are synthetic; a fifth of each class
    and source is the test split. See the module's text; this is not Digits-5.

    Raises:
        InputError: scikit-image, whose photographs are used, is not installed.
    """
    key = f"digit-domains-1-{packaged_digest()}-{photographs_digest()}"
    return dataset_of("digit-domains", cached_arrays(key, _build), _CARD)


def _build() -> dict[str, np.ndarray]:
    rng = numpy_generator(0, "digit-domains")
    handwritten = read_sheet("mnist5k.png", 5000, SIZE)[..., 0]
    labels = np.repeat(np.arange(10), _PER_CLASS)
    glyphs = _glyphs()
    optical, optical_labels = _optical()
    # Test images are laid over other photographs than training images.
    is_test = np.tile(np.arange(_PER_CLASS) >= _PER_CLASS * 4 // 5, 10)
    scenes = _pieces(is_test, rng)
    sources = [
        (_grey(handwritten), labels, is_test),
        (_grey(optical), optical_labels, _last_fifth(optical_labels)),
        (_overlaid(handwritten, scenes), labels, is_test),
        (_grey(_printed(labels, glyphs, rng)), labels, is_test),
        (_number(labels, glyphs, _pieces(is_test, rng), rng), labels, is_test),
    ]
    x, y, marks = (np.concatenate(arrays) for arrays in zip(*sources, strict=True))
    domain = np.repeat(np.arange(len(sources)), [len(y) for _, y, _ in sources])
    arrays = divide(marks, x=x, y=y.astype(np.int64), domain=domain)
    return {**arrays, "stats": np.array(channel_stats(arrays["train-x"]))}


def _grey(x: np.ndarray) -> np.ndarray:
    return np.repeat(x[..., None], 3, axis=3)


def _last_fifth(labels: np.ndarray) -> np.ndarray:
    """Mark the last fifth of each class, rounded: bool (n,)."""
    marks = np.zeros(len(labels), bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        marks[members[len(members) - round(len(members) / 5) :]] = True
    return marks


def _optical() -> tuple[np.ndarray, np.ndarray]:
    """Return the UCI digits raised to 28 x 28 by bilinear interpolation, and their labels."""
    import torch
    import torch.nn.functional as F
    from sklearn.datasets import load_digits  # takes seconds to import

    source = load_digits()
    images = torch.from_numpy(source.images * (255 / 16)).float()[:, None]
    larger = F.interpolate(images, (SIZE, SIZE), mode="bilinear", align_corners=False)
    return larger[:, 0].round().clamp(0, 255).byte().numpy(), source.target


def _pieces(is_test: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random piece of a photograph for each image, uint8 (n, 28, 28, 3)."""
    pieces = np.empty((len(is_test), SIZE, SIZE, 3), np.uint8)
    for split in SPLITS:
        sources = photographs(split)
        for row in np.flatnonzero(is_test == (split == "test")):
            photograph = sources[rng.integers(len(sources))]
            # Every second pixel of a piece twice as large: more of the scene, less of its blur.
            top = rng.integers(photograph.shape[0] - 2 * SIZE)
            left = rng.integers(photograph.shape[1] - 2 * SIZE)
            pieces[row] = photograph[top : top + 2 * SIZE : 2, left : left + 2 * SIZE : 2]
    return pieces


def _overlaid(digits: np.ndarray, scenes: np.ndarray) -> np.ndarray:
    return np.abs(scenes.astype(np.int16) - digits[..., None]).astype(np.uint8)


def _glyphs() -> np.ndarray:
    """Return each font's digits, white on black: uint8 (fonts, 10, 64, 64), centred, 40 high."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    glyphs = np.zeros((len(FONTS), 10, 64, 64), np.uint8)
    for f, name in enumerate(FONTS):
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), 56)
        for digit in range(10):
            canvas = Image.new("L", (96, 96))
            ImageDraw.Draw(canvas).text((24, 8), str(digit), fill=255, font=font)
            cut = canvas.crop(canvas.getbbox())
            wide = max(1, round(cut.width * 40 / cut.height))
            cut = cut.resize((min(wide, 64), 40), Image.Resampling.BILINEAR)
            left = (64 - cut.width) // 2
            glyphs[f, digit, 12:52, left : left + cut.width] = np.asarray(cut)
    return glyphs


def _move(
    glyphs: np.ndarray, rng: np.random.Generator, shift: float, low: float, high: float
) -> np.ndarray:
    """Turn, scale and move glyphs float (n, 64, 64) at random: float32 (n, 28, 28) in 0..1.

    Turned by up to 15 degrees, 40 glyph pixels become `low`..`high` of the image's height, and the
    middle moves by up to `shift` of half a side.
    """
    import torch
    import torch.nn.functional as F

    n = len(glyphs)
    angle = np.deg2rad(rng.uniform(-15, 15, n))
    scale = (40 / 64) / rng.uniform(low, high, n)
    aspect = rng.uniform(0.85, 1.15, n)
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    move = rng.uniform(-shift, shift, (n, 2))
    matrix = np.stack([cosine * aspect, -sine, move[:, 0], sine * aspect, cosine, move[:, 1]], 1)
    images = torch.from_numpy(glyphs.astype(np.float32) / 255)[:, None]
    theta = torch.from_numpy(matrix.reshape(n, 2, 3)).float()
    # Two pixels of the grid to one of the image, then their mean: smooth borders.
    grid = F.affine_grid(theta, [n, 1, 2 * SIZE, 2 * SIZE], align_corners=False)
    drawn = F.grid_sample(images, grid, align_corners=False)
    return F.avg_pool2d(drawn, 2)[:, 0].numpy()


def _pick(labels: np.ndarray, glyphs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return glyphs[rng.integers(len(glyphs), size=len(labels)), labels]


def _printed(labels: np.ndarray, glyphs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return dark digits on light ground or the other way round, uint8 (n, 28, 28)."""
    ink = _move(_pick(labels, glyphs, rng), rng, shift=0.15, low=0.55, high=0.85)
    ground, digit = rng.uniform(180, 255, len(labels)), rng.uniform(0, 90, len(labels))
    swapped = rng.random(len(labels)) < 0.3
    ground, digit = np.where(swapped, digit, ground), np.where(swapped, ground, digit)
    mixed = ground[:, None, None] * (1 - ink) + digit[:, None, None] * ink
    return np.round(mixed).astype(np.uint8)


def _number(
    labels: np.ndarray, glyphs: np.ndarray, scenes: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return coloured digits between parts of neighbours over photographs, uint8 (n, 28, 28, 3)."""
    n = len(labels)
    ink = _move(_pick(labels, glyphs, rng), rng, shift=0.1, low=0.6, high=0.9)
    for side in track((-1, 1), "drawing neighbours"):
        other = _move(_pick(rng.integers(10, size=n), glyphs, rng), rng, 0.1, 0.6, 0.9)
        away = np.zeros_like(ink)
        step = 17  # pixels from the middle to that of a neighbour
        if side < 0:
            away[:, :, : SIZE - step] = other[:, :, step:]
        else:
            away[:, :, step:] = other[:, :, : SIZE - step]
        shown = rng.random(n) < 0.6
        ink = np.maximum(ink, away * shown[:, None, None])
    wall = rng.uniform(30, 225, (n, 1, 1, 3))
    blend = rng.uniform(0.2, 0.6, (n, 1, 1, 1))
    ground = scenes * blend + wall * (1 - blend)
    # Ink differs from the wall by at least 60 levels of brightness, lighter or darker.
    brightness = wall.mean(3, keepdims=True)
    lighter = np.where(
        brightness < 90, True, np.where(brightness > 165, False, rng.random((n, 1, 1, 1)) < 0.5)
    )
    offset = rng.uniform(60, 110, (n, 1, 1, 1)) * np.where(lighter, 1, -1)
    colour = np.clip(wall + offset + rng.uniform(-25, 25, (n, 1, 1, 3)), 0, 255)
    mixed = ground * (1 - ink[..., None]) + colour * ink[..., None]
    noisy = mixed + rng.normal(0, 1, mixed.shape) * rng.uniform(4, 18, (n, 1, 1, 1))
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)
