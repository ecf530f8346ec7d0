"""Exclusive lock on a run folder, which the kernel releases when its process ends."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

from fedsim.errors import InputError, os_errors_as

NAME = "lock"

# A reader that tests the lock holds it for microseconds.
_ATTEMPTS, _PAUSE_SECONDS = 5, 0.02


class FolderLock:
    """The lock of one folder; its file holds the process id of the last holder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._folder = folder
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock until `release`, or until this process dies.

        Raises:
            InputError: another process holds it, or the folder is not writable.
        """
        if self._descriptor is not None:
            return
        with os_errors_as(InputError, f"cannot write in {self._folder}"):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with os_errors_as(InputError, f"cannot lock {self._folder}"):
                for attempt in range(_ATTEMPTS):
                    if attempt:
                        time.sleep(_PAUSE_SECONDS)
                    if _try_flock(descriptor, fcntl.LOCK_EX):
                        break
                else:
                    raise self.conflict()
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock up, if this object holds it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def is_held(self) -> bool:
        """Whether this object or another process holds the lock."""
        if self._descriptor is not None:
            return True
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError:
            return False
        try:
            return not _try_flock(descriptor, fcntl.LOCK_SH)
        except OSError:
            return False  # a file system without locks
        finally:
            os.close(descriptor)

    def conflict(self) -> InputError:
        """Return the error that names the process at work in the folder."""
        try:
            pid = self.path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            pid = ""
        return InputError(f"another run (pid {pid or 'unknown'}) is at work in {self._folder}")


def _try_flock(descriptor: int, kind: int) -> bool:
    """Take the lock if it is free.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
