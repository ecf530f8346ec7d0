"""Handwritten digits, 8x8 grey: 1,797 images that come with scikit-learn, no download."""

from __future__ import annotations

import numpy as np

from fedsim.data.arrays import dataset_of, divide
from fedsim.data.cache import cached_arrays
from fedsim.data.dataset import Card, Dataset
from fedsim.data.loaders.holdout import mark_fifth

_CARD = Card(
    title="Optical recognition of handwritten digits (test part)",
    source="E. Alpaydin, C. Kaynak 1998, UCI machine learning repository; as in scikit-learn",
    licence="CC-BY-4.0",
    classes=tuple("0123456789"),
    input_shape=(1, 8, 8),
    mean=(0.3057,),
    std=(0.3761,),
    description=(
        "Digits of 13 writers as 8x8 counts of ink, 0..16 scaled to 0..255. "
        "A fixed stratified split: a fifth of each class is the test split."
    ),
)


def digits() -> Dataset:
    """Handwritten digits, 8x8 grey: 1,438 training and 359 test images, no download."""
    return dataset_of("digits", cached_arrays("digits-1", _build), _CARD)


def _build() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits  # takes seconds to import

    source = load_digits()
    x = ((source.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[..., None]
    y = source.target.astype(np.int64)
    return divide(mark_fifth(y, key=1998), x=x, y=y)
