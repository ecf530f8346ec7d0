"""Experiment trackers: log metrics to TensorBoard, MLflow or Weights & Biases.

    fedsim run mine.yaml --track tensorboard --track mlflow
    fedsim.run("mine.yaml", progress=Tracked([TensorBoard()]))

Subclass `Tracker` for other services. The libraries are optional and imported by their trackers. An
exception in a tracker stops the run, which can then be resumed without it.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.errors import InputError, check_choice
from fedsim.rounds.progress import Progress
from fedsim.runs.summary import Table

if TYPE_CHECKING:
    from types import ModuleType

    from fedsim.config.experiment import Experiment


class Tracker:
    """Base of the trackers; logs nothing."""

    def begin(self, experiment: Experiment, folder: Path, first_round: int) -> None:
        """Begin a run; `first_round` is above 1 if it is resumed."""

    def log(self, round: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a round, by name."""

    def end(self, finished: bool) -> None:
        """End a run; `finished` is false if it failed or was interrupted."""


class Tracked(Progress):
    """Progress that also goes to trackers; `shown` is the display for the user.

    With `clients` the last values of every client are logged at the end, as ``client-<id>/<name>``.
    """

    def __init__(
        self, trackers: Sequence[Tracker], shown: Progress | None = None, clients: bool = False
    ) -> None:
        super().__init__()
        self._trackers, self._clients = list(trackers), clients
        self._shown = shown or Progress()
        self._open = False

    def start(self, experiment: Experiment, folder: Path, first_round: int) -> None:
        super().start(experiment, folder, first_round)
        for tracker in self._trackers:
            tracker.begin(experiment, Path(folder), first_round)
        self._open = True
        self._shown.start(experiment, folder, first_round)

    def cohort(self, round: int, done: int, total: int) -> None:
        self._shown.cohort(round, done, total)

    def round_end(self, round: int, metrics: Mapping[str, float], seconds: float) -> None:
        for tracker in self._trackers:
            tracker.log(round, {**metrics, "seconds": seconds})
        self._shown.round_end(round, metrics, seconds)

    def event(self, round: int, client: int | None, kind: str, text: str) -> None:
        self._shown.event(round, client, kind, text)

    def end(self, folder: Path, table: Table, seconds: float) -> None:
        if self._clients:
            self._log_clients(Path(folder))
        self._finish(True)
        self._shown.end(folder, table, seconds)

    def close(self) -> None:
        self._finish(False)
        self._shown.close()

    def _finish(self, finished: bool) -> None:
        if self._open:
            self._open = False
            for tracker in self._trackers:
                tracker.end(finished)

    def _log_clients(self, folder: Path) -> None:
        from fedsim.runs.results import Run

        frame = Run(folder).clients
        last = frame.drop_duplicates(["split", "name", "client"], keep="last")
        columns = (last[c].tolist() for c in ("client", "split", "name", "value"))
        values = {
            f"client-{client}/{name if split == 'test' else f'{split}/{name}'}": value
            for client, split, name, value in zip(*columns, strict=True)
        }
        for tracker in self._trackers:
            tracker.log(self.rounds, values)


class TensorBoard(Tracker):
    """Event files in the run's folder ``tensorboard``, for ``tensorboard --logdir runs``."""

    def __init__(self) -> None:
        _library("tensorboard", "tensorboard")

    def begin(self, experiment: Experiment, folder: Path, first_round: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder / "tensorboard", purge_step=first_round)

    def log(self, round: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, round)

    def end(self, finished: bool) -> None:
        self._writer.close()


class MLflow(Tracker):
    """A run in the MLflow experiment of the same name, at MLflow's configured tracking address.

    A resumed run continues the same MLflow run.
    """

    def __init__(self) -> None:
        self._mlflow: Any = _library("mlflow", "mlflow")

    def begin(self, experiment: Experiment, folder: Path, first_round: int) -> None:
        from fedsim.report.groups import flat

        self._client = self._mlflow.MlflowClient()
        name = experiment.name
        existing = self._client.get_experiment_by_name(name)
        parent = existing.experiment_id if existing else self._client.create_experiment(name)
        tag = str(folder.resolve())
        query = f"tags.folder = '{tag}'"
        runs = self._client.search_runs([parent], query) if first_round > 1 else []
        if runs:
            self._run = runs[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        run = self._client.create_run(
            parent, tags={"folder": tag}, run_name=f"seed-{experiment.seed}"
        )
        self._run = run.info.run_id
        for key, value in flat(experiment.model_dump()).items():
            self._client.log_param(self._run, key, value)

    def log(self, round: int, metrics: Mapping[str, float]) -> None:
        entities = self._mlflow.entities
        values = [entities.Metric(name, value, 0, round) for name, value in metrics.items()]
        for start in range(0, len(values), 1000):  # MLflow's bound on a batch
            self._client.log_batch(self._run, metrics=values[start : start + 1000])

    def end(self, finished: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


class WandB(Tracker):
    """A run in the Weights & Biases project ``fedsim``; ``WANDB_MODE=offline`` keeps it local."""

    def __init__(self) -> None:
        self._wandb: Any = _library("wandb", "wandb")

    def begin(self, experiment: Experiment, folder: Path, first_round: int) -> None:
        identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self._run = self._wandb.init(
            project="fedsim",
            name=f"{experiment.name}/seed-{experiment.seed}",
            config=experiment.model_dump(),
            dir=folder,
            id=identity,
            resume="allow" if first_round > 1 else None,
            reinit="create_new",
        )

    def log(self, round: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=round)

    def end(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def make_trackers(names: Sequence[str]) -> list[Tracker]:
    """Return the trackers with these names.

    Raises:
        InputError: an unknown name, or a library is not installed.
    """
    for name in names:
        check_choice("--track", name, TRACKERS)
    return [TRACKERS[name]() for name in dict.fromkeys(names)]


def _library(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"--track {extra} needs the package {module}: pip install 'fedsim[{extra}]' ({error})"
        ) from None
