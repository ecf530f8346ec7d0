"""Where the work of this process is done, and the global generators that it draws from there."""

from __future__ import annotations

import torch


def driver_device(gpus: float) -> str:
    """Return the device of work in the driver: a GPU where workers have any and there is one."""
    return "cuda:0" if gpus > 0 and torch.cuda.is_available() else "cpu"


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed torch's global generators, which dropout draws from, of the CPU and of a GPU in use."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
