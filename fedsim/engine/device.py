"""Where the work of this process is done, and the global generators that it draws from there."""

from __future__ import annotations

import torch

from fedsim.errors import InputError


def driver_device(gpus: float) -> str:
    """Return the device of work in the driver: a GPU where workers have any and there is one."""
    return "cuda:0" if gpus > 0 and torch.cuda.is_available() else "cpu"


def serial_device(gpus: float) -> str:
    """Return the device of the serial executor's work, which no other machine can do.

    Raises:
        InputError: more GPUs than this machine has.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus > there:
        raise InputError(f"engine.gpus = {gpus:g} does not fit: this machine has {there} GPUs")
    return driver_device(gpus)


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed torch's global generators, which dropout draws from, of the CPU and of a GPU in use."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
