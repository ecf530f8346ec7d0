"""The Python API: run, resume and draw experiments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.components import build, configure
from fedsim.components.build import initial_model as build_model
from fedsim.config.experiment import Experiment
from fedsim.config.reading import base_folder, load_experiment, to_yaml
from fedsim.data.dataset import Dataset
from fedsim.data.partition import Manifest
from fedsim.engine.executors import open_executor
from fedsim.errors import InputError, os_errors_as
from fedsim.rounds.lifecycle import execute
from fedsim.rounds.progress import Progress
from fedsim.rounds.setup import build_parts
from fedsim.runs.environment import describe
from fedsim.runs.folder import RunFolder
from fedsim.runs.results import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Source = str | Path | Mapping[str, Any]
Overrides = Mapping[str, Any] | Sequence[str]


def run(
    source: Source,
    *,
    set: Overrides = (),
    seed: int | None = None,
    out: str | Path = "runs",
    force: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Run an experiment and return the finished run.

    `source` is an experiment file or a mapping with the same keys; `set` overrides single values,
    ``{"client.lr": 0.1}`` or ``["client.lr=0.1"]``; `seed` overrides the seed. The run's folder is
    ``out/<name>/seed-<seed>``; `force` replaces an existing run.

    Raises:
        InputError: the experiment or the folder is invalid; nothing has been written.
        RunFailed: the run stopped; `resume` continues it from its last checkpoint.
    """
    experiment = prepare(source, set, seed)
    folder = RunFolder.create(Path(out), experiment.name, experiment.seed, force=force)
    progress = progress or Progress()
    with folder:
        with _in_file(source):
            parts = build_parts(experiment, load_data)
        with open_executor(parts.experiment, parts.manifest.public_rows) as executor:
            folder.begin(to_yaml(experiment), describe(), parts.manifest)
            progress.folder = folder.path
            with closing(progress):
                execute(parts, executor, folder, progress, resumed=False)
    return Run(folder.path)


def resume(folder: str | Path, *, progress: Progress | None = None) -> Run:
    """Resume an interrupted or failed run from its last checkpoint and return the finished run.

    The result equals that of an uninterrupted run bit for bit. A finished run is returned as it is.

    Raises:
        InputError: the folder is not a run or is damaged, or another process is at work in it.
        RunFailed: the run stopped again.
    """
    run_folder = RunFolder.open(Path(folder))
    progress = progress or Progress()
    with run_folder:
        if run_folder.status == "finished":
            run = Run(run_folder.path)
            run.check()
            return run
        progress.folder = run_folder.path
        experiment = load_experiment(run_folder.path / "config.yaml")
        manifest = Manifest.load(run_folder.path / "partition.npz")
        parts = build_parts(experiment, lambda e: (build.build_dataset(e), manifest))
        with (
            open_executor(parts.experiment, parts.manifest.public_rows) as executor,
            closing(progress),
        ):
            execute(parts, executor, run_folder, progress, resumed=True)
    return Run(run_folder.path)


def prepare(source: Source, overrides: Overrides = (), seed: int | None = None) -> Experiment:
    """Return the experiment with all defaults filled in and every component's options checked.

    Raises:
        InputError: one message with a line for each problem.
    """
    if seed is not None:
        if isinstance(overrides, Mapping):
            overrides = {**overrides, "seed": seed}
        else:
            overrides = [*overrides, f"seed={seed}"]
    label = "" if isinstance(source, Mapping) else str(source)
    experiment = load_experiment(source, overrides)
    return configure.complete(experiment, base_folder(source), label)


def partition(
    source: Source,
    *,
    set: Overrides = (),
    seed: int | None = None,
    out: str | Path | None = None,
    manifest: str | Path | None = None,
) -> Figure:
    """Draw how an experiment's data are split: classes, sizes and domains of each client.

    `out` is the file of the figure (.png, .svg or .pdf); `manifest` that of the partition itself,
    an .npz file that ``partition: {name: file, path: ...}`` reads. Neither is written by default.

    Raises:
        InputError: the experiment is invalid, or a file cannot be written.
    """
    from fedsim.report.figures import check_target, write_figure
    from fedsim.report.partition import partition_figure

    if out is not None:
        check_target(Path(out))
    experiment = prepare(source, set, seed)
    with _in_file(source):
        dataset, split = load_data(experiment)
    label = f"{experiment.dataset.name}, {experiment.partition.name}, seed {experiment.seed}"
    figure = partition_figure(split, dataset, f"{experiment.name}: {label}")
    if out is not None:
        write_figure(figure, Path(out))
    if manifest is not None:
        with os_errors_as(InputError, f"cannot write {manifest}"):
            split.save(manifest)
    return figure


def features(
    runs: str | Path | Sequence[str | Path],
    *,
    round: int | None = None,
    out: str | Path | None = None,
) -> Figure:
    """Draw the features that one or more runs recorded (``evaluation: {features: true}``).

    `round` defaults to the last one recorded; `out` is the file of the figure (.png, .svg or .pdf),
    not written by default.

    Raises:
        InputError: a run has no recorded features, or the file cannot be written.
    """
    from fedsim.report.features import features_figure
    from fedsim.report.figures import check_target, write_figure
    from fedsim.runs.results import load_runs

    if out is not None:
        check_target(Path(out))
    figure = features_figure(load_runs(runs), round)
    if out is not None:
        write_figure(figure, Path(out))
    return figure


@contextmanager
def _in_file(source: Source) -> Iterator[None]:
    """Prefix the messages of `InputError` with the experiment's file, if it comes from one."""
    try:
        yield
    except InputError as error:
        if isinstance(source, Mapping) or str(error).startswith(str(source)):
            raise
        raise InputError(f"{source}: {error}") from error


def load_data(experiment: Experiment) -> tuple[Dataset, Manifest]:
    """Load an experiment's data set and partition it."""
    dataset = build.build_dataset(experiment)
    return dataset, build.build_partition(experiment, dataset)


__all__ = [
    "InputError",
    "build_model",
    "features",
    "load_data",
    "open_executor",
    "partition",
    "prepare",
    "resume",
    "run",
]
