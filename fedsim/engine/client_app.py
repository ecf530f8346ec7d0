"""Calling a Flower `ClientApp` for one client of a block."""

from __future__ import annotations

from functools import partial

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedsim.data.views import ClientData
from fedsim.engine.isolation import guarded
from fedsim.engine.jobs import Block, BlockResult, ClientJob, Report
from fedsim.engine.resources import Resources
from fedsim.engine.screening import screen_reply
from fedsim.flower.private import RUN_ID, identify_server, set_message_id
from fedsim.flower.records import count_bytes, scalars
from fedsim.params.trees import Tree
from fedsim.rng import seeded_globals
from fedsim.runs.codec import from_bytes, to_bytes


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
    for name, arrays in tree["arrays"].items():
        state[name] = ArrayRecord({k: Array(np.asarray(a)) for k, a in arrays.items()})
    for name, metrics in tree["metrics"].items():
        state[name] = MetricRecord(metrics)
    for name, configs in tree["configs"].items():
        state[name] = ConfigRecord(configs)
    return state


_current: dict[int, ClientData] = {}


class AppRunner:
    """Runs the blocks of a worker whose clients are a genuine Flower `ClientApp`.

    The app sees a message of its own, and a context whose `state` persists over the rounds;
    `context.run_config` holds the options of the experiment's `client` section and
    `context.node_config` the partition id and count. `random`, numpy's and torch's global
    generators are seeded for each call.
    """

    def __init__(self, resources: Resources) -> None:
        self._worker = resources
        self._experiment = resources.experiment

    def run(self, block: Block, payload: Tree) -> BlockResult:
        """Call the app for each client of a block; ``payload["content"]`` is what it is sent."""
        limit = self._experiment.engine.timeout
        reports = [
            guarded(job.client, block.round, limit, partial(self._call, block, job, payload))
            for job in block.clients
        ]
        if block.kind == "train":
            for report in reports:
                if report.failure is None:
                    screen_reply(report, self._worker.initial)
        return BlockResult(block.index, reports)

    def _call(self, block: Block, job: ClientJob, payload: Tree) -> Report:
        client, experiment = job.client, self._experiment
        identify_server()
        content: RecordDict = copy_records(payload["content"])
        message = Message(content, client, job.message_type, group_id=str(block.round))
        set_message_id(message, f"{block.round}-{client}")
        context = Context(
            run_id=RUN_ID,
            node_id=client,
            node_config={"partition-id": client, "num-partitions": experiment.partition.clients},
            state=tree_to_state(None if job.state is None else from_bytes(job.state)),
            run_config=dict(experiment.client.options),
        )
        self._worker.seed_globals(block, client)
        _current[client] = self._worker.data(job)
        try:
            purpose = f"app/{job.message_type}/{client}"
            with seeded_globals(experiment.seed, purpose, block.round):
                reply = self._worker.client(message, context)
        finally:
            del _current[client]
        if reply.has_error():
            raise RuntimeError(f"the ClientApp answered with an error: {reply.error.reason}")
        state = None
        if block.kind == "train" and (job.state is not None or context.state):
            state = to_bytes(state_to_tree(context.state), f"context of client {client}")
        metrics = scalars(reply.content)
        return Report(
            client,
            weight=metrics.get("num-examples", 0.0),
            metrics=metrics,
            bytes_up=count_bytes(reply.content),
            state=state,
            content=reply.content,
        )


def client_data(context: Context) -> ClientData:
    """Return this experiment's data of the client a `ClientApp` is called for.

    For use inside a ClientApp that fedsim runs: ``fedsim.client_data(context).train``.

    Raises:
        LookupError: called outside such an app.
    """
    try:
        return _current[context.node_id]
    except KeyError:
        raise LookupError("client_data is available only while fedsim runs the ClientApp") from None
