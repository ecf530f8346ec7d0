"""Image-text pairs of which some clients hold the images only, and some the texts only (CreamFL,
Yu et al. 2023, arXiv:2302.08888).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsim.data.dataset import Samples
from fedsim.data.nested import Partition
from fedsim.data.partition import MODALITIES, Assignment
from fedsim.data.partitions._dealing import IID
from fedsim.errors import check


def modality(
    samples: Samples,
    clients: int,
    rng: np.random.Generator,
    *,
    images: int = 0,
    texts: int = 0,
    pairs: int = 0,
    within: Partition = IID,
) -> Assignment:
    """The first `images` clients hold images only, the next `texts` texts only, the last pairs.

    `within` divides the samples among them all, whatever they hold.

    Raises:
        InputError: numbers that are negative or do not sum to the number of clients.
    """
    numbers = {"image": images, "text": texts, "all": pairs}
    for name, number in (("images", images), ("texts", texts), ("pairs", pairs)):
        check(number >= 0, f"partition.{name} must be >= 0", number)
    check(
        sum(numbers.values()) == clients,
        f"partition.images + texts + pairs must be {clients}, the number of clients",
        f"{images} + {texts} + {pairs} = {sum(numbers.values())}",
    )
    held = np.repeat(
        np.array([MODALITIES.index(name) for name in ("image", "text", "all")], np.uint8),
        list(numbers.values()),
    )
    return replace(within(samples, clients, rng), modality=held)
