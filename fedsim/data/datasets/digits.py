"""Handwritten digits, 8x8 grey, 1,797 images that come with scikit-learn: no download."""

from __future__ import annotations

import numpy as np

from fedsim.data.cache import cached_arrays
from fedsim.data.dataset import Card, Dataset, Split

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
    arrays = cached_arrays("digits-1", _build)
    return Dataset(
        name="digits",
        train=Split(arrays["train-x"], arrays["train-y"]),
        test=Split(arrays["test-x"], arrays["test-y"]),
        card=_CARD,
    )


def _build() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits  # takes seconds to import

    source = load_digits()
    x = ((source.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[..., None]
    y = source.target.astype(np.int64)
    is_test = _is_test(y)
    return {
        "train-x": x[~is_test],
        "train-y": y[~is_test],
        "test-x": x[is_test],
        "test-y": y[is_test],
    }


def _is_test(y: np.ndarray) -> np.ndarray:
    """Mark a fifth of each class, halves rounded up: bool (n,)."""
    # The raw stream of a bit generator never changes between numpy versions; a Generator's may.
    keys = np.random.Philox(key=1998).random_raw(len(y))
    is_test = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        members = members[np.argsort(keys[members], kind="stable")]
        is_test[members[: (2 * len(members) + 5) // 10]] = True
    return is_test
