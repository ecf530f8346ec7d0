"""A Flower `Grid` over the scheduler: messages become a plan, reports become replies.

Only strategies of Flower's need it, and strategies of ours around or inside which Flower code runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedsim.engine.jobs import Report, RoundLog
from fedsim.engine.schedule import Dispatch, Plan, Scheduler
from fedsim.flower import private
from fedsim.flower.records import TreeRecord, count_bytes, tree_of
from fedsim.params import Params, trees
from fedsim.params.trees import Tree


class SimulationGrid(Grid):
    """A Flower grid whose nodes are the clients 0..population-1 of a partition.

    `model` are parameters like those that records hold; with `apps` clients are Flower ClientApps
    and get records as they are. `evaluation_clients` are those that our own strategies evaluate.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        population: int,
        model: Params,
        *,
        apps: bool,
        evaluation_clients: Sequence[int] = (),
    ) -> None:
        self.scheduler = scheduler
        self.population = population
        self.evaluation_clients = list(evaluation_clients)
        self._model = model
        self._apps = apps
        self._run = private.empty_run()
        self._sent: dict[int, Message] = {}  # by client, of the latest plan
        self._replies: dict[str, Message] = {}
        private.identify_server()

    @property
    def run(self) -> Run:
        """Run information, as Flower wants it."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Replace the run information."""
        self._run = run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message from the server to a client."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return all client ids; O(population)."""
        return range(self.population)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Execute the messages now and keep the replies for `pull_messages`."""
        pushed = list(messages)
        ids = []
        for i, message in enumerate(pushed):
            private.set_message_id(message, f"push-{len(self._replies)}-{i}")
            ids.append(message.metadata.message_id)
        for reply in self.send_and_receive(pushed):
            self._replies[reply.metadata.reply_to_message_id] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages and forget them."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Execute messages and return the replies in ascending order of client id.

        `timeout` is ignored: `engine.timeout` bounds each client instead, which does not make the
        result depend on how many workers there are.

        Raises:
            RunFailed: see `Scheduler.run`.
        """
        return self.replies(self.scheduler.run(self.plan(messages)))

    def plan(self, messages: Iterable[Message]) -> Plan:
        """Return what messages ask of clients: a dispatch for those that share a payload."""
        ordered = sorted(messages, key=lambda m: m.metadata.dst_node_id)
        self._sent = {m.metadata.dst_node_id: m for m in ordered}
        if not ordered:
            return Plan(0, True, [])
        payloads: dict[tuple[int, ...], list[Message]] = {}
        for message in ordered:
            payloads.setdefault(_payload_key(message.content, self._apps), []).append(message)
        training = ordered[0].metadata.message_type.startswith(MessageType.TRAIN)
        dispatches = [self._dispatch(sharing) for sharing in payloads.values()]
        return Plan(_round_of(ordered[0].content), training, dispatches)

    def _dispatch(self, messages: list[Message]) -> Dispatch:
        content = messages[0].content
        shared: Tree = {"content": content} if self._apps else self._payload(content)
        clients = [m.metadata.dst_node_id for m in messages]
        own = {} if self._apps else {c: _own(self._sent[c].content) for c in clients}
        return Dispatch(
            clients,
            shared,
            count_bytes(content) if self._apps else trees.num_bytes(shared),
            {client: tree for client, tree in own.items() if tree is not None},
            {m.metadata.dst_node_id: m.metadata.message_type for m in messages},
        )

    def _payload(self, content: RecordDict) -> Tree:
        """Return the tree that client methods get of a message."""
        record = next(iter(content.array_records.values()), None)
        tree: Tree = {}
        if isinstance(record, TreeRecord) and record.tree is not None:
            tree = dict(record.shared)
        elif record is not None:
            tree = dict(tree_of(record, self._model))
        config: dict[str, Any] = {}
        for values in content.config_records.values():
            config |= dict(values)
        return {**tree, "config": config}

    def replies(self, log: RoundLog) -> list[Message]:
        """Return the replies to the latest plan's messages, errors included, by client id.

        Where only the mean of the updates was asked for, it is the reply of the first client.
        """
        reports = sorted(log.reports, key=lambda report: report.client)
        if log.sums is not None:
            first = next((r.client for r in reports if r.failure is None), None)
            reports = [r for r in reports if r.failure is not None]
            if first is not None:
                update, weight, metrics = log.mean()
                reports.append(Report(first, weight, metrics, update=update))
        return [self._reply(report) for report in sorted(reports, key=lambda r: r.client)]

    def _reply(self, report: Report) -> Message:
        message = self._sent[report.client]
        if report.failure is not None:
            text = f"{report.failure.text}\n{report.failure.traceback}".strip()
            return private.error_reply(message, text)
        if report.content is not None:
            return private.reply_to(message, report.content)
        # Flower's strategies drop metrics of zero weight, a client without test samples has none.
        numbers = MetricRecord({**report.metrics, "num-examples": report.weight})
        content = RecordDict({"metrics": numbers})
        if message.metadata.message_type.startswith(MessageType.TRAIN):
            content["arrays"] = TreeRecord(report.update or {})
        return private.reply_to(message, content)


def _payload_key(content: RecordDict, whole: bool) -> tuple[int, ...]:
    """Return what is equal for messages of one payload.

    With `whole` they must share all of it; else what single clients get on top may differ.
    """
    key = []
    for record in content.values():
        if isinstance(record, ConfigRecord):
            key.append(hash(tuple(sorted((k, str(v)) for k, v in record.items()))))
        elif isinstance(record, TreeRecord) and not whole:
            key.append(id(record.shared))
        else:
            key.append(id(record))
    return tuple(key)


def _own(content: RecordDict) -> Tree | None:
    record = next(iter(content.array_records.values()), None)
    return record.own if isinstance(record, TreeRecord) else None


def _round_of(content: RecordDict) -> int:
    """Return the round that a message names, 0 if it names none."""
    for record in content.config_records.values():
        if "server-round" in record:
            return int(record["server-round"])  # type: ignore[arg-type]
    return 0
