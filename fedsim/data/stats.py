"""Mean and standard deviation of images that pass by once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


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
