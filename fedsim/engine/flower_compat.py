"""Everything that reaches into Flower's private modules, so that one file follows its changes.

Flower has no public way to say who "the server" is outside its own processes, to give a message
an id, or to make the `Run` that a `Grid` reports.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedsim import rng
from fedsim.engine.jobs import Assignment, Block, Report
from fedsim.maths.trees import Tree
from fedsim.runs.codec import from_bytes, to_bytes

if TYPE_CHECKING:
    from fedsim.engine.worker import Worker

RUN_ID = 1
SERVER_NODE = 2**62
"""The server's node id, out of the way of client ids, which are node ids here."""


def identify_server() -> None:
    """Let `Message(...)` be constructed in this process: messages come from the server."""
    TaskIdentity.run_id = RUN_ID
    TaskIdentity.node_id = SERVER_NODE
    TaskIdentity.task_id = 0


def empty_run() -> Run:
    """Return the `Run` that our grid reports."""
    return Run.create_empty(RUN_ID)


def set_message_id(message: Message, value: str) -> None:
    """Give a message the id its reply will refer to; Flower's SuperLink does it otherwise."""
    message.metadata.__dict__["_message_id"] = value


def reply_to(message: Message, content: RecordDict) -> Message:
    """Return a genuine reply to `message`."""
    return Message(content, reply_to=message)


def error_reply(message: Message, text: str) -> Message:
    """Return a genuine error reply to `message`; code 0 is Flower's 'unknown'."""
    return Message(Error(code=0, reason=text), reply_to=message)


@contextmanager
def seeded_globals(seed: int, purpose: str, round: int) -> Iterator[None]:
    """Seed `random` and numpy's global generator, which Flower's strategies draw from."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    address = rng.derive(seed, purpose, round)
    random.seed(address)
    np.random.seed(address % 2**32)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def copy_records(content: RecordDict) -> RecordDict:
    """Return a record dict with records of its own: mods pop entries and clients replace them."""
    return RecordDict({name: record.copy() for name, record in content.items()})


def state_to_tree(state: RecordDict) -> Tree:
    """Return what a ClientApp keeps in its context as a tree that a checkpoint can hold."""
    return {
        "arrays": {
            name: {key: array.numpy() for key, array in record.items()}
            for name, record in state.array_records.items()
        },
        "metrics": {n: dict(r) for n, r in state.metric_records.items()},
        "configs": {n: dict(r) for n, r in state.config_records.items()},
    }


def tree_to_state(tree: Tree | None) -> RecordDict:
    """Undo `state_to_tree`; None gives an empty state."""
    state = RecordDict()
    if tree is None:
        return state
    from flwr.app import Array

    for name, arrays in tree["arrays"].items():
        state[name] = ArrayRecord({k: Array(np.asarray(a)) for k, a in arrays.items()})
    for name, metrics in tree["metrics"].items():
        state[name] = MetricRecord(metrics)
    for name, configs in tree["configs"].items():
        state[name] = ConfigRecord(configs)
    return state


_current: dict[int, tuple[Worker, Assignment]] = {}


def run_client_app(worker: Worker, block: Block, part: Assignment, payload: Tree) -> Report:
    """Run a genuine Flower `ClientApp` for one client and report its reply.

    The app sees a message of its own, and a context whose `state` persists over the rounds;
    `context.run_config` holds the options of the experiment's `client` section and
    `context.node_config` the partition id and count. `random` and numpy's global generator are
    seeded for the call, as torch's is.
    """
    identify_server()
    content: RecordDict = copy_records(payload["content"])
    message = Message(content, part.client, part.message_type, group_id=str(block.round))
    set_message_id(message, f"{block.round}-{part.client}")
    context = Context(
        run_id=RUN_ID,
        node_id=part.client,
        node_config={
            "partition-id": part.client,
            "num-partitions": worker.experiment.partition.clients,
        },
        state=tree_to_state(None if part.state is None else from_bytes(part.state)),
        run_config=dict(worker.experiment.client.options),
    )
    worker.seed_globals(block, part.client)
    _current[part.client] = (worker, part)
    try:
        purpose = f"app/{part.message_type}/{part.client}"
        with seeded_globals(worker.experiment.seed, purpose, block.round):
            reply = worker.client(message, context)
    finally:
        del _current[part.client]
    if reply.has_error():
        raise RuntimeError(f"the ClientApp answered with an error: {reply.error.reason}")
    state = None
    if block.kind == "train" and (part.state is not None or context.state):
        state = to_bytes(state_to_tree(context.state), f"context of client {part.client}")
    return Report(
        part.client,
        weight=scalars(reply.content).get("num-examples", 0.0),
        metrics=scalars(reply.content),
        bytes_up=count_bytes(reply.content),
        state=state,
        content=reply.content,
    )


def client_data(context: Context) -> Any:
    """Return this experiment's data of the client a `ClientApp` is called for.

    For use inside a ClientApp that fedsim runs: ``fedsim.client_data(context).train``.

    Raises:
        LookupError: called outside such an app.
    """
    try:
        worker, part = _current[context.node_id]
    except KeyError:
        raise LookupError("client_data is available only while fedsim runs the ClientApp") from None
    return worker.data(part)


def scalars(content: RecordDict) -> dict[str, float]:
    """Return the scalar metrics of a reply."""
    found: dict[str, float] = {}
    for record in content.metric_records.values():
        found |= {k: float(v) for k, v in record.items() if not isinstance(v, list)}
    return found


def count_bytes(content: RecordDict) -> int:
    """Bytes of the arrays in a reply."""
    return sum(
        int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize
        for record in content.array_records.values()
        for array in record.values()
    )
