"""Runs of an earlier version are read, compared, and resumed to that version's own results.

``old/`` was written by commit 61a9271: four rounds of each ``config.yaml``, uninterrupted in
``finished``, stopped by Ctrl-C in the middle of round 3 in ``interrupted``. Logs, locks, pictures
and checkpoints that no resume reads are left out. Bits depend on the kind of CPU: they must be
equal on a machine on which `probe`, plain PyTorch, gives what it gave there. Elsewhere values may
differ by a tolerance; which values are recorded, and for whom, is the same everywhere.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import fedsim
from tests.support.runs import assert_same, measured

OLD = Path(__file__).parent / "old"
NAMES = ("fedavg", "fedyogi", "fraug", "creamfl")

# What other instruction sets (ATEN_CPU_CAPABILITY) change, with room. Adam divides by roots of
# gradients near zero; an accuracy moves by whole samples.
TOLERANCE = {"fedavg": 1e-4, "fedyogi": 1e-4, "fraug": 1e-4, "creamfl": 0.02}
SHARE_TOLERANCE = 0.1

BITS = "4a0b8a3b9aae1d02f0915959e94fc2c833ed37032fd86738336ff6f547e6902e"
"""What `probe` returned where the runs were made."""


def probe() -> str:
    """Return the sha256 of a small network after a few steps of Adam."""
    generator = torch.Generator().manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4), nn.Linear(4, 10),
    )  # fmt: skip
    for parameter in layers.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    optimiser = torch.optim.Adam(layers.parameters(), lr=0.01)
    for _ in range(8):
        images = torch.randn(32, 1, 8, 8, generator=generator)
        labels = torch.randint(10, (32,), generator=generator)
        optimiser.zero_grad()
        nn.functional.cross_entropy(layers(images), labels).backward()
        optimiser.step()
    flat = torch.cat([p.detach().flatten() for p in layers.parameters()])
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def assert_close(run: fedsim.Run, reference: fedsim.Run, tolerance: float) -> None:
    """Assert that two runs recorded the same series, with values and models that are close."""
    rows, expected = measured(run), measured(reference)
    assert [row[:-1] for row in rows] == [row[:-1] for row in expected]
    for (*key, value), (*_, old) in zip(rows, expected, strict=True):
        is_share = "accuracy" in key[2] or "recall" in key[2]
        within = SHARE_TOLERANCE if is_share else tolerance
        close = pytest.approx(float.fromhex(old), abs=within, nan_ok=True)
        assert float.fromhex(value) == close, key
    arrays, old_arrays = run.arrays(), reference.arrays()
    assert arrays.keys() == old_arrays.keys()
    for name, tensor in arrays.items():
        torch.testing.assert_close(tensor, old_arrays[name], atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_resumes_to_the_result_of_its_own_version(
    name: str, tmp_path: Path
) -> None:
    folder = tmp_path / name
    shutil.copytree(OLD / "interrupted" / name, folder)
    before = fedsim.load_run(folder)
    assert (before.status, before.rounds_done) == ("interrupted", 2)
    reference = fedsim.load_run(OLD / "finished" / name)
    old = [row for row in measured(reference) if row[0] <= 2]
    assert old == measured(before)

    run = fedsim.resume(folder)

    assert (run.status, run.rounds_done) == ("finished", 4)
    assert [row for row in measured(run) if row[0] <= 2] == old
    if probe() == BITS:
        assert_same(run, reference)
    else:
        assert_close(run, reference, TOLERANCE[name])


def test_finished_runs_are_read_and_compared() -> None:
    fedavg = fedsim.load_run(OLD / "finished/fedavg")
    assert (fedavg.status, fedavg.check(), fedavg.headline) == ("finished", 4, "accuracy")
    assert fedavg.final["test/generic/accuracy"] == 94 / 359
    assert ("generic accuracy", "26.18 %") in fedavg.summary()
    assert [tuple(p.shape) for p in fedavg.model().parameters()] == [(4, 64), (4,), (10, 4), (10,)]
    runs = [OLD / "finished/fedavg", OLD / "finished/fedyogi"]
    text = str(fedsim.compare(runs, metric="generic/accuracy"))
    row = next(line.split() for line in text.splitlines() if line.startswith("fedyogi"))
    assert row[:5] == ["fedyogi", "1", "10.86", "-", "-15.32"]  # 39 and 94 of 359


def test_a_finished_run_is_not_resumed_again(tmp_path: Path) -> None:
    folder = tmp_path / "fraug"
    shutil.copytree(OLD / "finished/fraug", folder)
    run = fedsim.resume(folder)
    pd.testing.assert_frame_equal(run.metrics, fedsim.load_run(OLD / "finished/fraug").metrics)
