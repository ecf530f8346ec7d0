"""A file of a user's components."""

from __future__ import annotations

from pathlib import Path

import pytest

MINE = '''\
"""Components of a user."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Annotated, Literal
from annotated_types import Gt
from flwr.clientapp import ClientApp
from fedsim.client import Client
from fedsim.config.ranges import Count, Positive
from fedsim.errors import check
from fedsim.strategy import Strategy

class Mine(Strategy):
    """A rule of my own."""
    @dataclass(frozen=True)
    class Config:
        beta: float = 0.9  # momentum, [0, 1)
        sizes: tuple[int, ...] = (1, 2)
        mode: bool | Literal["auto"] = "auto"
        eta: Annotated[float, Gt(0)] = 1.0
        mu: Positive | None = None
        drops: tuple[Count, ...] = ()
        def __post_init__(self):
            check(0 <= self.beta < 1, "mine.beta must be in [0, 1)", self.beta)

class MyClient(Client):
    @dataclass(frozen=True)
    class Config:
        lr: float
        epochs: int = 1
        def __post_init__(self):
            check(self.lr > 0, "lr must be above 0", self.lr)

class Plain:
    pass

app = ClientApp()

def data(*, root: str | None = None):
    """My data."""

def part(samples, clients, rng, *, alpha: float): ...
def net(input_shape, num_classes, *, hidden: int = 3): ...
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path
