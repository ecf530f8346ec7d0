"""Folders of runs that were never run, with numbers that can be worked out."""

from __future__ import annotations

import math
from pathlib import Path

from fedsim.config.reading import load_experiment, to_yaml
from fedsim.runs.folder import RunFolder
from fedsim.runs.recorder import Recorder


class Manifest:
    def __init__(self, content: bytes = b"manifest") -> None:
        self.content = content

    def save(self, path: Path) -> None:
        Path(path).write_bytes(self.content)


EXPERIMENT = {
    "name": "a",
    "rounds": 3,
    "dataset": {"name": "digits"},
    "partition": {"name": "iid", "clients": 20},
    "model": {"name": "mlp"},
    "strategy": {"name": "fedavg"},
    "client": {"lr": 0.1},
    "participation": 0.5,
}


def make(out: Path, seed: int = 0, status: str = "finished", recorded: bool = True) -> RunFolder:
    folder = RunFolder.create(out, "a", seed)
    experiment = load_experiment({**EXPERIMENT, "seed": seed})
    folder.begin(to_yaml(experiment), {}, Manifest())
    if recorded:
        recorder = Recorder(folder.path / "metrics.db")
        for round in (1, 2, 3):
            recorder.write_round(
                round,
                {
                    ("test", "generic/accuracy"): 0.1 * round,
                    ("train", "loss"): math.nan if round == 2 else 1 / round,
                    ("train", "seconds"): 1.5,
                },
                [
                    # Twenty clients: 0.50, 0.52, ... 0.88 in the last round.
                    (
                        "test",
                        "generic/accuracy",
                        range(20),
                        [0.02 * c + (0.5 if round == 3 else 0) for c in range(20)],
                    ),
                    ("train", "loss", [9, 3], [0.25, math.nan]),
                ],
                [(9, "nan", "dropped")] if round == 2 else [],
            )
        recorder.close()
    folder.set_status(status)
    folder.close()
    return folder
