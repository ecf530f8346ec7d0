"""What several workers over one data set cost in memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

# Measured is the unique set size: pages that no other process shares, the cost of one more worker.
WORKER = """
import sys, psutil, torch
from fedsim.data.cache import cached_arrays
from fedsim.data.dataset import Card, Split
from fedsim.data.views import View
torch.set_num_threads(1)
arrays = cached_arrays("shared-test", lambda: {})
card = Card("t", "s", "l", ("a",), (1, 64, 64), (0.5,), (0.5,), "d")
own = psutil.Process()
before = own.memory_full_info().uss
split = Split(arrays["x"], arrays["y"])
view = View(split, torch.arange(len(split)).numpy(), card)
total = sum(float(x.sum()) for x in view.input_batches(64))
print("read", flush=True)
sys.stdin.readline()  # until all have read all: a page counts as shared once two have mapped it
print(own.memory_full_info().uss - before, flush=True)
sys.stdin.readline()
"""


@pytest.mark.slow
def test_a_further_worker_adds_little_to_a_shared_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsim.data.cache import cached_arrays

    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (60_000, 64, 64, 1), dtype=np.uint8)
    cached_arrays("shared-test", lambda: {"x": pixels, "y": np.zeros(len(pixels), np.int64)})
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "read\n"
        grown = []
        for worker in workers:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
            grown.append(int(worker.stdout.readline()))
    finally:
        for worker in workers:
            worker.communicate("\n")
    # Each has read all 234 MiB; what is its own are the buffers of a batch and torch's pools.
    assert max(grown) < 0.05 * pixels.nbytes, [g / 2**20 for g in grown]
