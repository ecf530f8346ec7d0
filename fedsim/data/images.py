"""Images as uint8 arrays: decoding, resizing, channel statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from fedsim.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Fit = Literal["squash", "crop"]


def read_image(
    source: Path | BinaryIO,
    size: tuple[int, int] | None = None,
    channels: Literal[1, 3] = 3,
    fit: Fit = "squash",
    name: str | None = None,
) -> np.ndarray:
    """Decode an image as uint8 (H, W, channels), resized to `size` (H, W) if not None.

    ``squash`` stretches the whole image, ``crop`` scales the shorter side and cuts the middle out.
    Transparent pixels are laid on white, and a photograph is turned as its EXIF tag says. `name`
    is what messages call a source that is no path.

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
            pixels = np.asarray(image if size is None else _fit(image, size, fit), np.uint8)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise InputError(
            f"{name or source} is no image that can be read ({error}); replace or remove it"
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name or source} is too large an image: {error}") from error
    return pixels[..., None] if channels == 1 else pixels


def resize_images(
    x: np.ndarray, size: tuple[int, int], fit: Fit = "squash", channels: Literal[1, 3] = 3
) -> np.ndarray:
    """Resize images uint8 (n, H, W, C) to uint8 (n, *size, channels), like `read_image`."""
    from PIL import Image

    resized = np.empty((len(x), *size, channels), np.uint8)
    for row, pixels in zip(resized, x, strict=True):
        plain = np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        image = Image.fromarray(plain).convert("L" if channels == 1 else "RGB")
        row[:] = np.asarray(_fit(image, size, fit)).reshape(row.shape)
    return resized


def _fit(image: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    from PIL import Image, ImageOps

    width_height = (size[1], size[0])
    if image.size == width_height:
        return image
    if fit == "crop":
        return ImageOps.fit(image, width_height, Image.Resampling.BICUBIC)
    return image.resize(width_height, Image.Resampling.BICUBIC)


def channel_stats(x: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std per channel of ``x / 255``, x uint8 (n, H, W, C), like `counting`."""
    stats = np.empty((2, x.shape[3]))
    # In blocks: a memory-mapped set may exceed memory, and counting takes 8 bytes a value.
    block = max(1, 2**22 // int(np.prod(x.shape[1:3])))
    for _ in counting((x[start : start + block] for start in range(0, len(x), block)), stats):
        pass
    mean, std = stats.tolist()
    return tuple(mean), tuple(std)


def counting(images: Iterable[np.ndarray], stats: np.ndarray) -> Iterator[np.ndarray]:
    """Yield batches of images uint8 (b, H, W, C); after the last, fill `stats` float64 (2, C).

    Its rows are mean and standard deviation per channel of ``x / 255``, from exact sums; a channel
    that never varies gets the deviation 1, so that it can be divided by.
    """
    counts = np.zeros((stats.shape[1], 256), np.int64)
    for batch in images:
        for channel, count in enumerate(counts):
            count += np.bincount(batch[..., channel].ravel(), minlength=256)
        yield batch
    levels = np.arange(256) / 255
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1))
    stats[0], stats[1] = mean, np.where(std > 0, std, 1.0)
