"""Modality skew: some clients hold only the images of image-text pairs, some only the texts
(CreamFL, Yu et al. 2023, arXiv:2302.08888).
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

    `within` divides the samples among all clients, whatever their modality.

    Raises:
        InputError: numbers that are negative or do not sum to the number of clients.
    """
    for name, number in (("images", images), ("texts", texts), ("pairs", pairs)):
        check(number >= 0, f"partition.{name} must be >= 0", number)
    total = images + texts + pairs
    requirement = f"partition.images + texts + pairs must be {clients}, the number of clients"
    check(total == clients, requirement, f"{images} + {texts} + {pairs} = {total}")
    kinds = np.array([MODALITIES.index(name) for name in ("image", "text", "all")], np.uint8)
    modality = np.repeat(kinds, [images, texts, pairs])
    return replace(within(samples, clients, rng), modality=modality)
