"""The Ray executor: long-lived actors that pull blocks, longest first.

Workers that die or hang are replaced, and their blocks run again from the same inputs. Neither that
nor the number of machines changes the results.
"""

from __future__ import annotations

import gc
import math
import os
import pickle
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from fedsim.engine.channels import Broadcast, Channel, LocalChannel, RemoteChannel, WorkerLost
from fedsim.engine.jobs import Block, BlockResult, EngineEvent, Failure, Report, WorkerSpec
from fedsim.engine.process import keep_memory
from fedsim.engine.ray_cluster import connect, places
from fedsim.engine.shared_memory import Packed, SharedStore, dump, load
from fedsim.errors import InputError, RunFailed
from fedsim.params import trees
from fedsim.params.trees import Tree

DEPTH = 2
"""Blocks a worker holds: one it works on and one waiting, which hides the round trip."""

ATTEMPTS = 3
"""Times a block may lose its worker before its clients are run one by one."""

ATTEMPTS_ALONE = 2
"""Times a single client may lose its worker before it is given up."""

GRACE_SECONDS = 20.0
"""Time beyond its clients' timeouts after which a block's worker is killed."""

START_SECONDS = 120.0
"""How long a worker may take to come up."""


class _Actor:
    """The actor inside a Ray worker process."""

    def __init__(self, spec: WorkerSpec, store: str | None, node: str) -> None:
        import ray

        torch.set_num_threads(1)
        from fedsim.engine.worker import Worker

        context = ray.get_runtime_context()
        self._store = SharedStore(store) if store and context.get_node_id() == node else None
        use_gpu = bool(ray.get_gpu_ids()) and torch.cuda.is_available()
        # Ray shows an actor only its own GPUs, so the first visible one is the assigned one.
        self._worker = Worker(spec, "cuda:0" if use_gpu else "cpu")
        self._payload: tuple[int, Tree] = (-1, {})
        keep_memory()
        gc.freeze()  # what is imported stays; no collection needs to walk it again

    def describe(self) -> dict[str, Any]:
        import ray

        return {
            "pid": os.getpid(),
            "device": str(self._worker.device),
            "gpu_ids": ray.get_gpu_ids(),
            "local": self._store is not None,
            "node": ray.get_runtime_context().get_node_id(),
        }

    def run(self, packed: Packed, number: int, payload: Packed) -> Packed | str:
        """Run a block; the answer is its result, or the traceback of what went wrong."""
        try:
            block = load(packed, unlink=packed.path is not None)
            if self._payload[0] != number:
                self._payload = (number, load(payload))
            result = self._worker.run(block, self._payload[1])
            return dump(result) if self._store is None else self._store.put(result)
        except Exception:
            return traceback.format_exc()

    def serve(self, path: str) -> None:
        """Run the blocks that come through a Unix socket until its other end is closed."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(path)
            connection = Connection(client.detach())
        while True:
            try:
                message = connection.recv_bytes()
            except EOFError:
                return
            connection.send_bytes(pickle.dumps(self.run(*pickle.loads(message))))


@dataclass
class _Job:
    block: Block
    attempts: int = 0
    started: float = 0.0
    group: _Split | None = None


@dataclass
class _Split:
    """A block whose clients run one by one; their results are joined again in order."""

    block: Block
    parts: dict[int, BlockResult] = field(default_factory=dict)


@dataclass
class _Slot:
    """A worker's place, whichever process holds it."""

    number: int
    handle: Any = None
    channel: Channel | None = None
    jobs: deque[_Job] = field(default_factory=deque)
    about: dict[str, Any] = field(default_factory=dict)


class _DiedAtStart(RunFailed):
    """A worker died before it could take a block."""


class RayExecutor:
    """Runs blocks on Ray actors."""

    def __init__(self, spec: WorkerSpec, max_workers: int | None = None) -> None:
        self.events: list[EngineEvent] = []
        self.when_waiting: Callable[[], None] = lambda: None
        self._spec = spec
        self._config = spec.experiment.engine
        self._restarts = 0
        self._payloads = 0
        self._channels = 0
        keep_memory()
        self._ray = connect(spec)
        # One thread as in the serial executor, so that sums in the driver are the same there; and
        # further threads would go on spinning for a while, on the cores of the workers.
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self.num_workers = self._count_workers(max_workers)
        self._store = SharedStore.create()
        self._node = self._ray.get_runtime_context().get_node_id()
        self._spec_ref = self._ray.put(spec)
        self.slots = [_Slot(i) for i in range(self.num_workers)]
        try:
            for slot in self.slots:
                slot.handle = self._start_actor()
            self._await_ready(self.slots)
        except BaseException:
            self.close()
            raise

    def _count_workers(self, most: int | None) -> int:
        config, resources = self._config, self._ray.cluster_resources()
        cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        room = sum(places(node, config.cpus, config.gpus) for node in nodes)
        count = config.workers or max(1, min(room, most or room))
        if room < count:
            self.close_cluster()
            raise InputError(
                f"engine.workers = {count} with engine.cpus = {config.cpus:g} and engine.gpus = "
                f"{config.gpus:g} each does not fit: Ray has {cpus:g} CPUs and {gpus:g} GPUs, room "
                f"for {room} such workers"
            )
        return count

    def _start_actor(self) -> Any:
        options = {"num_cpus": self._config.cpus, "num_gpus": self._config.gpus}
        actor = self._ray.remote(_Actor).options(**options, max_restarts=0)
        return actor.remote(self._spec_ref, self._store.folder, self._node)

    def _await_ready(self, slots: list[_Slot]) -> None:
        """Wait until the actors of these slots are built, then open a channel to each."""
        refs = {slot.handle.describe.remote(): slot for slot in slots}
        seconds = START_SECONDS * (1 + len(refs) / 8)
        done, late = self._ray.wait(list(refs), num_returns=len(refs), timeout=seconds)
        if late:
            raise RunFailed(f"{len(late)} of {len(refs)} workers did not start in {seconds:g} s")
        errors = self._ray.exceptions
        for ref in done:
            slot = refs[ref]
            try:
                slot.about = self._ray.get(ref)
            except (errors.RayTaskError, errors.RayActorError) as error:
                raise _DiedAtStart(f"a worker failed while it started: {error}") from None
            if slot.about["local"]:
                self._channels += 1
                name = f"worker-{self._channels}"
                slot.channel = LocalChannel(slot.handle, self._store, name, START_SECONDS)
            else:
                slot.channel = RemoteChannel(self._ray, slot.handle)

    def describe(self) -> list[dict[str, Any]]:
        """Return pid, device, GPU ids and node of every worker."""
        return [slot.about for slot in self.slots]

    def run(self, blocks: list[Block], payload: Tree) -> Iterator[BlockResult]:
        """Yield results as they arrive; a block whose worker dies runs again."""
        queue = deque(_Job(b) for b in sorted(blocks, key=lambda b: (-b.cost, b.index)))
        self._payloads += 1
        broadcast = Broadcast(self._ray, self._store, self._payloads, payload)
        try:
            while queue or any(slot.jobs for slot in self.slots):
                self._fill(queue, broadcast)
                self.when_waiting()
                busy = {
                    slot.channel.waitable: slot for slot in self.slots if slot.channel and slot.jobs
                }
                ready = wait(list(busy), self._patience())
                if not ready:
                    self._kill_overdue()
                for waitable in ready:
                    slot = busy[waitable]  # type: ignore[index]
                    try:
                        result = slot.channel.receive()  # type: ignore[union-attr]
                    except WorkerLost:
                        yield from self._lost(slot, queue)
                        continue
                    job = slot.jobs.popleft()
                    if slot.jobs:
                        slot.jobs[0].started = time.monotonic()
                    yield from _collect(job, result)
        finally:
            broadcast.close()

    def _fill(self, queue: deque[_Job], broadcast: Broadcast) -> None:
        """Send every worker its next blocks, in turns over all workers."""
        for depth in range(1, DEPTH + 1):
            for slot in self.slots:
                if queue and slot.channel is not None and len(slot.jobs) < depth:
                    job = queue.popleft()
                    job.started = time.monotonic()
                    slot.channel.send(job.block, broadcast)
                    slot.jobs.append(job)

    def _allowed_seconds(self, job: _Job) -> float | None:
        limit = self._config.timeout
        return None if limit is None else limit * max(1, len(job.block.clients)) + GRACE_SECONDS

    def _overdue_in(self, job: _Job) -> float:
        """Return the seconds until a block is overdue; infinite without a timeout."""
        allowed = self._allowed_seconds(job)
        return math.inf if allowed is None else job.started + allowed - time.monotonic()

    def _patience(self) -> float | None:
        """Return the seconds until the first block is overdue; None without a timeout."""
        first = min(self._overdue_in(slot.jobs[0]) for slot in self.slots if slot.jobs)
        return None if first == math.inf else max(0.05, first)

    def _kill_overdue(self) -> None:
        for slot in self.slots:
            if slot.jobs and self._overdue_in(slot.jobs[0]) < 0:
                # The timer inside the worker could not stop the client: it hangs in C code.
                self._ray.kill(slot.handle, no_restart=True)

    def _lost(self, slot: _Slot, queue: deque[_Job]) -> Iterator[BlockResult]:
        """Replace a dead worker and queue its blocks again; the dead handle is not reused."""
        jobs = list(slot.jobs)
        slot.jobs.clear()
        if slot.channel is not None:
            slot.channel.close()
        head = jobs[0]
        head.attempts += 1
        clients = head.block.client_ids
        self.events.append(
            EngineEvent(
                "worker-died",
                f"worker {slot.number} (pid {slot.about['pid']}) died in round "
                f"{head.block.round} with block {head.block.index} (clients {_brief(clients)})",
            )
        )
        self._replace(slot, f"the last one ran clients {_brief(clients)}")
        again = jobs
        if head.attempts >= (ATTEMPTS_ALONE if head.group else ATTEMPTS):
            again = jobs[1:]
            if len(clients) > 1 and head.group is None:
                again = _split(head.block) + again
            else:
                yield from _collect(head, _gave_up(head))
        queue.extendleft(reversed(again))

    def _replace(self, slot: _Slot, what: str) -> None:
        """Start a new worker, again if it dies at once on a machine that is going down.

        Raises:
            RunFailed: more workers died than `engine.max_restarts` allows; the message ends with
                `what`.
        """
        ready = False
        while not ready:
            self._restarts += 1
            if self._restarts > self._config.max_restarts:
                raise RunFailed(
                    f"workers died {self._restarts} times, more than engine.max_restarts = "
                    f"{self._config.max_restarts}; {what}"
                )
            slot.handle = self._start_actor()
            try:
                self._await_ready([slot])
                ready = True
            except _DiedAtStart as error:
                what = str(error)
                self.events.append(EngineEvent("worker-died", f"worker {slot.number}: {what}"))

    def close(self) -> None:
        """Stop the workers, and Ray if this executor started it."""
        for slot in self.slots:
            if slot.channel is not None:
                slot.channel.close()
            if slot.handle is not None:
                self._ray.kill(slot.handle, no_restart=True)
        self._store.close()
        self.close_cluster()

    def close_cluster(self) -> None:
        self._ray.shutdown()
        torch.set_num_threads(self._threads)


def _split(block: Block) -> list[_Job]:
    whole = _Split(block)
    singles = []
    for i, part in enumerate(block.clients):
        single = replace(block, index=i, clients=[part])
        singles.append(_Job(single, group=whole))
    return singles


def _collect(job: _Job, result: BlockResult) -> Iterator[BlockResult]:
    """Yield a finished block: at once, or when the last of its single clients is in."""
    if job.group is None:
        yield result
        return
    whole = job.group
    whole.parts[result.index] = result
    if len(whole.parts) < len(whole.block.clients):
        return
    joined = BlockResult(whole.block.index, [])
    if whole.block.reduce:
        joined.sums = trees.WeightedMean()
    for i in range(len(whole.block.clients)):
        part = whole.parts[i]
        joined.reports += part.reports
        joined.seconds += part.seconds
        if whole.block.reduce and part.sums is not None:
            joined.sums.merge(part.sums)
    yield joined


def _gave_up(job: _Job) -> BlockResult:
    part = job.block.clients[0]
    text = (
        f"client {part.client}, round {job.block.round}: its worker died or hung "
        f"{job.attempts} times while it ran"
    )
    return BlockResult(job.block.index, [Report(part.client, failure=Failure("worker-died", text))])


def _brief(clients: list[int]) -> str:
    shown = ", ".join(str(c) for c in clients[:8])
    return shown + (f", ... {len(clients)} in all" if len(clients) > 8 else "")
