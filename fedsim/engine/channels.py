"""Channels from the driver to Ray actors: Unix sockets on one machine, Ray calls between machines.

A round trip of a Ray call takes about a millisecond, that of a Unix socket a twentieth; small
clients train in less. Ray places, starts and stops the workers either way.

Large objects bypass the socket through a `SharedStore`, so that all blocks that wait for a worker
fit into the socket's buffer: otherwise driver and worker could each wait for the other to read.
"""

from __future__ import annotations

import collections
import os
import pickle
import queue
import socket
import threading
from multiprocessing.connection import Connection
from typing import Any, Protocol

from fedsim.engine.jobs import Block, BlockResult
from fedsim.engine.shared_memory import INLINE_BYTES, Packed, SharedStore, dump, load
from fedsim.errors import RunFailed
from fedsim.params.trees import Tree

SEND_BYTES = 4 * INLINE_BYTES
"""Size of a socket's send buffer: two blocks of at most `INLINE_BYTES`, each with a payload."""


class WorkerLost(Exception):
    """The worker at the other end is gone."""


class Broadcast:
    """A payload for all workers, stored once for each kind of channel."""

    def __init__(self, ray: Any, store: SharedStore, number: int, payload: Tree) -> None:
        self.number = number
        self._ray, self._store, self._tree = ray, store, payload
        self._local: Packed | None = None
        self._remote: Any = None

    def local(self) -> Packed:
        """Return the payload in shared memory."""
        if self._local is None:
            self._local = self._store.put(self._tree)
        return self._local

    def remote(self) -> Any:
        """Return the payload's reference in Ray's object store."""
        if self._remote is None:
            self._remote = self._ray.put(dump(self._tree))
        return self._remote

    def close(self) -> None:
        """Remove the payload from shared memory."""
        if self._local is not None and self._local.path is not None:
            os.unlink(self._local.path)


class Channel(Protocol):
    """A channel to one worker; answers arrive in the order of the blocks sent."""

    waitable: Connection

    def send(self, block: Block, payload: Broadcast) -> None:
        """Send a block; `receive` tells if the worker is gone."""

    def receive(self) -> BlockResult:
        """Return the next answer.

        Raises:
            WorkerLost: the worker died.
            RunFailed: the worker failed outside any client's work.
        """

    def close(self) -> None:
        """Disconnect."""


class LocalChannel:
    """A Unix socket in the store's folder, which only the folder's owner can enter."""

    def __init__(self, actor: Any, store: SharedStore, name: str, timeout: float) -> None:
        self._store = store
        path = os.path.join(store.folder, name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen(1)
            listener.settimeout(timeout)
            self._serving = actor.serve.remote(path)
            try:
                accepted, _ = listener.accept()
            except TimeoutError:
                raise RunFailed(f"a worker did not answer within {timeout:g} s") from None
        os.unlink(path)
        accepted.setblocking(True)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        self.waitable = Connection(accepted.detach())

    def send(self, block: Block, payload: Broadcast) -> None:
        packed = self._store.put(block)
        try:
            self.waitable.send_bytes(pickle.dumps((packed, payload.number, payload.local())))
        except OSError:
            return

    def receive(self) -> BlockResult:
        try:
            answer = pickle.loads(self.waitable.recv_bytes())
        except (EOFError, OSError):
            raise WorkerLost from None
        return unpack(answer)

    def close(self) -> None:
        self.waitable.close()


class RemoteChannel:
    """Calls of a Ray actor on another machine, made by a thread that signals each answer."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self._jobs: queue.SimpleQueue[tuple[Packed, int, Any] | None] = queue.SimpleQueue()
        self._answers: collections.deque[Any] = collections.deque()
        ours, theirs = socket.socketpair()
        self.waitable = Connection(ours.detach())
        self._bell = Connection(theirs.detach())
        self._thread = threading.Thread(target=self._call, daemon=True)
        self._thread.start()

    def send(self, block: Block, payload: Broadcast) -> None:
        self._jobs.put((dump(block), payload.number, payload.remote()))

    def _call(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                self._answers.append(self._ray.get(self._actor.run.remote(*job)))
                self._bell.send_bytes(b".")
        except (self._ray.exceptions.RayError, OSError):
            return  # a dead actor, or an answer that was lost with its machine
        finally:
            self._bell.close()

    def receive(self) -> BlockResult:
        try:
            self.waitable.recv_bytes()
        except (EOFError, OSError):
            raise WorkerLost from None
        return unpack(self._answers.popleft())

    def close(self) -> None:
        self._jobs.put(None)
        self.waitable.close()


def unpack(answer: Packed | str) -> BlockResult:
    """Return the result that a worker answered with.

    Raises:
        RunFailed: the worker failed; its answer is a traceback.
    """
    if isinstance(answer, str):
        raise RunFailed(f"a worker failed: {answer}")
    result: BlockResult = load(answer, unlink=True)
    return result
