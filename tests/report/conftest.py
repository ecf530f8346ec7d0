"""Runs that tests of reports share."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedsim
from tests.support.runs import tiny


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FedAvg and APFL with three seeds, FedPer with two."""
    out = tmp_path_factory.mktemp("made")
    for seed in (0, 1, 2):
        for name in ("fedavg", "apfl", "fedper"):
            if (name, seed) != ("fedper", 2):
                fedsim.run(tiny(name=name, strategy={"name": name}, rounds=4), seed=seed, out=out)
    return out
