"""How the driver talks to a Ray actor: by a Unix socket on one machine, by Ray between machines.

A Ray call takes about a millisecond to an actor and back, a Unix socket a twentieth of that; small
clients are done in less. Ray places, starts and stops the workers either way.

What is large does not pass through the socket but through a `Shelf`: all blocks that wait for a
worker fit into the socket's buffer. The driver then never waits for a worker that waits for the
driver to take an answer.
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
from fedsim.engine.shared_memory import INLINE_BYTES, Parcel, Shelf, dump, load
from fedsim.errors import RunFailed
from fedsim.params.trees import Tree

SEND_BYTES = 4 * INLINE_BYTES
"""Room for what is sent ahead: two blocks of at most `INLINE_BYTES`, with the same of a payload."""


class WorkerLost(Exception):
    """The worker at the other end is gone."""


class Broadcast:
    """One payload on its way to all workers, put in place once for each kind of way."""

    def __init__(self, ray: Any, shelf: Shelf, number: int, payload: Tree) -> None:
        self.number = number
        self._ray, self._shelf, self._tree = ray, shelf, payload
        self._local: Parcel | None = None
        self._remote: Any = None

    def local(self) -> Parcel:
        """Return the payload's parcel in shared memory."""
        if self._local is None:
            self._local = self._shelf.put(self._tree)
        return self._local

    def remote(self) -> Any:
        """Return the payload's reference in Ray's object store."""
        if self._remote is None:
            self._remote = self._ray.put(dump(self._tree))
        return self._remote

    def close(self) -> None:
        """Remove what was put in shared memory."""
        if self._local is not None and self._local.path is not None:
            os.unlink(self._local.path)


class Link(Protocol):
    """A way to one worker; answers come in the order of the blocks sent."""

    waitable: Connection

    def send(self, block: Block, payload: Broadcast) -> None:
        """Hand over a block; a worker that is gone shows in `receive`."""

    def receive(self) -> BlockResult:
        """Return the next answer.

        Raises:
            WorkerLost: the worker died.
            RunFailed: the worker failed outside any client's work.
        """

    def close(self) -> None:
        """Let go of the worker."""


class LocalLink:
    """A Unix socket in the shelf's folder, which only its owner can enter."""

    def __init__(self, actor: Any, shelf: Shelf, name: str, timeout: float) -> None:
        self._shelf = shelf
        path = os.path.join(shelf.folder, name)
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
        parcel = self._shelf.put(block)
        try:
            self.waitable.send_bytes(pickle.dumps((parcel, payload.number, payload.local())))
        except OSError:
            return

    def receive(self) -> BlockResult:
        try:
            answer = pickle.loads(self.waitable.recv_bytes())
        except (EOFError, OSError):
            raise WorkerLost from None
        return opened(answer)

    def close(self) -> None:
        self.waitable.close()


class RemoteLink:
    """Calls of a Ray actor on another machine, made by a thread that announces each answer."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self._jobs: queue.SimpleQueue[tuple[Parcel, int, Any] | None] = queue.SimpleQueue()
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
        return opened(self._answers.popleft())

    def close(self) -> None:
        self._jobs.put(None)
        self.waitable.close()


def opened(answer: Parcel | str) -> BlockResult:
    """Return the result in an answer.

    Raises:
        RunFailed: the answer is the traceback of a worker that failed.
    """
    if isinstance(answer, str):
        raise RunFailed(f"a worker failed: {answer}")
    result: BlockResult = load(answer, unlink=True)
    return result
