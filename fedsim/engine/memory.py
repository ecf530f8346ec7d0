"""Telling the C library to keep the memory that training frees and asks for again."""

from __future__ import annotations

import contextlib
import ctypes

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
