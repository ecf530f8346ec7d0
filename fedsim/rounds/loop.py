"""The round loop: the only place that orders sampling, engine, aggregation, evaluation,
recording and checkpoints.

    for each round:
        plan    <- server.plan(round)          sample a cohort, configure its payload
        log     <- scheduler.run(plan)         clients train, their updates are screened
        metrics <- server.take(round, log)     aggregate
        score the models, evaluate clients on their own data;  record;  checkpoint
"""

from __future__ import annotations

import gc
import time
from typing import Any

from fedsim.config.reading import digest
from fedsim.engine.jobs import Executor, RoundLog
from fedsim.engine.schedule import Plan, Scheduler
from fedsim.errors import RunFailed
from fedsim.flower.contracts import is_client_app
from fedsim.params import Params
from fedsim.rounds.flower_server import FlowerServer
from fedsim.rounds.journal import Journal, RoundResult
from fedsim.rounds.progress import Progress
from fedsim.rounds.rows import client_means
from fedsim.rounds.scoring import Scoring, evaluation_clients
from fedsim.rounds.server import OwnServer, Server, has_hooks_only
from fedsim.rounds.setup import Parts, make_scheduler
from fedsim.runs import checkpoint
from fedsim.runs.client_states import StateStore
from fedsim.runs.folder import RunFolder


class RoundLoop:
    """Runs the rounds of one experiment in one run folder."""

    def __init__(
        self, parts: Parts, executor: Executor, folder: RunFolder, progress: Progress
    ) -> None:
        experiment, initial = parts.experiment, parts.model.params()
        self._parts = parts
        self._experiment = experiment
        self._folder = folder
        self._progress = progress
        self._digest = digest(folder.path / "config.yaml")
        self._states = StateStore(folder.path)
        self._evaluated = evaluation_clients(experiment)
        self._scheduler = make_scheduler(parts, initial, executor, self._states)
        self._server = make_server(parts, initial, self._evaluated, self._scheduler)
        self._scoring = Scoring(parts, self._scheduler)
        split = experiment.evaluation.split
        self._journal = Journal(folder.path, self._scoring.scorer, split, executor, progress)
        self._round = 0
        self._saved_at = 0.0

    @property
    def params(self) -> Params | None:
        """The generic model after the latest round."""
        return self._server.params

    def resume(self) -> int:
        """Continue from the newest intact checkpoint; return its round, 0 if there is none."""

        def check(value: Any) -> None:
            if value["experiment"] != self._digest:
                raise RunFailed("it belongs to another experiment than config.yaml describes")
            if value.get("frozen", "") != self._parts.model.frozen_digest():
                raise RunFailed("the frozen part of the model has other weights than it had")
            self._states.restore(value["states"])

        latest = checkpoint.load_latest(self._folder.path, check)
        if latest is None:
            self._journal.truncate_after(0)
            return 0
        self._round, value, warnings = latest
        for text in warnings:
            self._journal.event(self._round + 1, None, "checkpoint-damaged", text)
        self._server.restore(value)
        self._journal.truncate_after(self._round)
        text = f"resumed after round {self._round}"
        self._journal.event(self._round + 1, None, "resumed", text)
        return self._round

    def run(self) -> None:
        """Run the remaining rounds; leave the final model in the run folder.

        Raises:
            RunFailed: too few survivors, workers that keep dying, a disk that is full.
        """
        self._saved_at = time.monotonic()
        gc.freeze()  # what is imported stays; no collection needs to walk it in every round
        try:
            for round in range(self._round + 1, self._experiment.rounds + 1):
                self.step(round)
            self.write_pending()
            self._finish()
        finally:
            gc.unfreeze()

    def step(self, round: int) -> None:
        """Run one round; its rows are written while the next one trains, or with a checkpoint."""
        started = time.perf_counter()
        try:
            log, metrics = self._train(round)
            result = RoundResult(round, log, metrics, time.perf_counter() - started)
            if self._scoring.is_due(round):
                self._evaluate(result)
        except Exception:
            self._journal.round_failed(round)
            raise
        self._journal.note_engine(round)
        result.seconds = time.perf_counter() - started
        self._journal.round_done(result)
        self._round = round
        self._checkpoint(round)

    def _train(self, round: int) -> tuple[RoundLog, dict[str, float]]:
        self._scheduler.progress = lambda done, total: self._progress.cohort(round, done, total)
        log = self._execute(self._server.plan(round))
        return log, self._server.take(round, log) | client_means(log)

    def _execute(self, plan: Plan) -> RoundLog:
        """Have clients work; what befell them is noted, also where too few are left."""
        round = self._round + 1
        try:
            log = self._scheduler.run(plan)
        except RunFailed as error:
            self._journal.note(round, self._scheduler.log)
            raise RunFailed(f"round {round}: {error}") from None
        self._journal.note(round, log)
        return log

    def _evaluate(self, result: RoundResult) -> None:
        """Score the models, and clients on their own data (in place)."""
        round = result.round
        result.scores, result.features = self._scoring.score(self._server.models(), round)
        if self._experiment.evaluation.personal and self._evaluated:
            self._scheduler.progress = lambda done, total: None
            result.evaluated = self._execute(self._server.plan_evaluation(round))
            metrics = self._server.take_evaluation(round, result.evaluated)
            result.scores |= {f"clients/{name}": value for name, value in metrics.items()}

    def write_pending(self) -> None:
        """Write the rows of the last round and show it, if that is still to be done."""
        self._journal.write()

    def _checkpoint(self, round: int) -> None:
        settings, last = self._experiment.checkpoint, round == self._experiment.rounds
        late = time.monotonic() - self._saved_at >= settings.min_seconds
        if not last and (round % settings.every or not late):
            return
        self._states.commit(round)
        value = {
            "experiment": self._digest,
            "frozen": self._parts.model.frozen_digest(),
            **self._server.capture(),
            "states": self._states.index(),
        }
        self._journal.sync()
        checkpoint.save(self._folder.path, round, value)
        self._saved_at = time.monotonic()

    def _finish(self) -> None:
        params = self._server.params
        if params is not None:
            tensors = {name: params[name] for name in params}
            self._folder.save_model(tensors, self._parts.model.frozen_digest())
        for name, figure in self._scoring.pictures(self._server.models()):
            self._folder.save_picture(name, figure)

    def close(self) -> None:
        """Close the files; the folder is readable and resumable at any time."""
        try:
            self._journal.close()
        finally:
            self._states.close()


def make_server(
    parts: Parts, initial: Params, evaluated: list[int], scheduler: Scheduler
) -> Server:
    """Return what drives the experiment's strategy; `evaluated` are the clients to evaluate."""
    if has_hooks_only(parts.strategy) and not is_client_app(parts.client):
        return OwnServer(parts, initial, evaluated)
    return FlowerServer(parts, initial, evaluated, scheduler)
