"""The folder of one run: its files, its status, and write access to it.

``status.json`` is written first and marks a folder as ours; ``config.yaml`` is written last and
makes it a run. So an incomplete folder differs from a run and from foreign files. The process that
writes holds the folder's lock; reading needs none.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import yaml
from torch import Tensor

from fedsim.components import trained
from fedsim.errors import InputError, RunFailed, nearest, os_errors_as
from fedsim.runs import checkpoint, client_states, lock
from fedsim.runs.atomic import ASIDE, aside, remove_files, sync_folder, write_atomic, write_synced
from fedsim.runs.reader import entry, reading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedsim.data.partition import Manifest

STATUSES = ("running", "finished", "failed", "interrupted")

_FORMAT = "fedsim run"
_PARTS = ("status.json", "environment.json", "partition.npz", "config.yaml")  # in this order
_EXPORTS = [f"{n}.{k}" for n in ("metrics", "clients", "events") for k in ("csv", "parquet")]
_FILES = (
    *_PARTS,
    *("metrics.db", "metrics.db-wal", "metrics.db-shm", "metrics.db-journal"),
    *("model.safetensors", "log.txt"),
)
_PICTURES = "pictures"


class _Log(logging.FileHandler):
    """Log file that ignores a full disk, which the error that stops the run reports."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class RunFolder:
    """One run's folder; as a context manager it releases the lock and closes the log at the end.

    A new run is prepared by `create` and written by `begin`. An existing one is opened by `open`;
    entering the context then takes the lock, which write access needs.
    """

    def __init__(self, path: Path, *, new: bool = False, force: bool = False) -> None:
        self.path = Path(path)
        self._new = new
        self._force = force
        self._lock = lock.FolderLock(self.path)
        self._logger: logging.Logger | None = None

    @classmethod
    def create(cls, out: Path, name: str, seed: int, force: bool = False) -> RunFolder:
        """Check that a run can begin in ``out/name/seed-<seed>``; writes nothing.

        Raises:
            InputError: the folder holds a run (unless `force`) or foreign files, another run is at
                work in it, or it is not writable.
        """
        if not name or ".." in Path(name).parts or Path(name).is_absolute():
            raise InputError(f"name must be usable as a folder's name, got {name!r}")
        folder = cls(Path(out) / name / f"seed-{seed}", new=True, force=force)
        folder._check_writable()
        folder._check_vacant()
        if folder._lock.is_held():
            raise folder._lock.conflict()
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Return the run in `path`.

        Raises:
            InputError: it is not a run; the message names what is missing.
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, config_yaml: str, environment: Mapping[str, Any], manifest: Manifest) -> None:
        """Write the files of a run of status "running", and take its lock.

        A run replaced by `force` is deleted only when the new files are on the disk.

        Raises:
            InputError: as `create`, if that has become so since.
            RunFailed: the disk is full or fails; an older run is untouched.
        """
        is_new = not self.path.exists()
        with os_errors_as(InputError, f"cannot create run folder {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        try:
            with os_errors_as(RunFailed, f"cannot write run folder {self.path}"):
                self._write(config_yaml, environment, manifest)
        except BaseException:
            self._undo(is_new)
            raise
        self._new = False

    def lock(self) -> None:
        """Take the lock until `close`, or until this process dies.

        Raises:
            InputError: another process holds it, or the folder is not writable.
        """
        self._lock.acquire()

    @property
    def status(self) -> str:
        """running, finished, failed or interrupted; a run whose process died is interrupted."""
        status = str((self._marker() or {}).get("status", "interrupted"))
        return "interrupted" if status == "running" and not self._lock.is_held() else status

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
                return int(entry(db, "rounds_done", 0))
        except sqlite3.Error:
            return 0

    def set_status(self, status: str, text: str | None = None) -> None:
        """Record the status of the run, with the reason why it stopped as `text`.

        On a full disk the old status stays, rather than hide the error that led here.
        """
        if status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
        with contextlib.suppress(OSError):
            path = self.path / "status.json"
            write_atomic(path, self._status_text(status, text).encode())

    def save_model(self, tensors: Mapping[str, Tensor], frozen: str = "") -> None:
        """Write ``model.safetensors``: state-dict names to tensors of their logical shapes.

        `frozen` is the digest of the model's frozen tensors, which the file leaves out.

        Raises:
            RunFailed: the disk is full or fails.
        """
        path = self.path / trained.FILE
        # The format refuses views of one shared vector.
        copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        with os_errors_as(RunFailed, f"cannot write {path}"):
            write_atomic(path, safetensors.torch.save(copies, {trained.FROZEN: frozen}))

    def save_picture(self, name: str, figure: Figure) -> None:
        """Write ``pictures/<name>.png``.

        Raises:
            RunFailed: the disk is full or fails.
        """
        path = self.path / _PICTURES / f"{name}.png"
        image = io.BytesIO()
        figure.savefig(image, format="png", metadata={"Software": None})
        with os_errors_as(RunFailed, f"cannot write {path}"):
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, image.getvalue())

    def logger(self) -> logging.Logger:
        """Return the logger of ``log.txt``, with UTC times; `close` closes it."""
        if self._logger is None:
            handler = _Log(self.path / "log.txt", encoding="utf-8", delay=True)
            formatter = logging.Formatter(
                "%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ"
            )
            formatter.converter = time.gmtime
            handler.setFormatter(formatter)
            # getLogger would keep the logger of every run for the life of the process.
            self._logger = logging.Logger(f"fedsim {self.path}", logging.INFO)
            self._logger.addHandler(handler)
        return self._logger

    def close(self) -> None:
        """Close the log and release the lock."""
        if self._logger is not None:
            for handler in list(self._logger.handlers):
                handler.close()
                self._logger.removeHandler(handler)
            self._logger = None
        self._lock.release()

    def _status_text(self, status: str, text: str | None) -> str:
        content = {"format": _FORMAT, "status": status, "text": text, "pid": os.getpid()}
        return json.dumps(content) + "\n"

    def _marker(self) -> dict[str, Any] | None:
        """Return the content of ``status.json``, None if it is not ours."""
        try:
            marker = json.loads((self.path / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return marker if isinstance(marker, dict) and marker.get("format") == _FORMAT else None

    def _write(self, config_yaml: str, environment: Mapping[str, Any], manifest: Manifest) -> None:
        """Replace the folder's run, if there is one, by a new one."""
        self._check_vacant()
        for partial in self.path.glob(f"*{ASIDE}*"):  # of a start that was killed
            partial.unlink()
        texts = {
            "status.json": self._status_text("running", None),
            "environment.json": json.dumps(dict(environment), indent=2) + "\n",
            "config.yaml": config_yaml,
        }
        for name, text in texts.items():
            write_synced(aside(self.path / name), text.encode())
        manifest.save(aside(self.path / "partition.npz"))
        self._remove_old()
        for name in _PARTS:
            aside(self.path / name).replace(self.path / name)
        sync_folder(self.path)

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
            foreign = sorted(n for n in names if n != lock.NAME and ASIDE not in n)
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

    def _remove_old(self) -> None:
        """Delete an older run: ``config.yaml`` first, ``status.json`` last."""
        if self._marker() is None:
            return
        for name in reversed(_FILES[1:]):
            (self.path / name).unlink(missing_ok=True)
        checkpoint.remove_all(self.path)
        client_states.remove_all(self.path)
        remove_files(self.path / "export", _EXPORTS.__contains__)
        remove_files(self.path / _PICTURES, lambda name: name.endswith(".png"))

    def _undo(self, is_new: bool) -> None:
        """Remove an incomplete run, and its folder if that is new."""
        with contextlib.suppress(OSError):
            for name in _PARTS:
                aside(self.path / name).unlink(missing_ok=True)
        self.close()
        if is_new:
            with contextlib.suppress(OSError):
                self._lock.path.unlink()
                self.path.rmdir()
