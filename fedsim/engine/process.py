"""Device and memory allocation of a process."""

from __future__ import annotations

import contextlib
import ctypes

import torch

from fedsim.errors import InputError


def driver_device(gpus: float) -> str:
    """Return the driver's device: a GPU if workers have any and this machine has one."""
    return "cuda:0" if gpus > 0 and torch.cuda.is_available() else "cpu"


def serial_device(gpus: float) -> str:
    """Return the device of the serial executor.

    Raises:
        InputError: more GPUs than this machine has.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus > there:
        raise InputError(f"engine.gpus = {gpus:g} does not fit: this machine has {there} GPUs")
    return driver_device(gpus)


# Parameters of glibc's mallopt (malloc.h), and the largest values it takes for sure.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TRIM_BYTES, MMAP_BYTES = 512 * 2**20, 32 * 2**20


def keep_memory() -> None:
    """Keep freed blocks of up to 32 MiB in this process; does nothing without glibc.

    By default glibc returns blocks above 128 KiB to the system at once; to get them again, page
    by page and cleared, costs more than the arithmetic of a small model.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
