"""A worker: trains and evaluates the clients of a block, one process or the driver itself.

A worker keeps nothing between blocks but what is the same for every client: the data set, a
resident model and the client method. Client states come with the block and go back with it.
"""

from __future__ import annotations

import gc
import math
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from types import FrameType
from typing import Any

import numpy as np
import torch

from fedsim import rng
from fedsim.client import ClientContext, Task, Update
from fedsim.components.build import (
    build_augment,
    build_client,
    build_dataset,
    build_model,
    group_size,
)
from fedsim.data.views import ClientData, View
from fedsim.engine.client_app import run_client_app
from fedsim.engine.frozen_features import make_stem
from fedsim.engine.jobs import Assignment, Block, BlockResult, Failure, Report, WorkerSpec
from fedsim.engine.screening import first_non_finite
from fedsim.evaluate.metric_names import VALIDATION
from fedsim.evaluate.scoring import scorer_of
from fedsim.flower.contracts import is_client_app
from fedsim.params import FlatModel, trees
from fedsim.params.trees import Tree
from fedsim.rng import seed_generators
from fedsim.runs.codec import from_bytes, to_bytes


class ClientTimeout(BaseException):
    """Raised inside a client that takes too long; not an Exception, so that none swallows it."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `ClientTimeout` in the body after `seconds`; possible in a main thread only."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(signum: int, frame: FrameType | None) -> None:
        raise ClientTimeout

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


class Worker:
    """Executes blocks for one experiment on one device."""

    def __init__(self, spec: WorkerSpec, device: str = "cpu") -> None:
        for path in spec.search_path:
            if path not in sys.path:
                sys.path.append(path)
        self.experiment = spec.experiment
        self._public_rows = spec.public
        self.device = torch.device(device)
        self.dataset = build_dataset(spec.experiment)
        self.client: Any = build_client(spec.experiment)
        self.foreign = is_client_app(self.client)
        self.augment = build_augment(spec.experiment)
        module = build_model(spec.experiment, self.dataset.card)
        self.model = FlatModel(module, self.device)
        self.initial = self.model.params()
        card = self.dataset.card
        self.features = make_stem(self.model, self.dataset.train, card)
        self.test_features = make_stem(self.model, self.dataset.test, card)
        self._normed: tuple[Tree, float] = ({}, 0.0)
        self._restore_module = capture_module_state(self.model)

    def run(self, block: Block, payload: Tree) -> BlockResult:
        """Execute a block; failures of single clients are part of the answer."""
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            if block.kind == "score":
                result = self._score(block, payload)
            elif self.foreign:
                result = BlockResult(block.index, [])
                for part in block.clients:
                    run = partial(self._run_app, block, part, payload)
                    result.reports.append(self._guarded(block, part, run))
            elif block.kind == "evaluate":
                reports = [
                    self._guarded(block, part, partial(self._evaluate, block, part, payload))
                    for part in block.clients
                ]
                result = BlockResult(block.index, reports)
            else:
                result = self._train(block, payload)
        result.seconds = time.perf_counter() - started
        return result

    def data(self, part: Assignment) -> ClientData:
        """Return the client's own views of the data set.

        Where models are evaluated on validation samples, these stand for the test samples, so that
        nothing can read those.
        """
        indices = part.indices
        if self.experiment.evaluation.on == "validation":
            indices = indices._replace(test=indices.validation, on_test_split=False)
        return ClientData(
            self.dataset.train,
            indices,
            self.dataset.card,
            self.device,
            test_split=self.dataset.test,
            augment=self.augment,
            features=self.features,
            test_features=self.test_features,
        )

    def context(self, block: Block, client: int) -> ClientContext:
        """Return what a client method may know of its surroundings."""
        return ClientContext(
            client_id=client,
            round=block.round,
            seed=self.experiment.seed,
            num_clients=self.experiment.partition.clients,
            num_classes=self.dataset.num_classes,
            model=self.model,
            initial=self.initial,
            device=self.device,
            public=self._public,
        )

    @cached_property
    def _public(self) -> View | None:
        """The samples that all know, in the order of the partition."""
        if len(self._public_rows) == 0:
            return None
        return View(self.dataset.train, self._public_rows, self.dataset.card, self.device)

    def seed_globals(self, block: Block, client: int) -> None:
        """Seed torch's global generators for this client and round."""
        address = rng.derive(self.experiment.seed, f"global/{block.kind}", block.round, client)
        seed_generators(self.device, address)

    def _score(self, block: Block, payload: Tree) -> BlockResult:
        self._restore_module()
        self.model.load(payload["model"])
        split, rows, features = self.dataset.test, np.arange(*block.shard), self.test_features
        if block.rows is not None:
            split, rows, features = self.dataset.train, block.rows, self.features
        view = View(split, rows, self.dataset.card, self.device, features=features)
        batch_size = self.experiment.evaluation.batch_size
        found = scorer_of(self.model.module).tally(
            self.model.module,
            view,
            self.dataset.num_classes,
            batch_size,
            features=self.experiment.evaluation.features,
        )
        return BlockResult(block.index, [], tally=found)

    def _train(self, block: Block, payload: Tree) -> BlockResult:
        result = BlockResult(block.index, [])
        if block.reduce:
            result.sums = trees.WeightedMean()
        size = 1
        if block.clients:
            size = group_size(self.experiment, self.client, self.model.module)
        for first in range(0, len(block.clients), size):
            group = block.clients[first : first + size]
            together = len(group) > 1 and all(part.own is None for part in group)
            if together and self._train_group(block, group, payload, result):
                continue
            reports = [
                self._guarded(block, part, partial(self._train_one, block, part, payload))
                for part in group
            ]
            for report, part in zip(reports, group, strict=True):
                self._screen(report, part, payload)
                if block.reduce and report.failure is None:
                    result.sums.add(report.update, report.weight)
                if block.reduce or report.failure is not None:
                    report.update = None
                result.reports.append(report)
        return result

    def _run_app(self, block: Block, part: Assignment, payload: Tree) -> Report:
        self.seed_globals(block, part.client)
        data = self.data(part)
        return run_client_app(self.client, self.experiment, block, part, payload, data)

    def _task(self, block: Block, part: Assignment, payload: Tree) -> Task:
        ctx = self.context(block, part.client)
        state = None
        if self.client.stateful:
            # The bytes come from the platform's own store, which has checked them.
            if part.state is None:
                state = self.client.init_state(ctx)
            else:
                state = from_bytes(part.state, verify=False)
        own = payload if part.own is None else {**payload, **part.own}
        generator = rng.torch_generator(ctx.seed, "client", block.round, part.client)
        return Task(own, state, self.data(part), generator, ctx)

    def _train_one(self, block: Block, part: Assignment, payload: Tree) -> Report:
        self._restore_module()
        task = self._task(block, part, payload)
        self.seed_globals(block, part.client)
        state, update = self.client.train(task.payload, task.state, task.data, task.rng, task.ctx)
        report = self._report(part, state, update)
        if update.claims is not None:
            seen = replace(part, indices=part.indices._replace(labelled=True))
            audit = self.client.audit(update.claims, self.data(seen).train, task.ctx)
            report.audit = _numbers(audit)
        return report

    def _train_group(
        self, block: Block, group: list[Assignment], payload: Tree, result: BlockResult
    ) -> bool:
        """Train a group together and add it to the result.

        Return False, with nothing added, if that failed or any update does not pass screening:
        each client is then trained alone, so that the one to blame is named.
        """
        started = time.perf_counter()
        limit = self.experiment.engine.timeout
        try:
            with time_limit(None if limit is None else limit * len(group)):
                self._restore_module()
                self.seed_globals(block, group[0].client)
                tasks = [self._task(block, part, payload) for part in group]
                update = self.client.train_group(tasks)
                states = [
                    self._encoded(part, state)
                    for part, state in zip(group, update.states, strict=True)
                ]
        except (Exception, ClientTimeout):
            return False
        norms = update.norms() + self._norm_of(payload)
        if self.client.sends - set(update.tensors):
            return False
        if not bool((norms <= self.experiment.screening.max_norm).all()):
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
            Report(part.client, weight, metrics, seconds, size, update=tensors, state=state)
            for part, weight, metrics, tensors, state in rows
        ]
        return True

    def _encoded(self, part: Assignment, state: Any) -> bytes | None:
        if not self.client.stateful:
            return None
        return to_bytes(state, f"state of client {part.client}")

    def _report(self, part: Assignment, state: Any, update: Update) -> Report:
        if not isinstance(update, Update):
            raise TypeError(f"train must return (state, Update), got {type(update).__name__}")
        return Report(
            part.client,
            weight=update.weight,
            metrics=_numbers(update.metrics),
            bytes_up=trees.num_bytes(update.tensors),
            update=update.tensors,
            state=self._encoded(part, state),
        )

    def _evaluate(self, block: Block, part: Assignment, payload: Tree) -> Report:
        self._restore_module()
        task = self._task(block, part, payload)
        self.seed_globals(block, part.client)
        metrics = _numbers(self.client.evaluate(task.payload, task.state, task.data, task.ctx))
        held = part.indices.validation
        if self.experiment.evaluation.on == "both" and len(held):
            indices = part.indices._replace(test=held, on_test_split=False)
            self._restore_module()
            there = self.data(replace(part, indices=indices))
            found = self.client.evaluate(task.payload, task.state, there, task.ctx)
            metrics |= {f"{VALIDATION}{name}": v for name, v in _numbers(found).items()}
        if self.experiment.evaluation.across_domains:
            for domain, rows in zip(self.dataset.card.domains, self._domain_rows, strict=True):
                indices = part.indices._replace(test=rows, on_test_split=True)
                self._restore_module()
                there = self.data(replace(part, indices=indices))
                found = self.client.evaluate(task.payload, task.state, there, task.ctx)
                metrics |= {f"{name}_on/{domain}": v for name, v in _numbers(found).items()}
        return Report(part.client, weight=float(len(task.data.test)), metrics=metrics)

    @cached_property
    def _domain_rows(self) -> list[np.ndarray]:
        """Rows of the test split of each domain."""
        column = self.dataset.test.extra["domain"]
        return [np.flatnonzero(column == d) for d in range(len(self.dataset.card.domains))]

    def _guarded(self, block: Block, part: Assignment, work: Callable[[], Report]) -> Report:
        """Run one client's work; turn whatever goes wrong into a named failure."""
        started = time.perf_counter()
        limit = self.experiment.engine.timeout
        where = f"client {part.client}, round {block.round}"
        try:
            with time_limit(limit):
                report = work()
        except ClientTimeout:
            text = f"{where}: took longer than engine.timeout = {limit} s"
            report = Report(part.client, failure=Failure("timeout", text))
        except (MemoryError, torch.OutOfMemoryError) as error:
            gc.collect()
            text = f"{where}: out of memory: {error}"
            report = Report(part.client, failure=Failure("out-of-memory", text))
        except (Exception, SystemExit) as error:
            text = f"{where}: {type(error).__name__}: {error}"
            report = Report(part.client, failure=Failure("raised", text, traceback.format_exc()))
        report.seconds = time.perf_counter() - started
        return report

    def _screen(self, report: Report, part: Assignment, payload: Tree) -> None:
        """Drop or clip an update that would spoil the aggregate (in place)."""
        if report.failure is not None:
            return
        sent = payload if part.own is None else {**payload, **part.own}
        reason = self._defect(report, sent)
        if reason is not None:
            report.failure = Failure("screened", f"client {report.client}: {reason}")

    def _defect(self, report: Report, sent: Tree) -> str | None:
        update = report.update
        if not isinstance(update, dict):
            return f"Update.tensors is a {type(update).__name__}, expected a dict"
        if missing := sorted(self.client.sends - set(update)):
            return f"missing keys {missing}"
        weight = report.weight
        if not isinstance(weight, int | float) or not (weight > 0 and math.isfinite(weight)):
            return f"weight must be positive and finite, got {weight!r}"
        shared = {key: sent[key] for key in update if key in sent}
        reason = trees.difference({key: update[key] for key in shared}, shared)
        if reason is not None:
            return reason
        size = trees.norm(update)
        if not math.isfinite(size):
            return f"not finite: {first_non_finite(update)}"
        limit = self.experiment.screening.max_norm
        # |update - sent| <= |update| + |sent|: most updates pass without the difference.
        if size + self._norm_of(sent) <= limit:
            return None
        distance = trees.norm(trees.subtract({key: update[key] for key in shared}, shared))
        if distance <= limit:
            return None
        text = f"norm {distance:.4g} of the change exceeds screening.max_norm = {limit:g}"
        if self.experiment.screening.policy != "clip":
            return text
        clipped = trees.move_towards(shared, {key: update[key] for key in shared}, limit / distance)
        report.update = {**update, **clipped}
        report.note = f"client {report.client}: clipped: {text}"
        return None

    def _norm_of(self, sent: Tree) -> float:
        """Norm of a payload, remembered while the next client gets the same."""
        if sent is not self._normed[0]:
            self._normed = (sent, trees.norm(sent))
        return self._normed[1]


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return a client's metrics as plain floats.

    Raises:
        TypeError: one of them is no number.
    """
    for name, value in metrics.items():
        if not isinstance(value, int | float | np.number | torch.Tensor):
            raise TypeError(f"metric {name!r} must be a number, got {value!r}")
    return {name: float(value) for name, value in metrics.items()}


def capture_module_state(model: FlatModel) -> Callable[[], None]:
    """Return a function that undoes what clients do to a resident model besides its values.

    Restored are the training mode, which parameters require a gradient, stored gradients, and
    parameters that were re-pointed away from the flat vector.
    """
    module = model.module
    flags = [(p, p.requires_grad) for p in model.parameters]
    views = model.layout.views(model.flat)
    tensors = [(t, views[n]) for n, t in module.state_dict(keep_vars=True).items() if n in views]

    def restore() -> None:
        module.train()
        for parameter, flag in flags:
            parameter.grad = None
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
        for tensor, view in tensors:
            if tensor.data_ptr() != view.data_ptr():
                tensor.data = view

    return restore
