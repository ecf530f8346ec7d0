"""A client method that notes the GPUs of its process, for machines that have none."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.client import Tree
from fedsim.engine import serial_executor
from fedsim.training.local_sgd import LocalSGD

if multiprocessing.parent_process() is not None:  # in a sweep's process alone
    serial_executor.serial_device = lambda gpus: "cpu"  # as if they were there


class NotesGPUs(LocalSGD):
    """Local SGD that writes which GPUs its process sees into a file of the process's number."""

    @dataclass(frozen=True)
    class Config(LocalSGD.Config):
        folder: str = ""

    def train(self, payload: Tree, state: Any, data: Any, rng: Any, ctx: Any) -> Any:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        (Path(self.config.folder) / str(os.getpid())).write_text(seen)
        return super().train(payload, state, data, rng, ctx)
