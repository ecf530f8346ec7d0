"""How long many runs take to read."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import fedsim


@pytest.mark.slow
def test_two_hundred_runs_are_read_in_seconds(made: Path, tmp_path: Path) -> None:
    """200 runs of 200 rounds and 100 clients, the clients' values among what is compared."""
    import resource

    from fedsim.runs.recorder import Recorder

    rng = np.random.default_rng(0)
    for run in range(200):
        folder = tmp_path / f"method{run // 10}/seed-{run % 10}"
        shutil.copytree(made / "fedavg/seed-0", folder, ignore=shutil.ignore_patterns("metrics*"))
        config = (folder / "config.yaml").read_text()
        config = config.replace("name: fedavg\n", f"name: method{run // 10}\n", 1)
        config = re.sub(r"\nseed: 0\n", f"\nseed: {run % 10}\n", config)
        config = config.replace("\nrounds: 4\n", "\nrounds: 200\n")
        config = re.sub(r"lr: 0\.1", f"lr: {0.1 + run // 10}", config)
        (folder / "config.yaml").write_text(config)
        recorder = Recorder(folder / "metrics.db")
        clients = list(range(100))
        for round in range(1, 201):
            scores = {("test", "generic/accuracy"): rng.random(), ("train", "seconds"): 0.1}
            scores |= {("train", "bytes_up"): 1e6, ("train", "bytes_down"): 1e6}
            scores |= {("test", "clients/generic/accuracy"): rng.random()}
            scores |= {("train", "virtual_seconds"): 0.05}
            rows = [
                ("test", "generic/accuracy", clients, rng.random(100).tolist()),
                ("train", "train_loss", clients, rng.random(100).tolist()),
            ]
            recorder.write_round(round, scores, rows)
        recorder.close()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    comparison = fedsim.compare(str(tmp_path))
    text = str(comparison)
    seconds = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    print(f"{seconds:.2f} s, {grown:.2f} GiB more")
    assert len(comparison.groups) == 20
    assert list(comparison.tables) == ["generic/accuracy", "clients/generic/accuracy"]
    assert "worst 10 %" in text
    assert comparison.tables["clients/generic/accuracy"]["worst_10"].notna().all()
    assert grown < 1.0
