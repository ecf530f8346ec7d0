"""The folder of one run: who may write in it, what state it is in, what lies where.

``status.json`` marks a folder as ours and comes first, ``config.yaml`` makes it a run and
comes last, so a folder that was left half made is told from a run and from foreign files.
A lock of the kernel on ``lock`` is held while a process works in the folder and ends with
that process; reading a run needs no lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import safetensors.torch
import yaml
from torch import Tensor

from fedsim.components import trained
from fedsim.errors import InputError, RunFailed, nearest
from fedsim.runs import checkpoint, client_states
from fedsim.runs.atomic import ASIDE, aside, reason, sync_folder, write_atomic
from fedsim.runs.recorder import reading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATUSES = ("running", "finished", "failed", "interrupted")

_FORMAT = "fedsim run"
_PARTS = ("status.json", "environment.json", "partition.npz", "config.yaml")  # made in this order
_EXPORTS = [f"{n}.{k}" for n in ("metrics", "clients", "events") for k in ("csv", "parquet")]
_FILES = (
    *_PARTS,
    *("metrics.db", "metrics.db-wal", "metrics.db-shm", "metrics.db-journal"),
    *("model.safetensors", "log.txt"),
)
_PICTURES = "pictures"
_FOLDERS = (checkpoint.FOLDER, client_states.FOLDER, "export", _PICTURES)

# A reader that asks whether a run is at work holds the lock for microseconds.
_LOCK_ATTEMPTS, _LOCK_PAUSE_SECONDS = 5, 0.02


class Saveable(Protocol):
    """What can write itself to a file, such as a partition manifest."""

    def save(self, path: Path) -> None: ...


class _Log(logging.FileHandler):
    """A log that is silent about a disk that is full: what stops the run says so itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class RunFolder:
    """One run's folder; as a context manager it lets go of lock and log at the end.

    `create` prepares a new run and `begin` makes it; `open` finds one that is there, and
    entering the context then takes the lock. After that the folder is ours to write in.
    """

    def __init__(self, path: Path, *, new: bool = False, force: bool = False) -> None:
        self.path = Path(path)
        self._new = new
        self._force = force
        self._lock: int | None = None
        self._logger: logging.Logger | None = None

    @classmethod
    def create(cls, out: Path, name: str, seed: int, force: bool = False) -> RunFolder:
        """Check that a run can begin in ``out/name/seed-<seed>``; writes nothing.

        Raises:
            InputError: it holds a run and not `force`, another run is at work in it, it holds
                files of something else, or it cannot be written.
        """
        if not name or ".." in Path(name).parts or Path(name).is_absolute():
            raise InputError(f"name must be usable as a folder's name, got {name!r}")
        folder = cls(Path(out) / name / f"seed-{seed}", new=True, force=force)
        folder._check_writable()
        folder._check_vacant()
        if folder._is_locked():
            raise folder._at_work()
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Return the run that lies in `path`.

        Raises:
            InputError: it is not a run; the message says what is missing.
        """
        path = Path(path)
        if not path.is_dir():
            near = ""
            if path.parent.is_dir():
                near = nearest(path.name, [p.name for p in path.parent.iterdir() if p.is_dir()])
            raise InputError(f"there is no run folder {path}.{near}")
        missing = [name for name in _PARTS if not (path / name).is_file()]
        if missing:
            inside = sorted(str(p.parent) for p in path.glob("**/seed-*/config.yaml"))
            hint = f"; it contains the runs {', '.join(inside[:3])}" if inside else ""
            raise InputError(f"{path} is not a run: it has no {' and no '.join(missing)}{hint}")
        folder = cls(path)
        if folder._marker() is None:
            raise InputError(f"{path} is not a run: its status.json was not written by fedsim")
        return folder

    def __enter__(self) -> RunFolder:
        if not self._new:
            self.lock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def begin(self, config_yaml: str, environment: Mapping[str, Any], manifest: Saveable) -> None:
        """Make the folder a run of status "running", and take its lock.

        What `--force` replaces is deleted only after the new files are on the disk.

        Raises:
            InputError: as `create`, if that has become so since.
            RunFailed: the disk is full or fails; an older run is untouched.
        """
        made = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot create run folder {self.path}: {reason(error)}") from error
        self.lock()
        try:
            self._check_vacant()
            for half in self.path.glob(f"*{ASIDE}*"):  # of a start that was killed
                half.unlink()
            texts = {
                "status.json": self._status_text("running", None),
                "environment.json": json.dumps(dict(environment), indent=2) + "\n",
                "config.yaml": config_yaml,
            }
            for name, text in texts.items():
                with aside(self.path / name).open("w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            manifest.save(aside(self.path / "partition.npz"))
            self._remove_old()
            for name in _PARTS:
                aside(self.path / name).replace(self.path / name)
            sync_folder(self.path)
        except BaseException as error:
            self._undo(made)
            if isinstance(error, OSError):
                raise RunFailed(f"cannot write run folder {self.path}: {reason(error)}") from error
            raise
        self._new = False

    def lock(self) -> None:
        """Take the lock until `close`, or until this process dies.

        Raises:
            InputError: another process holds it, or the folder cannot be written.
        """
        if self._lock is not None:
            return
        try:
            descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"cannot write in {self.path}: {reason(error)}") from error
        try:
            for attempt in range(_LOCK_ATTEMPTS):
                if attempt:
                    time.sleep(_LOCK_PAUSE_SECONDS)
                if _try_flock(descriptor, fcntl.LOCK_EX):
                    break
            else:
                raise self._at_work()
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise InputError(f"cannot lock {self.path}: {reason(error)}") from error
        except BaseException:
            os.close(descriptor)
            raise
        self._lock = descriptor

    @property
    def status(self) -> str:
        """running, finished, failed or interrupted; a run whose process died is interrupted."""
        status = str((self._marker() or {}).get("status", "interrupted"))
        if status == "running" and self._lock is None and not self._is_locked():
            return "interrupted"
        return status

    @property
    def status_text(self) -> str | None:
        """Why the run stopped, if it failed."""
        text = (self._marker() or {}).get("text")
        return None if text is None else str(text)

    @property
    def rounds_done(self) -> int:
        """The last round whose metrics are recorded; 0 before the first."""
        try:
            with reading(self.path / "metrics.db") as db:
                row = db.execute("SELECT value FROM run WHERE key = 'rounds_done'").fetchone()
        except sqlite3.Error:
            return 0
        return 0 if row is None else int(json.loads(row[0]))

    def set_status(self, status: str, text: str | None = None) -> None:
        """Record the state of the run; `text` says why it stopped.

        A disk that is full does not hide the error that led here: then the old status stays.
        """
        if status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
        with contextlib.suppress(OSError):
            path = self.path / "status.json"
            write_atomic(path, self._status_text(status, text).encode())

    def save_model(self, tensors: Mapping[str, Tensor], frozen: str = "") -> None:
        """Write ``model.safetensors``: state-dict names to tensors of their logical shapes.

        `frozen` is the digest of the model's frozen tensors, which are not among them.

        Raises:
            RunFailed: the disk is full or fails.
        """
        path = self.path / trained.FILE
        # Copies, as the format refuses views of one shared vector.
        own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        try:
            write_atomic(path, safetensors.torch.save(own, {trained.FROZEN: frozen}))
        except OSError as error:
            raise RunFailed(f"cannot write {path}: {reason(error)}") from error

    def save_picture(self, name: str, figure: Figure) -> None:
        """Write ``pictures/<name>.png``.

        Raises:
            RunFailed: the disk is full or fails.
        """
        path = self.path / _PICTURES / f"{name}.png"
        image = io.BytesIO()
        figure.savefig(image, format="png", metadata={"Software": None})
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, image.getvalue())
        except OSError as error:
            raise RunFailed(f"cannot write {path}: {reason(error)}") from error

    def logger(self) -> logging.Logger:
        """Return the logger that writes to ``log.txt`` with UTC times; closed by `close`."""
        if self._logger is None:
            handler = _Log(self.path / "log.txt", encoding="utf-8", delay=True)
            formatter = logging.Formatter(
                "%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ"
            )
            formatter.converter = time.gmtime
            handler.setFormatter(formatter)
            # Not by getLogger, which would keep the logger of every run of a process.
            self._logger = logging.Logger(f"fedsim {self.path}", logging.INFO)
            self._logger.addHandler(handler)
        return self._logger

    def close(self) -> None:
        """Close the log and let go of the lock."""
        if self._logger is not None:
            for handler in list(self._logger.handlers):
                handler.close()
                self._logger.removeHandler(handler)
            self._logger = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def _lock_path(self) -> Path:
        return self.path / "lock"

    def _status_text(self, status: str, text: str | None) -> str:
        entry = {"format": _FORMAT, "status": status, "text": text, "pid": os.getpid()}
        return json.dumps(entry) + "\n"

    def _marker(self) -> dict[str, Any] | None:
        """Return what ``status.json`` holds, or None if it is not ours."""
        try:
            marker = json.loads((self.path / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return marker if isinstance(marker, dict) and marker.get("format") == _FORMAT else None

    def _check_writable(self) -> None:
        place = self.path
        while not (place.exists() or place.is_symlink()):
            place = place.parent
        if not place.is_dir():
            raise InputError(f"cannot create run folder {self.path}: {place} is not a folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"cannot create run folder {self.path}: {place} is not writable")

    def _check_vacant(self) -> None:
        if not self.path.is_dir():
            return
        if self._marker() is None:
            names = (p.name for p in self.path.iterdir())
            foreign = sorted(n for n in names if n != "lock" and ASIDE not in n)
            if foreign:
                shown = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
                raise InputError(
                    f"run folder {self.path} holds files that are not of a run ({shown}); "
                    "choose another name or another folder for the output"
                )
        elif (self.path / "config.yaml").is_file() and not self._force:
            raise InputError(
                f"run folder {self.path} already holds a run (round {self.rounds_done} of "
                f"{self._rounds()}): continue it with `fedsim resume {self.path}`, or start anew "
                "with --force"
            )

    def _rounds(self) -> object:
        try:
            config = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
            return config["rounds"]
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
            return "?"

    def _is_locked(self) -> bool:
        """Whether some process is at work in the folder."""
        try:
            descriptor = os.open(self._lock_path, os.O_RDONLY)
        except OSError:
            return False
        try:
            return not _try_flock(descriptor, fcntl.LOCK_SH)
        except OSError:
            return False  # a file system without locks tells nothing
        finally:
            os.close(descriptor)

    def _at_work(self) -> InputError:
        try:
            pid = self._lock_path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            pid = ""
        return InputError(f"another run (pid {pid or 'unknown'}) is at work in {self.path}")

    def _remove_old(self) -> None:
        """Delete an older run: what makes it a run first, what makes it ours last."""
        if self._marker() is None:
            return
        for name in reversed(_FILES[1:]):
            (self.path / name).unlink(missing_ok=True)
        checkpoint.remove_all(self.path)
        client_states.remove_all(self.path)
        for name in _EXPORTS:
            (self.path / "export" / name).unlink(missing_ok=True)
        for picture in (self.path / _PICTURES).glob("*.png"):
            picture.unlink()
        for name in _FOLDERS:
            with contextlib.suppress(OSError):
                (self.path / name).rmdir()

    def _undo(self, made: bool) -> None:
        """Leave no half-made run behind."""
        with contextlib.suppress(OSError):
            for name in _PARTS:
                aside(self.path / name).unlink(missing_ok=True)
        self.close()
        if made:
            with contextlib.suppress(OSError):
                self._lock_path.unlink()
                self.path.rmdir()


def _try_flock(descriptor: int, kind: int) -> bool:
    """Take the lock if it is free; raises OSError where there are no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
