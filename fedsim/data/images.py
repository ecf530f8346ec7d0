"""Image files into arrays of one shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from fedsim.errors import InputError

Fit = Literal["squash", "crop"]


def read_image(
    source: Path | BinaryIO,
    size: tuple[int, int] | None = None,
    channels: Literal[1, 3] = 3,
    fit: Fit = "squash",
    name: str | None = None,
) -> np.ndarray:
    """Return an image as uint8 (H, W, channels), resized to `size` (H, W) if given.

    ``squash`` stretches the whole image, ``crop`` scales the shorter side and cuts the middle out.
    Transparent pixels are laid on white, and a photograph is turned as its EXIF tag says. `name`
    stands for a source that is no path in messages.

    Raises:
        InputError: a file that is missing, cut short, or no image; the file is named.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(source) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            image = image.convert("L" if channels == 1 else "RGB")
            if size is not None and image.size != (size[1], size[0]):
                wanted = (size[1], size[0])
                if fit == "crop":
                    image = ImageOps.fit(image, wanted, Image.Resampling.BICUBIC)
                else:
                    image = image.resize(wanted, Image.Resampling.BICUBIC)
            pixels = np.asarray(image, np.uint8)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise InputError(
            f"{name or source} is no image that can be read ({error}); replace or remove it"
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name or source} is too large an image: {error}") from error
    return pixels[..., None] if channels == 1 else pixels


def resize_images(x: np.ndarray, size: tuple[int, int], fit: Fit = "squash") -> np.ndarray:
    """Return images uint8 (n, H, W, C) as uint8 (n, *size, 3), resized as `read_image` does."""
    from PIL import Image, ImageOps

    if x.shape[3] == 1:
        x = np.repeat(x, 3, axis=3)
    if x.shape[1:3] == tuple(size):
        return np.array(x)
    wanted = (size[1], size[0])
    made = np.empty((len(x), *size, 3), np.uint8)
    for row, pixels in zip(made, x, strict=True):
        image: Image.Image = Image.fromarray(np.ascontiguousarray(pixels))
        if fit == "crop":
            image = ImageOps.fit(image, wanted, Image.Resampling.BICUBIC)
        else:
            image = image.resize(wanted, Image.Resampling.BICUBIC)
        row[:] = np.asarray(image)
    return made


def channel_stats(x: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std per channel of ``x / 255``, x uint8 (n, H, W, C); exact sums.

    A channel that never varies gets the std 1, so that it can be divided by.
    """
    stats = np.empty((2, x.shape[3]))
    # Block by block: a memory-mapped set may be larger than memory, and counting takes 8 bytes a
    # value.
    block = max(1, 2**22 // int(np.prod(x.shape[1:3])))
    for _ in counting((x[start : start + block] for start in range(0, len(x), block)), stats):
        pass
    mean, std = stats.tolist()
    return tuple(mean), tuple(std)


def counting(images: Iterable[np.ndarray], stats: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the images, each uint8 (b, H, W, C); after the last, write `stats` float64 (2, C).

    Its rows are the mean and the standard deviation per channel of ``x / 255``, from exact sums;
    a channel that never varies gets the deviation 1, so that it can be divided by.
    """
    counts = np.zeros((stats.shape[1], 256), np.int64)
    for some in images:
        for channel, count in enumerate(counts):
            count += np.bincount(some[..., channel].ravel(), minlength=256)
        yield some
    levels = np.arange(256) / 255
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1))
    stats[0], stats[1] = mean, np.where(std > 0, std, 1.0)
