"""Running experiments: what the command line and notebooks call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.components import build, configure
from fedsim.components.build import initial_model as build_model
from fedsim.config.experiment import Experiment
from fedsim.config.reading import base_folder, load_experiment, to_yaml
from fedsim.data.partition import Manifest
from fedsim.engine.executors import open_executor
from fedsim.errors import InputError
from fedsim.rounds.lifecycle import execute
from fedsim.rounds.progress import Progress
from fedsim.rounds.setup import build_parts
from fedsim.runs.atomic import reason
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
    """Run an experiment to its end and return the run.

    `source` is an experiment file or a mapping with the same keys; `set` overrides single values,
    ``{"client.lr": 0.1}`` or ``["client.lr=0.1"]``; `seed` overrides the seed. The run's folder is
    ``out/<name>/seed-<seed>``; with `force` a run that is there already is replaced.

    Raises:
        InputError: anything wrong with the experiment or the folder; nothing has been written.
        RunFailed: the run stopped; `resume` continues it from its last checkpoint.
    """
    experiment = prepare(source, set, seed)
    folder = RunFolder.create(Path(out), experiment.name, experiment.seed, force=force)
    progress = progress or Progress()
    with folder:
        with _in_file(source):
            parts = build_parts(experiment, _fresh_data)
        with open_executor(parts.experiment, parts.manifest.public_rows) as executor:
            folder.begin(to_yaml(experiment), describe(), parts.manifest)
            progress.folder = folder.path
            with closing(progress):
                execute(parts, executor, folder, progress, resumed=False)
    return Run(folder.path)


def resume(folder: str | Path, *, progress: Progress | None = None) -> Run:
    """Continue an interrupted or failed run from its last checkpoint and return the run.

    The result is bit for bit that of a run that was never interrupted. A finished run is returned
    as it is.

    Raises:
        InputError: the folder is not a run or is damaged, or another process is at work in it.
        RunFailed: it stopped again.
    """
    opened = RunFolder.open(Path(folder))
    progress = progress or Progress()
    with opened:
        if opened.status == "finished":
            run = Run(opened.path)
            run.check()
            return run
        progress.folder = opened.path
        experiment = load_experiment(opened.path / "config.yaml")
        manifest = Manifest.load(opened.path / "partition.npz")

        def stored(experiment: Experiment) -> tuple[Any, Manifest]:
            return build.build_dataset(experiment), manifest

        parts = build_parts(experiment, stored)
        with (
            open_executor(parts.experiment, parts.manifest.public_rows) as executor,
            closing(progress),
        ):
            execute(parts, executor, opened, progress, resumed=True)
    return Run(opened.path)


def prepare(source: Source, overrides: Overrides = (), seed: int | None = None) -> Experiment:
    """Return the experiment with all defaults written out and every component's options checked.

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
    """Return the picture of an experiment's partition: who owns what, how much, which domains.

    Written to `out` (.png, .svg or .pdf) if given; `manifest` is where the partition itself is
    written, an .npz file that ``partition: {name: file, path: ...}`` reads.

    Raises:
        InputError: anything wrong with the experiment, or a file that cannot be written.
    """
    from fedsim.report.figures import check_target, write_figure
    from fedsim.report.partition import partition_figure

    if out is not None:
        check_target(Path(out))
    experiment = prepare(source, set, seed)
    with _in_file(source):
        dataset, divided = _fresh_data(experiment)
    label = f"{experiment.dataset.name}, {experiment.partition.name}, seed {experiment.seed}"
    figure = partition_figure(divided, dataset, f"{experiment.name}: {label}")
    if out is not None:
        write_figure(figure, Path(out))
    if manifest is not None:
        try:
            divided.save(manifest)
        except OSError as error:
            raise InputError(f"cannot write {manifest}: {reason(error)}") from error
    return figure


def features(
    runs: str | Path | Sequence[str | Path],
    *,
    round: int | None = None,
    out: str | Path | None = None,
) -> Figure:
    """Return the picture of the features of one or more runs, from their folders alone.

    The runs must have recorded them (``evaluation: {features: true}``); `round` is the last one
    recorded unless given. Written to `out` (.png, .svg or .pdf) if given.

    Raises:
        InputError: a run without recorded features, or a file that cannot be written.
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
    """Begin an error's message with the experiment's file, if it comes from one."""
    try:
        yield
    except InputError as error:
        if isinstance(source, Mapping) or str(error).startswith(str(source)):
            raise
        raise InputError(f"{source}: {error}") from error


def _fresh_data(experiment: Experiment) -> tuple[Any, Manifest]:
    dataset = build.build_dataset(experiment)
    return dataset, build.build_partition(experiment, dataset)


__all__ = [
    "InputError",
    "build_model",
    "features",
    "open_executor",
    "partition",
    "prepare",
    "resume",
    "run",
]
