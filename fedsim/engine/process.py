"""Where the work of this process is done, and the global generators that it draws from there."""

from __future__ import annotations

import contextlib
import ctypes

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


# Parameters of glibc's mallopt (malloc.h), and the largest values it takes for sure.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


TRIM_BYTES, MMAP_BYTES = 512 * 2**20, 32 * 2**20


def keep_memory() -> None:
    """Let freed blocks up to 32 MiB stay with this process; does nothing where there is no glibc.

    By default blocks above 128 KiB go back to the system at once. Getting them again, page by
    page and cleared, costs small models more than the arithmetic on them.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_BYTES)
