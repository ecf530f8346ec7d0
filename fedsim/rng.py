"""Random streams: every draw comes from a generator derived from (seed, purpose, round, client).

Streams at different addresses are independent; the same address always gives the same stream, on
any worker and after any resume.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, purpose: str, round: int = 0, client: int = -1) -> int:
    """Return a 63-bit seed for the stream at this address.

    `client` is -1 for draws outside any client.
    """
    address = f"{seed}/{purpose}/{round}/{client}".encode()
    digest = hashlib.blake2b(address, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def torch_generator(seed: int, purpose: str, round: int = 0, client: int = -1) -> torch.Generator:
    """Return a CPU torch generator for the stream at this address."""
    return torch.Generator().manual_seed(derive(seed, purpose, round, client))


def numpy_generator(
    seed: int, purpose: str, round: int = 0, client: int = -1
) -> np.random.Generator:
    """Return a numpy generator (Philox) for the stream at this address."""
    return np.random.Generator(np.random.Philox(key=derive(seed, purpose, round, client)))


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed torch's global generators, which dropout uses: the CPU's and that of a GPU `device`."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def seeded_globals(seed: int, purpose: str, round: int) -> Iterator[None]:
    """Seed `random` and numpy's global generator in the block, for strategies of Flower."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    address = derive(seed, purpose, round)
    random.seed(address)
    np.random.seed(address % 2**32)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
