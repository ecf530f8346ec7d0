"""On-disk store of the clients' states between rounds.

A state is held as the bytes of `codec.to_bytes`, so a caller always gets a fresh copy, and
states kept in memory go through the same codec as spilled ones. `commit` concatenates the states
changed since the last commit in one new file ``states/round-<r>-<k>.states``; committed files
never change. The index (client -> file, offset) goes into the checkpoint. A commit deletes the
files that neither it nor the last two indexes refer to: it comes before its checkpoint, and until
that is written a resume uses one of the two older checkpoints.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import RunFailed, os_reason
from fedsim.runs import checkpoint
from fedsim.runs.atomic import ASIDE, remove_files, sync_folder
from fedsim.runs.codec import Damaged, check_seal, from_bytes, to_bytes

FOLDER = "states"
NAME = re.compile(r"round-\d+-\d+\.states")
_PENDING = f"{ASIDE}pending.states"

_MAX_FILES = 64  # live files above which small ones are merged
_HISTORY = checkpoint.KEPT  # indexes whose files are kept

Index = dict[str, Any]
"""``{"files": list[str], "sizes": list[int], "rows": int64 array (clients, 4)}``; a row is
client, number in `files`, first byte, number of bytes."""


class StateStore:
    """Per-client states of one run; `folder` is the run's folder.

    `memory_limit_bytes` bounds the encoded states held in memory; beyond it they are read from,
    or spilled to, the disk.
    """

    def __init__(self, folder: Path, memory_limit_bytes: int = 512 * 2**20) -> None:
        self.folder = Path(folder) / FOLDER
        self.memory_limit_bytes = memory_limit_bytes
        self._dirty: dict[int, bytes] = {}  # changed since the last commit
        self._spilled: dict[int, tuple[int, int]] = {}  # the same, but in the pending file
        self._cache: OrderedDict[int, bytes] = OrderedDict()  # committed, least recently used first
        self._memory = 0
        self._pending: int | None = None  # descriptor of the next commit's file
        self._pending_size = 0
        self._clear_index()

    def _clear_index(self) -> None:
        self._files: dict[int, tuple[str, int]] = {}  # number -> (name, size)
        self._next_file = 0
        self._slots: dict[int, int] = {}  # client -> row
        self._rows = np.zeros((64, 4), np.int64)
        self._history: list[set[str]] = []

    def __contains__(self, client: object) -> bool:
        return client in self._dirty or client in self._spilled or client in self._slots

    @property
    def clients(self) -> list[int]:
        """Clients that have a state, in ascending order."""
        return sorted({*self._dirty, *self._spilled, *self._slots})

    @property
    def memory_bytes(self) -> int:
        """Size of the encoded states held in memory."""
        return self._memory

    def get(self, client: int) -> Any:
        """Return a copy of the client's newest state, or None if it never had one.

        Raises:
            RunFailed: its file is missing or damaged.
        """
        blob = self.get_bytes(client)
        # What comes from the disk was checked there.
        return None if blob is None else from_bytes(blob, verify=False)

    def get_bytes(self, client: int) -> bytes | None:
        """Return the client's newest state encoded by `codec.to_bytes`, or None."""
        if client in self._dirty:
            return self._dirty[client]
        if client in self._spilled:
            return self._read_spilled(client)
        if client in self._cache:
            self._cache.move_to_end(client)
            return self._cache[client]
        if client not in self._slots:
            return None
        blob = self._read_committed(client)
        self._remember(client, blob)
        return blob

    def put(self, client: int, state: Any) -> None:
        """Set the client's state; it is saved by the next `commit`.

        Raises:
            TypeError: the state holds something that cannot be saved (see `codec.encode`).
            RunFailed: it had to be spilled and the disk is full or fails.
        """
        self.put_bytes(client, to_bytes(state, f"state of client {client}"))

    def put_bytes(self, client: int, blob: bytes) -> None:
        """Set the client's state to bytes of `codec.to_bytes`."""
        self._memory -= len(self._dirty.pop(client, b"")) + len(self._cache.pop(client, b""))
        self._spilled.pop(client, None)
        self._make_room(len(blob))
        if self._memory + len(blob) <= self.memory_limit_bytes:
            self._dirty[client] = blob
            self._memory += len(blob)
        else:
            self._spilled[client] = self._append(blob)

    def commit(self, round: int) -> None:
        """Write the states changed since the last commit to one new file.

        Call it before taking the checkpoint's `index()`.

        Raises:
            RunFailed: the disk is full or fails; earlier commits are untouched.
        """
        places = dict(self._spilled)
        for client, blob in self._dirty.items():
            places[client] = self._append(blob)
        moved = self._worth_moving(places)
        for client in moved:
            places[client] = self._append(self._read_committed(client))
        if places:
            self._publish(round, places)
        for client, blob in self._dirty.items():
            self._cache[client] = blob
        self._dirty.clear()
        self._spilled.clear()
        self._make_room(0)
        self._collect()

    def index(self) -> Index:
        """Return the location of every client's committed state, for the checkpoint."""
        used = {name for name, _ in self._files.values()}
        if not self._history or self._history[-1] != used:
            self._history = [*self._history, used][-_HISTORY:]
        rows = self._rows[: len(self._slots)].copy()
        rows[:, 1] = np.searchsorted(np.array(list(self._files), np.int64), rows[:, 1])
        names, sizes = zip(*self._files.values(), strict=True) if self._files else ((), ())
        return {"files": list(names), "sizes": list(sizes), "rows": rows}

    def restore(self, index: Index) -> None:
        """Reset to exactly the states of `index`; uncommitted ones are dropped.

        Raises:
            RunFailed: a file it refers to is missing or truncated.
        """
        for name, size in zip(index["files"], index["sizes"], strict=True):
            path = self.folder / name
            if not path.is_file():
                raise RunFailed(f"client states {path} are missing")
            if path.stat().st_size != size:
                raise RunFailed(f"client states {path} are truncated")
        self._drop_pending()
        self._dirty.clear()
        self._spilled.clear()
        self._cache.clear()
        self._memory = 0
        self._clear_index()
        self._files = dict(enumerate(zip(index["files"], index["sizes"], strict=True)))
        self._next_file = len(self._files)
        rows = index["rows"]
        self._rows = np.concatenate([rows, np.zeros((64, 4), np.int64)])
        self._slots = {client: slot for slot, client in enumerate(rows[:, 0].tolist())}
        self._history = [set(index["files"])]

    def close(self) -> None:
        """Drop uncommitted states and their file."""
        self._drop_pending()

    def _append(self, blob: bytes) -> tuple[int, int]:
        """Add a blob to the pending file; return (first byte, number of bytes)."""
        start = self._pending_size
        try:
            if self._pending is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
                self._pending = os.open(self._pending_path, flags, 0o666)
            rest = memoryview(blob)
            while rest:
                written = os.pwrite(self._pending, rest, self._pending_size)
                self._pending_size += written
                rest = rest[written:]
        except OSError as error:
            self._drop_pending()
            raise self._cannot_write(error) from error
        return start, len(blob)

    def _publish(self, round: int, places: dict[int, tuple[int, int]]) -> None:
        """Commit the pending file, which holds `places`: client -> (first byte, bytes)."""
        assert self._pending is not None
        number, attempt = self._next_file, 0
        # Never a name that is taken: an older index may refer to that file.
        while (path := self.folder / f"round-{round}-{attempt}.states").exists():
            attempt += 1
        try:
            os.fsync(self._pending)
            self._pending_path.rename(path)
            sync_folder(self.folder)
        except OSError as error:
            self._drop_pending()
            raise self._cannot_write(error) from error
        os.close(self._pending)
        self._files[number] = (path.name, self._pending_size)
        self._next_file, self._pending, self._pending_size = number + 1, None, 0
        for client, (start, length) in places.items():
            slot = self._slots.setdefault(client, len(self._slots))
            if slot == len(self._rows):
                self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
            self._rows[slot] = client, number, start, length

    def _worth_moving(self, places: dict[int, tuple[int, int]]) -> list[int]:
        """Return the clients whose unchanged states should be copied into the new file too.

        A file that is more than half superseded is abandoned, so the disk holds at most about
        twice the live states and each is written at most about twice. Above `_MAX_FILES` files
        the half with the fewest live bytes is merged.
        """
        rows = self._rows[: len(self._slots)]
        kept = rows[~np.isin(rows[:, 0], np.fromiter(places, np.int64, len(places)))]
        live = np.bincount(kept[:, 1], weights=kept[:, 3], minlength=self._next_file)
        abandoned = {n for n, (_, size) in self._files.items() if 0 < 2 * live[n] < size}
        numbers = [n for n in self._files if live[n] > 0 and n not in abandoned]
        if len(numbers) >= _MAX_FILES:
            abandoned |= set(sorted(numbers, key=lambda n: (live[n], n))[: len(numbers) // 2])
        return kept[np.isin(kept[:, 1], list(abandoned)), 0].tolist() if abandoned else []

    def _collect(self) -> None:
        """Drop files without live states; delete those that no recent index refers to."""
        used = set(np.unique(self._rows[: len(self._slots), 1]).tolist())
        self._files = {n: entry for n, entry in self._files.items() if n in used}
        if len(self._history) < _HISTORY:
            return  # after a resume, a checkpoint older than the restored one may be needed
        referred = {name for name, _ in self._files.values()}.union(*self._history)
        with contextlib.suppress(OSError):
            for name in os.listdir(self.folder):
                if NAME.fullmatch(name) and name not in referred:
                    (self.folder / name).unlink()

    def _read_spilled(self, client: int) -> bytes:
        assert self._pending is not None
        start, length = self._spilled[client]
        blob = os.pread(self._pending, length, start)
        return self._checked(blob, self._pending_path, client)

    def _read_committed(self, client: int) -> bytes:
        if client in self._cache:
            return self._cache[client]
        _, number, start, length = self._rows[self._slots[client]].tolist()
        path = self.folder / self._files[number][0]
        try:
            with path.open("rb", buffering=0) as file:
                blob = os.pread(file.fileno(), length, start)
        except OSError as error:
            raise RunFailed(f"cannot read client states {path}: {os_reason(error)}") from error
        return self._checked(blob, path, client)

    def _checked(self, blob: bytes, path: Path, client: int) -> bytes:
        try:
            check_seal(blob)
        except Damaged as error:
            raise RunFailed(f"the state of client {client} in {path} is damaged: {error}") from None
        return blob

    def _remember(self, client: int, blob: bytes) -> None:
        self._make_room(len(blob))
        if self._memory + len(blob) <= self.memory_limit_bytes:
            self._cache[client] = blob
            self._memory += len(blob)

    def _make_room(self, size: int) -> None:
        """Evict committed states, least recently used first, until `size` more bytes fit."""
        while self._cache and self._memory + size > self.memory_limit_bytes:
            self._memory -= len(self._cache.popitem(last=False)[1])

    @property
    def _pending_path(self) -> Path:
        return self.folder / _PENDING

    def _drop_pending(self) -> None:
        if self._pending is not None:
            os.close(self._pending)
            self._pending, self._pending_size = None, 0
            with contextlib.suppress(OSError):
                self._pending_path.unlink(missing_ok=True)

    def _cannot_write(self, error: OSError) -> RunFailed:
        return RunFailed(f"cannot write client states in {self.folder}: {os_reason(error)}")


def remove_all(folder: Path) -> None:
    """Remove every state file of the run in `folder`, and the folder if then empty."""
    remove_files(folder / FOLDER, lambda name: NAME.fullmatch(name) or name == _PENDING)
