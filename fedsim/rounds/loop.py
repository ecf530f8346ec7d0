"""The round loop: the only place that orders sampling, engine, aggregation, evaluation,
recording and checkpoints.

A round: configure -> clients train -> screen -> aggregate -> evaluate -> record -> checkpoint.
Any Flower strategy is driven through Flower's own abstract methods; ours are no exception.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from fedsim.components.build import group_size
from fedsim.config.reading import digest
from fedsim.engine.grid import SimulationGrid
from fedsim.engine.jobs import Executor, RoundLog
from fedsim.errors import RunFailed
from fedsim.evaluate.metric_names import VALIDATION, named_scores, shifted
from fedsim.evaluate.scorer import Tally
from fedsim.evaluate.scoring import scorer_of
from fedsim.flower.contracts import is_client_app
from fedsim.flower.messages import Letters
from fedsim.flower.records import TreeRecord, tree_of
from fedsim.params import FlatModel, Params
from fedsim.params.trees import Tree
from fedsim.rng import seeded_globals
from fedsim.rounds.progress import Progress
from fedsim.rounds.rows import client_means, columns, placed, round_costs, train_rows
from fedsim.rounds.scoring import (
    class_sizes,
    evaluation_clients,
    scored_rows,
    shifted_domains,
    shots,
    validation_rows,
)
from fedsim.rounds.server import capture, own_strategies, restore
from fedsim.rounds.setup import Parts, server_context
from fedsim.runs import checkpoint
from fedsim.runs.client_states import StateStore
from fedsim.runs.folder import RunFolder
from fedsim.runs.recorder import Recorder
from fedsim.runs.results import Run
from fedsim.strategy import Strategy

Event = tuple[int | None, str, str]


@dataclass
class _Pending:
    """A round that is done but not yet written down."""

    round: int
    metrics: dict[str, float]
    log: RoundLog
    scores: dict[str, float]
    evaluated: RoundLog | None
    events: list[Event]
    seconds: float
    trained_seconds: float  # of them, all but evaluation
    features: dict[str, float]


class RoundLoop:
    """Runs the rounds of one experiment in one run folder."""

    def __init__(
        self, parts: Parts, executor: Executor, folder: RunFolder, progress: Progress
    ) -> None:
        self.parts = parts
        self.experiment = parts.experiment
        self.folder = folder
        self.progress = progress
        self._digest = digest(folder.path / "config.yaml")
        self._executor = executor
        self._initial = parts.model.params()
        self._arrays: ArrayRecord = TreeRecord({"model": self._initial})
        self.params: Params | None = self._initial
        self._extra: Tree = {}  # what a foreign strategy's arrays hold besides the model
        self._states = StateStore(folder.path)
        self._recorder = Recorder(folder.path / "metrics.db")
        self._pending: _Pending | None = None
        self._round = 0
        self._saved_at = 0.0
        self._events: list[Event] = []
        self._class_sizes = class_sizes(parts)
        self._shots = shots(parts, self._class_sizes)
        self._shifted = shifted_domains(parts)
        self._scored_rows = scored_rows(parts)
        self._features: dict[str, float] = {}  # of the round under way
        self._scorer = scorer_of(parts.model.module)
        self._recorder.set("headline", self._scorer.headline)
        self._grid = self._make_grid()
        self._bind()
        executor.when_waiting = self.write_pending

    def _make_grid(self) -> SimulationGrid:
        parts, experiment = self.parts, self.experiment
        foreign = is_client_app(parts.client)
        return SimulationGrid(
            self._executor,
            parts.manifest,
            self._states,
            self._initial,
            foreign_client=foreign,
            client_sends=frozenset() if foreign else parts.client.sends,
            alike=foreign or parts.client.alike,
            block_means=isinstance(parts.strategy, Strategy),
            group_size=1 if foreign else group_size(experiment, parts.client, parts.model.module),
            min_survivors=experiment.screening.min_survivors,
            abort_on_defect=experiment.screening.policy == "abort",
            evaluation_clients=evaluation_clients(experiment),
            pooled=getattr(parts.strategy, "pooled", False),
        )

    def _bind(self) -> None:
        context = server_context(self.parts)
        for strategy in own_strategies(self.parts.strategy):
            strategy.bind(self._initial.clone(), context)

    def resume(self) -> int:
        """Continue from the newest intact checkpoint; return its round, 0 if there is none."""

        def usable(value: Any) -> None:
            if value["experiment"] != self._digest:
                raise RunFailed("it belongs to another experiment than config.yaml describes")
            if value.get("frozen", "") != self.parts.model.frozen_digest():
                raise RunFailed("the frozen part of the model has other weights than it had")
            self._states.restore(value["states"])

        found = checkpoint.load_latest(self.folder.path, usable)
        if found is None:
            self._recorder.truncate_after(0)
            return 0
        self._round, value, warnings = found
        for text in warnings:
            self._event(None, "checkpoint-damaged", text)
        restore(self.parts.strategy, value["strategy"])
        self.params = value["params"]
        self._extra = value["extra"]
        self._arrays = self._record()
        self._recorder.truncate_after(self._round)
        self._event(None, "resumed", f"resumed after round {self._round}")
        return self._round

    def run(self) -> None:
        """Run the remaining rounds; leave the final model in the run folder.

        Raises:
            RunFailed: too few survivors, workers that keep dying, a disk that is full.
        """
        self._saved_at = time.monotonic()
        gc.freeze()  # what is imported stays; no collection needs to walk it in every round
        try:
            self._rounds()
        finally:
            gc.unfreeze()

    def _rounds(self) -> None:
        for round in range(self._round + 1, self.experiment.rounds + 1):
            self.step(round)
        self.write_pending()
        self._finish()

    def step(self, round: int) -> None:
        """Run one round; its rows are written while the next one trains, or with a checkpoint."""
        started = time.perf_counter()
        metrics, log = self._train(round)
        trained = time.perf_counter() - started
        scores: dict[str, float] = {}
        evaluated: RoundLog | None = None
        if self._due(round):
            scores, evaluated = self._evaluate(round)
        self._drain_engine_events()
        seconds = time.perf_counter() - started
        self._pending = _Pending(
            round, metrics, log, scores, evaluated, self._events, seconds, trained, self._features
        )
        self._events, self._features = [], {}
        self._round = round
        self._checkpoint(round)

    def write_pending(self) -> None:
        """Write the rows of the last round and tell the user of it, if that is still to be done."""
        if self._pending is None:
            return
        done, self._pending = self._pending, None
        log = done.log
        rows = {("train", name): value for name, value in done.metrics.items()}
        split = self.experiment.evaluation.split
        rows |= {placed(split, name): value for name, value in done.scores.items()}
        rows |= {("features", name): value for name, value in done.features.items()}
        costs = round_costs(log, done.seconds, done.trained_seconds)
        rows |= {("train", name): value for name, value in costs.items()}
        client_rows = train_rows(log)
        if done.evaluated is not None:
            client_rows += columns(split, done.evaluated.reports)
        self._recorder.write_round(done.round, rows, client_rows, done.events)
        self.progress.round_end(done.round, {**done.metrics, **done.scores}, done.seconds)

    def _train(self, round: int) -> tuple[dict[str, float], RoundLog]:
        experiment, strategy, grid = self.experiment, self.parts.strategy, self._grid
        grid.on_progress = lambda done, total: self.progress.cohort(round, done, total)
        with seeded_globals(experiment.seed, "strategy/configure", round):
            made = strategy.configure_train(round, self._arrays, ConfigRecord(), grid)
            messages = _listed(made)
        alone = isinstance(strategy, Strategy) and strategy.server_only(round)
        if not messages and not alone:
            raise RunFailed(f"round {round}: the strategy addressed no client")
        try:
            replies = grid.send_and_receive(messages)
        except RunFailed as error:
            self._note(grid.log)
            self._drain_engine_events()
            self.write_pending()
            self._recorder.write_events(round, self._events)
            raise RunFailed(f"round {round}: {error}") from None
        log = grid.log
        self._note(log)
        with seeded_globals(experiment.seed, "strategy/aggregate", round):
            arrays, metrics = strategy.aggregate_train(round, replies)
        if arrays is None:
            raise RunFailed(
                f"round {round}: strategy {experiment.strategy.name!r} made no model of the "
                f"{len(log.reports) - len(log.failures)} updates it was given"
            )
        self._take(arrays, log)
        return _numbers(metrics) | client_means(log), log

    def _take(self, arrays: ArrayRecord, log: RoundLog) -> None:
        """Make `arrays` the global model; integer buffers are never averages."""
        if isinstance(self.parts.strategy, Strategy):
            made = tree_of(arrays).get("model")
            self._check_made(made)
            self.params = made
            self._arrays = arrays
            return
        tree = tree_of(arrays, self._initial)
        params: Params | None = tree.get("model")
        if params is not None or not is_client_app(self.parts.client):
            self._check_made(params)
        if params is not None and params.integers:
            kept = {n: log.integers.get(n, v) for n, v in params.integers.items()}
            params = params.replace(params.flat, kept)
        self.params = params
        self._extra = {name: value for name, value in tree.items() if name != "model"}
        self._arrays = self._record()

    def _check_made(self, params: Any) -> None:
        """Raise `RunFailed` unless these are parameters of the model, all or some, and finite."""
        where = f"round {self._round + 1}: strategy {self.experiment.strategy.name!r}"
        if not isinstance(params, Params):
            raise RunFailed(f"{where} made no model: it has none of the model's tensors by name")
        if params.layout != self._initial.layout:
            for name in params:
                known = self._initial[name].shape if name in self._initial else None
                if known != params[name].shape:
                    raise RunFailed(
                        f"{where} made a model with {name!r} of shape {tuple(params[name].shape)}, "
                        f"expected {'no such tensor' if known is None else tuple(known)}"
                    )
        if not bool(torch.isfinite(params.flat).all()):
            bad = next(n for n in params.layout.names if not bool(torch.isfinite(params[n]).all()))
            count = int((~torch.isfinite(params[bad])).sum())
            raise RunFailed(
                f"{where} made a model that is not finite: {count} of {params[bad].numel()} "
                f"elements of {bad!r} are NaN or infinite"
            )

    def _record(self) -> ArrayRecord:
        model = {} if self.params is None else {"model": self.params}
        return TreeRecord({**self._extra, **model})

    def _due(self, round: int) -> bool:
        return round % self.experiment.evaluation.every == 0 or round == self.experiment.rounds

    def _evaluate(self, round: int) -> tuple[dict[str, float], RoundLog | None]:
        """Return global scores, and the log of the clients evaluated on their own data."""
        scores: dict[str, float] = {}
        for kind, params in self._models().items():
            found = self._grid.score(params, self._scored_rows, round)
            values = found.metrics()
            values |= shifted(values, self._shifted) | found.by_shots(self._shots)
            if self.experiment.evaluation.on == "validation":
                values |= self._balanced(found)
            scores |= named_scores(kind, values)
            if self.experiment.evaluation.on == "both":
                other = self._grid.score(params, validation_rows(self.parts), round)
                values = other.metrics()
                values |= shifted(values, self._shifted) | self._balanced(other)
                scores |= named_scores(f"{VALIDATION}{kind}", values)
            self._note_features(kind, params, found)
        if not self.experiment.evaluation.personal or not self._grid.evaluation_clients:
            return scores, None
        strategy, grid = self.parts.strategy, self._grid
        grid.on_progress = lambda done, total: None
        with seeded_globals(self.experiment.seed, "strategy/configure-evaluate", round):
            messages = _listed(
                strategy.configure_evaluate(round, self._arrays, ConfigRecord(), grid)
            )
        replies = grid.send_and_receive(messages)
        log = grid.log
        self._note(log)
        with seeded_globals(self.experiment.seed, "strategy/aggregate-evaluate", round):
            metrics = strategy.aggregate_evaluate(round, [r for r in replies if not r.has_error()])
        scores |= {f"clients/{name}": value for name, value in _numbers(metrics).items()}
        return scores, log

    def _balanced(self, found: Tally) -> dict[str, float]:
        value = found.balanced()
        return {} if value is None else {f"{self._scorer.headline}_balanced": value}

    def _note_features(self, kind: str, params: Params, found: Tally) -> None:
        """Keep what is known of a model's features and its classifier; those of the first model."""
        if found.moments is None:
            return
        if not self._features:
            self._features = found.moments.metrics()
            for c, size in enumerate(self._class_sizes.tolist()):
                self._features[f"samples/{c}"] = float(size)
        norms = torch.linalg.vector_norm(params["head.weight"], dim=1).tolist()
        self._features |= {f"{kind}/head_norm/{c}": norm for c, norm in enumerate(norms)}

    def _models(self) -> Mapping[str, Params]:
        """Return the whole models to be scored on the global test set, by name."""
        models: Mapping[str, Params] = {}
        if isinstance(self.parts.strategy, Strategy):
            models = self.parts.strategy.scored(self.parts.strategy.state)
        elif self.params is not None:
            models = {"generic": self.params}
        return {k: p for k, p in models.items() if p.layout == self._initial.layout}

    def _checkpoint(self, round: int) -> None:
        settings, last = self.experiment.checkpoint, round == self.experiment.rounds
        late = time.monotonic() - self._saved_at >= settings.min_seconds
        if not last and (round % settings.every or not late):
            return
        self._states.commit(round)
        value = {
            "experiment": self._digest,
            "frozen": self.parts.model.frozen_digest(),
            "strategy": capture(self.parts.strategy),
            "params": self.params,
            "extra": self._extra,
            "states": self._states.index(),
        }
        self.write_pending()
        self._recorder.sync()
        checkpoint.save(self.folder.path, round, value)
        self._saved_at = time.monotonic()

    def _finish(self) -> None:
        if self.params is not None:
            tensors = {name: self.params[name] for name in self.params}
            self.folder.save_model(tensors, self.parts.model.frozen_digest())
        model = FlatModel(self.parts.model.module)  # pictures are made on the CPU
        for name, params in self._models().items():
            model.load(params)
            figure = self._scorer.picture(model.module, self.parts.dataset)
            if figure is not None:
                self.folder.save_picture(name, figure)

    def _note(self, log: RoundLog) -> None:
        for report in log.failures:
            if report.failure is not None:
                text = f"{report.failure.text}\n{report.failure.traceback}".strip()
                self._event(report.client, report.failure.kind, text)
        for report in log.reports:
            if report.note is not None:
                self._event(report.client, "clipped", report.note)

    def _drain_engine_events(self) -> None:
        while self._executor.events:
            event = self._executor.events.pop(0)
            self._event(None, event.kind, event.text)

    def _event(self, client: int | None, kind: str, text: str) -> None:
        self._events.append((client, kind, text))
        self.progress.event(self._round + 1, client, kind, text.split("\n")[0])

    def close(self) -> None:
        """Close the files; the folder is readable and resumable at any time."""
        self._executor.when_waiting = _nothing
        try:
            self.write_pending()
        finally:
            self._states.close()
            self._recorder.close()


def _nothing() -> None:
    """Do nothing while workers are at work."""


def _listed(messages: Iterable[Message]) -> Sequence[Message]:
    """Return messages as a list: a generator draws its random numbers now or not at all."""
    return messages if isinstance(messages, Letters) else list(messages)


def _numbers(record: MetricRecord | None) -> dict[str, float]:
    if record is None:
        return {}
    return {k: float(v) for k, v in record.items() if not isinstance(v, list)}


def execute(
    parts: Parts, executor: Executor, folder: RunFolder, progress: Progress, resumed: bool
) -> None:
    started = time.perf_counter()
    with _flower_log_to(folder.logger()):
        try:
            folder.set_status("running")
            loop = RoundLoop(parts, executor, folder, progress)
            try:
                done = loop.resume() if resumed else 0
                progress.start(parts.experiment, folder.path, done + 1)
                loop.run()
            finally:
                loop.close()
        except (KeyboardInterrupt, SystemExit):
            # Ray makes a SystemExit of SIGTERM, the command line a KeyboardInterrupt.
            folder.set_status("interrupted")
            raise
        except Exception as error:
            folder.set_status("failed", f"{type(error).__name__}: {error}")
            folder.logger().exception("the run failed")
            error.add_note(f"the traceback is in {folder.path / 'log.txt'}")
            raise
        folder.set_status("finished")
    progress.end(folder.path, Run(folder.path).summary(), time.perf_counter() - started)


@contextmanager
def _flower_log_to(logger: logging.Logger) -> Iterator[None]:
    """Send what Flower's strategies say to the run's log instead of the terminal."""
    flower = logging.getLogger("flwr")
    handlers, propagate = flower.handlers, flower.propagate
    flower.handlers, flower.propagate = list(logger.handlers), False
    try:
        yield
    finally:
        flower.handlers, flower.propagate = handlers, propagate
