"""Scheduling of a round: a plan becomes blocks for the executor, the results a log.

Clients with the same payload are put together in blocks by a rule that looks at the experiment
alone, never at the number of workers. Where only the weighted mean of the updates is asked for,
workers return a sum a block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedsim.data.partition import Manifest
from fedsim.engine.jobs import Block, BlockResult, ClientJob, Executor, Kind, RoundLog
from fedsim.engine.screening import RoundScreen
from fedsim.evaluate.scorer import Tally
from fedsim.params import Params, trees
from fedsim.params.trees import Tree
from fedsim.runs.client_states import StateStore

MAX_BLOCKS = 32
"""Blocks a cohort is cut into at most: enough that the last ones even out over many workers."""

MIN_BLOCK_WORK = 2.5e6
"""Training samples x parameters below which a block is not worth its round trip."""

SHARD = 1024
"""Rows of the global test set that are scored together."""


@dataclass
class Dispatch:
    """A payload and the clients that get it.

    `own` holds what single clients get on top of `shared`, `message_types` what Flower calls the
    message, for ClientApps; `num_bytes` is the size of `shared` on the wire.
    """

    clients: Sequence[int]
    shared: Tree
    num_bytes: int
    own: Mapping[int, Tree] = field(default_factory=dict)
    message_types: Mapping[int, str] = field(default_factory=dict)


@dataclass
class Plan:
    """What a round asks of its clients; with `mean` only the weighted mean of their updates."""

    round: int
    training: bool
    dispatches: list[Dispatch]
    mean: bool = False


class Scheduler:
    """Executes plans on the clients of a partition and keeps the states of the clients.

    `num_parameters` is the size of the model, `group_size` how many clients the client method
    trains at once. `progress(done, total)` is called as clients finish.
    """

    def __init__(
        self,
        executor: Executor,
        manifest: Manifest,
        states: StateStore,
        screen: RoundScreen,
        num_parameters: int,
        *,
        group_size: int = 1,
        pooled: bool = False,
    ) -> None:
        """Prepare for plans; with `pooled` client 0 trains on the training samples of all."""
        self.executor = executor
        self.log = RoundLog()
        self.progress: Callable[[int, int], None] = lambda done, total: None
        self._manifest = manifest
        self._trained = manifest.pooled() if pooled else manifest
        self._states = states
        self._screen = screen
        self._num_parameters = num_parameters
        self._group_size = group_size
        self._seconds: dict[int, float] = {}  # of each client's latest training
        self._pace = 1e-3  # seconds a training sample takes, over the latest round

    def run(self, plan: Plan) -> RoundLog:
        """Execute a plan and return its log, which is `log` from the start.

        Raises:
            RunFailed: fewer clients than `screening.min_survivors` gave a usable answer, or one
                was defective under the policy `abort`.
        """
        self.log = log = RoundLog()
        cohort = sum(len(dispatch.clients) for dispatch in plan.dispatches)
        if not cohort:
            return log
        started = time.perf_counter()
        for dispatch in plan.dispatches:
            self._dispatch(dispatch, plan, log)
        log.seconds = time.perf_counter() - started
        if plan.training:
            self._learn_pace(log)
            self._screen.check_survivors(cohort, log.failures)
            for report in log.reports:
                if report.state is not None and report.failure is None:
                    self._states.put_bytes(report.client, report.state)
        return log

    def score(self, params: Params, rows: int | np.ndarray, round: int) -> Tally:
        """Return the tally of a model on the first `rows` rows of the test split.

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

    def _dispatch(self, dispatch: Dispatch, plan: Plan, log: RoundLog) -> None:
        """Have the clients of one payload work, and add what they report to the log."""
        blocks = self._blocks(dispatch, plan, log)
        first = len(log.reports)
        for result in self._in_order(blocks, dispatch.shared):
            log.reports += result.reports
            for report in result.reports:
                if plan.training:
                    self._seconds[report.client] = report.seconds
                if report.failure is not None:
                    log.failures.append(report)
            if result.sums is not None:
                if log.sums is None:
                    log.sums = trees.WeightedMean()
                log.sums.merge(result.sums)
        if plan.training and not plan.mean:
            self._screen.compare(log.reports[first:], log)

    def _in_order(self, blocks: list[Block], payload: Tree) -> Iterator[BlockResult]:
        """Run blocks; yield the results in order, each as soon as those before it are there."""
        size, done, following = sum(len(b.clients) for b in blocks), 0, 0
        early: dict[int, BlockResult] = {}
        for result in self.executor.run(blocks, payload):
            done += len(result.reports)
            self.progress(done, size)
            early[result.index] = result
            while following in early:
                yield early.pop(following)
                following += 1

    def _blocks(self, dispatch: Dispatch, plan: Plan, log: RoundLog) -> list[Block]:
        training = plan.training
        manifest = self._trained if training else self._manifest
        samples = manifest.clients(list(dispatch.clients))
        jobs, work = [], []
        for client, indices in zip(dispatch.clients, samples, strict=True):
            own = dispatch.own.get(client)
            state = self._states.get_bytes(client)
            message_type = dispatch.message_types.get(client, "")
            jobs.append(ClientJob(client, indices, state, own, message_type))
            work.append(len(indices.train) if training else len(indices.test))
            extra = 0 if own is None else trees.num_bytes(own)
            log.bytes_down[client] = dispatch.num_bytes + extra
        if training and self._group_size > 1:
            # Clients of a group do as many steps as the largest of them: alike go together.
            ranked = sorted(range(len(jobs)), key=lambda i: -work[i])
            jobs, work = [jobs[i] for i in ranked], [work[i] for i in ranked]
        length = block_length(len(jobs), sum(work) * self._num_parameters, self._group_size)
        kind: Kind = "train" if training else "evaluate"
        blocks: list[Block] = []
        for start in range(0, len(jobs), length):
            members, sizes = jobs[start : start + length], work[start : start + length]
            cost = float(sum(sizes))
            if training:
                costs = zip(members, sizes, strict=True)
                cost = float(sum(self._seconds.get(j.client, n * self._pace) for j, n in costs))
            blocks.append(
                Block(len(blocks), plan.round, kind, members, reduce=plan.mean, cost=cost)
            )
        return blocks

    def _learn_pace(self, log: RoundLog) -> None:
        """Take from this round how long clients will take that have not been seen before."""
        good = [report for report in log.reports if report.failure is None]
        samples = sum(int(self._manifest.num_train[report.client]) for report in good)
        if samples:
            self._pace = sum(report.seconds for report in good) / samples


def block_length(cohort: int, work: float, group_size: int = 1) -> int:
    """Return how many clients a block has; follows from the experiment, never from the workers.

    `work` is training samples x parameters of the whole cohort. Where clients are trained
    `group_size` at a time a block is a whole number of groups.
    """
    count = max(1, min(MAX_BLOCKS, cohort, int(work / MIN_BLOCK_WORK)))
    length = -(-cohort // count)
    return -(-length // group_size) * group_size
