"""Our Flower `Grid`: messages in, blocks to the executor, replies out.

Messages that carry the same payload are put together in blocks, by a rule that looks at the
experiment only and never at the number of workers. Where the answers are wanted only as their
weighted mean, workers return a sum a block, and one reply stands for all clients of a payload.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from flwr.app import Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedsim.data.partition import Manifest
from fedsim.engine.jobs import Assignment, Block, BlockResult, Executor, Failure, Report, RoundLog
from fedsim.engine.schedule import SHARD, block_length
from fedsim.errors import RunFailed
from fedsim.evaluate.scorer import Tally
from fedsim.flower import private as compat
from fedsim.flower import records
from fedsim.flower.messages import Letter, by_payload, letters_of, round_of
from fedsim.flower.records import RecordMismatch, TreeRecord, tree_of
from fedsim.params import Params, trees
from fedsim.params.trees import Tree
from fedsim.runs.client_states import StateStore


class SimulationGrid(Grid):
    """A Flower grid whose nodes are the clients 0..population-1 of a partition.

    `block_means` allows blocks to answer with their mean, which only the outermost strategy can
    decide; `group_size` is how many clients the client method trains at once. With `pooled` client
    0 trains on the training samples of all. Without `alike` clients may send different shapes.
    """

    def __init__(
        self,
        executor: Executor,
        manifest: Manifest,
        states: StateStore,
        model: Params,
        foreign_client: bool,
        client_sends: frozenset[str],
        block_means: bool,
        group_size: int = 1,
        min_survivors: int | float = 1,
        abort_on_defect: bool = False,
        evaluation_clients: list[int] | None = None,
        pooled: bool = False,
        alike: bool = True,
    ) -> None:
        self.executor = executor
        self.population = manifest.num_clients
        self.evaluation_clients = evaluation_clients or []
        self.log = RoundLog()
        self.on_progress: Callable[[int, int], None] = lambda done, total: None
        self._manifest = manifest
        self._trained = manifest.pooled() if pooled else manifest
        self._states = states
        self._model = model
        self._foreign_client = foreign_client
        self._client_sends = client_sends
        self._block_means = block_means
        self._group_size = group_size
        self._min_survivors = min_survivors
        self._abort = abort_on_defect
        self._alike = alike
        self._seconds: dict[int, float] = {}  # of each client's latest training
        self._pace = 1e-3  # seconds a training sample takes, over the latest round
        self._run = compat.empty_run()
        self._replies: dict[str, Message] = {}
        compat.identify_server()

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
        """Return all client ids; O(population), our own strategies never ask."""
        return range(self.population)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Execute the messages now and keep the replies for `pull_messages`."""
        pushed = list(messages)
        ids = []
        for i, message in enumerate(pushed):
            compat.set_message_id(message, f"push-{len(self._replies)}-{i}")
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
            RunFailed: fewer clients than `screening.min_survivors` gave a usable answer, or one
                was defective under the policy `abort`.
        """
        ordered = sorted(letters_of(messages), key=lambda letter: letter.client)
        self.log = RoundLog()
        if not ordered:
            return []
        started = time.perf_counter()
        training = ordered[0].kind.startswith(MessageType.TRAIN)
        replies: list[Message] = []
        for group in by_payload(ordered, self._foreign_client):
            replies += self._run_group(group, training)
        self.log.seconds = time.perf_counter() - started
        if training:
            self._learn_pace()
            self._check_survivors(len(ordered))
            self._keep_states()
        return sorted(replies, key=lambda m: m.metadata.src_node_id)

    def score(self, params: Params, rows: int | np.ndarray, round: int) -> Tally:
        """Return what is found of a model on the first `rows` rows of the test set.

        An array names rows of the training split instead.
        """
        size = rows if isinstance(rows, int) else len(rows)
        shards = [(start, min(start + SHARD, size)) for start in range(0, size, SHARD)]
        blocks = [
            Block(i, round, "score", shard=shard, cost=shard[1] - shard[0])
            for i, shard in enumerate(shards)
        ]
        if not isinstance(rows, int):
            for block in blocks:
                block.rows = rows[slice(*block.shard)]
        results = sorted(self.executor.run(blocks, {"model": params}), key=lambda r: r.index)
        total: Tally = results[0].tally
        for result in results[1:]:
            total = total + result.tally
        return total

    def _run_group(self, letters: list[Letter], training: bool) -> list[Message]:
        """Execute messages that share a payload."""
        first = letters[0].content
        arrays = next(iter(first.array_records.values()), TreeRecord({}))
        reduce = training and not self._foreign_client and self._reducible(arrays)
        payload = {"content": first} if self._foreign_client else self._payload(first)
        blocks = self._blocks(letters, payload, training, reduce)
        by_client = {letter.client: letter for letter in letters}
        replies: list[Message] = []
        survivors: list[Report] = []
        sums = trees.WeightedMean()
        for result in self._results(blocks, payload):
            self.log.reports += result.reports
            for report in result.reports:
                letter = by_client[report.client]
                if training:
                    self._seconds[report.client] = report.seconds
                if report.failure is not None:
                    self.log.failures.append(report)
                    text = f"{report.failure.text}\n{report.failure.traceback}".strip()
                    replies.append(compat.error_reply(letter.message(), text))
                elif reduce:
                    survivors.append(report)
                else:
                    content = self._content(report, training)
                    replies.append(compat.reply_to(letter.message(), content))
            if result.sums is not None:
                sums.merge(result.sums)
        if survivors:
            letter = by_client[survivors[0].client]
            replies.append(compat.reply_to(letter.message(), _mean_content(sums, survivors)))
        compared = training and not reduce and self._alike
        return self._consistent(replies, by_client) if compared else replies

    def _results(self, blocks: list[Block], payload: Tree) -> Iterator[BlockResult]:
        """Run blocks; yield the results in order, each as soon as those before it are there."""
        size, done, following = sum(len(b.clients) for b in blocks), 0, 0
        early: dict[int, BlockResult] = {}
        for result in self.executor.run(blocks, payload):
            done += len(result.reports)
            self.on_progress(done, size)
            early[result.index] = result
            while following in early:
                yield early.pop(following)
                following += 1

    def _reducible(self, arrays: Any) -> bool:
        if not self._block_means or not getattr(arrays, "weighted_mean", False):
            return False
        tree = arrays.__dict__.get("tree") or {}
        return self._client_sends <= set(tree)

    def _payload(self, content: RecordDict) -> Tree:
        """Return the tree that the clients of a message get."""
        record = next(iter(content.array_records.values()), None)
        if record is None:
            tree: Tree = {}
        elif (shared := record.__dict__.get("shared")) is not None and record.__dict__["tree"]:
            tree = dict(shared)
        else:
            tree = dict(tree_of(record, self._model))
        config: dict[str, Any] = {}
        for values in content.config_records.values():
            config |= dict(values)
        return {**tree, "config": config}

    def _blocks(
        self, letters: list[Letter], payload: Tree, training: bool, reduce: bool
    ) -> list[Block]:
        parts, work = [], []
        if self._foreign_client:
            shared_bytes = records.count_bytes(payload["content"])
        else:
            shared_bytes = trees.num_bytes(payload)
        content, own, own_bytes = None, None, 0
        manifest = self._trained if training else self._manifest
        samples = manifest.clients([letter.client for letter in letters])
        for letter, indices in zip(letters, samples, strict=True):
            client = letter.client
            if letter.content is not content:  # the cohort usually shares one
                content = letter.content
                record = next(iter(content.array_records.values()), None)
                own = None if record is None else record.__dict__.get("own")
                own_bytes = 0 if own is None else trees.num_bytes(own)
            state = self._states.get_bytes(client)
            parts.append(Assignment(client, indices, state, own, letter.kind))
            work.append(len(indices.train) if training else len(indices.test))
            self.log.bytes_down[client] = shared_bytes + own_bytes
        if training and self._group_size > 1:
            # Clients of a group do as many steps as the largest of them: alike go together.
            ranked = sorted(range(len(parts)), key=lambda i: -work[i])
            parts, work = [parts[i] for i in ranked], [work[i] for i in ranked]
        weight = self._model.flat.numel()
        length = block_length(len(parts), sum(work) * weight, self._group_size)
        kind: Any = "train" if training else "evaluate"
        round = round_of(letters[0])
        blocks: list[Block] = []
        for start in range(0, len(parts), length):
            some = parts[start : start + length]
            costs = [
                self._seconds.get(p.client, w * self._pace)
                for p, w in zip(some, work[start : start + length], strict=True)
            ]
            cost = float(sum(costs)) if training else float(sum(work[start : start + length]))
            blocks.append(Block(len(blocks), round, kind, some, reduce=reduce, cost=cost))
        return blocks

    def _content(self, report: Report, training: bool) -> RecordDict:
        if report.content is not None:
            return report.content
        # Flower's strategies drop metrics of zero weight, a client without test samples has none.
        numbers = MetricRecord({**report.metrics, "num-examples": report.weight})
        content = RecordDict({"metrics": numbers})
        if training:
            content["arrays"] = TreeRecord(report.update or {})
        return content

    def _consistent(self, replies: list[Message], sent: dict[int, Letter]) -> list[Message]:
        """Screen replies of foreign apps, and drop those that differ in kind from the most."""
        reports = {r.client: r for r in self.log.reports}
        kept: list[tuple[Message, tuple[Any, ...]]] = []
        out = [m for m in replies if m.has_error()]
        for reply in replies:
            if reply.has_error():
                continue
            client = reply.metadata.src_node_id
            reason = self._foreign_defect(reply) if self._foreign_client else None
            if reason is not None:
                out.append(self._reject(reports[client], sent[client], reason))
                continue
            kept.append((reply, _shape(reply.content)))
        kinds = [kind for _, kind in kept]
        common = max(kinds, key=kinds.count) if kinds else ()
        for reply, kind in kept:
            client = reply.metadata.src_node_id
            if kind == common:
                out.append(reply)
                for name, value in _integers(reply.content).items():
                    known = self.log.integers.get(name)
                    self.log.integers[name] = (
                        value if known is None else torch.maximum(known, value)
                    )
            else:
                reason = "its update has other keys or shapes than those of most clients"
                out.append(self._reject(reports[client], sent[client], reason))
        return sorted(out, key=lambda m: m.metadata.src_node_id)

    def _foreign_defect(self, reply: Message) -> str | None:
        for record in reply.content.array_records.values():
            for name, array in record.items():
                values = torch.from_numpy(array.numpy())
                if values.is_floating_point() and not bool(torch.isfinite(values).all()):
                    return f"not finite: {name!r} has NaN or infinite elements"
            try:
                tree_of(record, self._model)
            except RecordMismatch as error:
                return str(error)
        return None

    def _reject(self, report: Report, letter: Letter, reason: str) -> Message:
        report.failure = Failure("screened", f"client {report.client}: {reason}")
        self.log.failures.append(report)
        return compat.error_reply(letter.message(), report.failure.text)

    def _check_survivors(self, cohort: int) -> None:
        failures = self.log.failures
        if self._abort and failures:
            first = failures[0].failure
            raise RunFailed(f"{first.text if first else ''} (screening.policy is abort)")
        alive = cohort - len(failures)
        least = self._min_survivors
        needed = least if isinstance(least, int) else max(1, int(-(-least * cohort // 1)))
        if alive < min(needed, cohort):
            reasons = "; ".join(r.failure.text for r in failures[:3] if r.failure)
            more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
            raise RunFailed(
                f"only {alive} of {cohort} clients gave a usable update, screening.min_survivors "
                f"needs {needed}: {reasons}{more}"
            )

    def _learn_pace(self) -> None:
        """Take from this round how long clients will take that have not been seen before."""
        good = [r for r in self.log.reports if r.failure is None]
        samples = sum(int(self._manifest.num_train[r.client]) for r in good)
        if samples:
            self._pace = sum(r.seconds for r in good) / samples

    def _keep_states(self) -> None:
        for report in self.log.reports:
            if report.state is not None and report.failure is None:
                self._states.put_bytes(report.client, report.state)


def _mean_content(sums: trees.WeightedMean, survivors: list[Report]) -> RecordDict:
    """Return the reply that stands for all survivors: their mean, metrics and weight."""
    total = sum(r.weight for r in survivors)
    names = set.intersection(*(set(r.metrics) for r in survivors))
    numbers: dict[str, Any] = {
        name: sum([r.weight * r.metrics[name] for r in survivors]) / total for name in sorted(names)
    }
    numbers["num-examples"] = sums.weight
    return RecordDict({"arrays": TreeRecord(sums.mean()), "metrics": MetricRecord(numbers)})


def _shape(content: RecordDict) -> tuple[Any, ...]:
    return tuple(
        (name, tuple((key, tuple(array.shape)) for key, array in sorted(record.items())))
        for name, record in sorted(content.array_records.items())
    )


def _integers(content: RecordDict) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(array.numpy())
        for record in content.array_records.values()
        for name, array in record.items()
        if not array.dtype.startswith(("float", "bfloat", "complex"))
    }
