"""Running client methods: the clients of a block train, alone or in groups, or are evaluated."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from fedsim import rng
from fedsim.client import Audited, AuditedUpdate, Task, Update
from fedsim.components.build import group_size
from fedsim.data.views import ClientData
from fedsim.engine.isolation import ClientTimeout, guarded, time_limit
from fedsim.engine.jobs import Block, BlockResult, ClientJob, Report, numbers
from fedsim.engine.resources import Resources
from fedsim.engine.screening import UpdateScreen
from fedsim.evaluate.metric_names import Metric, on_validation
from fedsim.params import trees
from fedsim.params.trees import Tree
from fedsim.runs.codec import from_bytes, to_bytes


class MethodRunner:
    """Runs the blocks of a worker whose clients are methods of ours."""

    def __init__(self, resources: Resources) -> None:
        self._worker = resources
        self._client = resources.client
        self._experiment = resources.experiment
        self._screen = UpdateScreen(self._experiment.screening, self._client.sends)

    def run(self, block: Block, payload: Tree) -> BlockResult:
        """Train or evaluate the clients of a block."""
        if block.kind == "train":
            return self._train(block, payload)
        reports = [
            self._guarded(block, job, partial(self._evaluate, block, job, payload))
            for job in block.clients
        ]
        return BlockResult(block.index, reports)

    def _guarded(self, block: Block, job: ClientJob, work: Any) -> Report:
        return guarded(job.client, block.round, self._experiment.engine.timeout, work)

    def _train(self, block: Block, payload: Tree) -> BlockResult:
        result = BlockResult(block.index, [])
        if block.reduce:
            result.sums = trees.WeightedMean()
        size = group_size(self._experiment, self._client, self._worker.model.module)
        for first in range(0, len(block.clients), size):
            group = block.clients[first : first + size]
            together = len(group) > 1 and all(job.own is None for job in group)
            if together and self._train_group(block, group, payload, result):
                continue
            reports = [
                self._guarded(block, job, partial(self._train_one, block, job, payload))
                for job in group
            ]
            for report, job in zip(reports, group, strict=True):
                self._screen.screen(report, _sent(job, payload))
                if block.reduce and report.failure is None:
                    result.sums.add(report.update, report.weight)
                if block.reduce or report.failure is not None:
                    report.update = None
                result.reports.append(report)
        return result

    def _task(self, block: Block, job: ClientJob, payload: Tree) -> Task:
        ctx = self._worker.context(block, job.client)
        state = None
        if self._client.stateful:
            # The bytes come from the platform's own store, which has checked them.
            if job.state is None:
                state = self._client.init_state(ctx)
            else:
                state = from_bytes(job.state, verify=False)
        generator = rng.torch_generator(ctx.seed, "client", block.round, job.client)
        return Task(_sent(job, payload), state, self._worker.data(job), generator, ctx)

    def _train_one(self, block: Block, job: ClientJob, payload: Tree) -> Report:
        self._worker.restore_model()
        task = self._task(block, job, payload)
        self._worker.seed_globals(block, job.client)
        state, update = self._client.train(task.payload, task.state, task.data, task.rng, task.ctx)
        report = self._report(job, state, update)
        if isinstance(update, AuditedUpdate):
            if not isinstance(self._client, Audited):
                raise TypeError(f"{type(self._client).__name__} makes claims but is no Audited")
            seen = replace(job, indices=job.indices._replace(labelled=True))
            audit = self._client.audit(update.claims, self._worker.data(seen).train, task.ctx)
            report.audit = numbers(audit)
        return report

    def _train_group(
        self, block: Block, group: list[ClientJob], payload: Tree, result: BlockResult
    ) -> bool:
        """Train a group together and add it to the result.

        Return False, with nothing added, if that failed or any update does not pass screening:
        each client is then trained alone, so that the one to blame is named.
        """
        started = time.perf_counter()
        limit = self._experiment.engine.timeout
        try:
            with time_limit(None if limit is None else limit * len(group)):
                self._worker.restore_model()
                self._worker.seed_globals(block, group[0].client)
                tasks = [self._task(block, job, payload) for job in group]
                update = self._client.train_group(tasks)
                states = [
                    self._encoded(job, state)
                    for job, state in zip(group, update.states, strict=True)
                ]
        except (Exception, ClientTimeout):
            return False
        if not self._screen.admits(update, payload):
            return False
        seconds = (time.perf_counter() - started) / len(group)
        size = sum(rows.like.num_bytes() for rows in update.tensors.values())
        if block.reduce:
            result.sums.add_rows(update.tensors, update.weights)
            trained: list[Tree | None] = [None] * len(group)
        else:
            trained = [one.tensors for one in update.split()]
        rows = zip(group, update.weights, update.metrics, trained, states, strict=True)
        result.reports += [
            Report(job.client, weight, metrics, seconds, size, update=tensors, state=state)
            for job, weight, metrics, tensors, state in rows
        ]
        return True

    def _encoded(self, job: ClientJob, state: Any) -> bytes | None:
        if not self._client.stateful:
            return None
        return to_bytes(state, f"state of client {job.client}")

    def _report(self, job: ClientJob, state: Any, update: Update) -> Report:
        if not isinstance(update, Update):
            raise TypeError(f"train must return (state, Update), got {type(update).__name__}")
        return Report(
            job.client,
            weight=update.weight,
            metrics=numbers(update.metrics),
            bytes_up=trees.num_bytes(update.tensors),
            update=update.tensors,
            state=self._encoded(job, state),
        )

    def _evaluate(self, block: Block, job: ClientJob, payload: Tree) -> Report:
        self._worker.restore_model()
        task = self._task(block, job, payload)
        self._worker.seed_globals(block, job.client)
        metrics = self._scores(task, task.data)
        settings, held_out = self._experiment.evaluation, job.indices.validation
        if settings.on == "both" and len(held_out):
            self._worker.restore_model()
            scores = self._scores(task, self._tested_on(job, held_out, on_test_split=False))
            metrics |= on_validation(scores)
        if settings.across_domains:
            for domain, rows in self._domain_rows.items():
                self._worker.restore_model()
                scores = self._scores(task, self._tested_on(job, rows, on_test_split=True))
                across = {replace(Metric.of(k), tested_on=domain): v for k, v in scores.items()}
                metrics |= {str(metric): value for metric, value in across.items()}
        return Report(job.client, weight=float(len(task.data.test)), metrics=metrics)

    def _scores(self, task: Task, data: ClientData) -> dict[str, float]:
        return numbers(self._client.evaluate(task.payload, task.state, data, task.ctx))

    def _tested_on(self, job: ClientJob, rows: np.ndarray, on_test_split: bool) -> ClientData:
        """Return the client's data with other samples to be tested on."""
        indices = job.indices._replace(test=rows, on_test_split=on_test_split)
        return self._worker.data(replace(job, indices=indices))

    @cached_property
    def _domain_rows(self) -> dict[str, np.ndarray]:
        """Rows of the test split of each domain."""
        dataset = self._worker.dataset
        column = dataset.test.extra["domain"]
        return {name: np.flatnonzero(column == d) for d, name in enumerate(dataset.card.domains)}


def _sent(job: ClientJob, payload: Tree) -> Tree:
    """Return all that a client is sent."""
    return payload if job.own is None else {**payload, **job.own}
