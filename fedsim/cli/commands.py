"""The verbs of the command line, each one call into the API; errors become exit codes.

Exit status: 0 success, 1 a run failed, 2 bad input, 130 interrupted (and resumable).
Heavy modules are imported inside the verb that needs them, so that ``--help`` is instant.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import click
import typer

from fedsim.cli.watch import sigterm_interrupts, watched
from fedsim.errors import InputError, RunFailed, describe

app = typer.Typer(
    name="fedsim",
    help="Federated-learning simulation, bit-for-bit reproducible.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    suggest_commands=False,  # click does
)

File = Annotated[str, typer.Argument(metavar="FILE")]
Folder = Annotated[Path, typer.Argument(metavar="RUN")]
Folders = Annotated[list[str], typer.Argument(metavar="RUN...")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value, such as client.lr=0.1."),
]
Seeds = Annotated[
    str | None, typer.Option(metavar="SEED,SEED...", help="Run once for each seed, such as 0,1,2.")
]
Out = Annotated[Path, typer.Option("--out", help="Folder for the runs.")]
Force = Annotated[bool, typer.Option("--force", help="Replace existing runs.")]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="tensorboard|mlflow|wandb", help="Also log metrics there."),
]
TrackClients = Annotated[
    bool, typer.Option("--track-clients", help="Also log the last values of every client.")
]
Figure = Annotated[Path, typer.Option("--out", help="Figure file: .png, .svg or .pdf.")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, with ``sys.argv[1:]`` by default, and return its exit status."""
    try:
        status = app(args=None if argv is None else list(argv), standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output is gone; otherwise the interpreter complains on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        expected = isinstance(error, InputError | RunFailed)
        print(f"error: {error if expected else describe(error)}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1


def _show_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        print(f"fedsim {version('fedsim')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def run(
    file: File,
    set_: Set = None,
    seeds: Seeds = None,
    out: Out = Path("runs"),
    force: Force = False,
    track: Track = None,
    track_clients: TrackClients = False,
) -> None:
    """Run an experiment.

    FILE is an experiment file (YAML).
    """
    overrides = list(set_ or ())
    chosen: Sequence[int | None] = [None]
    if seeds is not None:
        chosen = _parse_seeds(seeds)
        if any(o.partition("=")[0].strip() == "seed" for o in overrides):
            raise InputError(f"the seed is given twice: --set seed=... and --seeds {seeds}")
        _check_folders(file, overrides, chosen, out, force)
    for seed in chosen:
        with watched(track=track or (), track_clients=track_clients) as progress:
            import fedsim

            fedsim.run(file, set=overrides, seed=seed, out=out, force=force, progress=progress)


@app.command()
def sweep(
    file: File,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=A,B", help="Values to try, such as client.lr=0.1,0.2."),
    ] = None,
    seeds: Seeds = None,
    out: Out = Path("runs"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Concurrent runs; one for each core by default.")
    ] = None,
    force: Force = False,
) -> int:
    """Run every combination of variants, values and seeds.

    FILE is a sweep file or an experiment file (YAML). The same command resumes a sweep that was
    interrupted.
    """
    from fedsim.sweeps.sweep import sweep, table, table_text
    from fedsim.sweeps.view import View

    chosen = None if seeds is None else _parse_seeds(seeds)
    try:
        with sigterm_interrupts():
            runs = sweep(
                file, set=set_ or (), seeds=chosen, out=out, jobs=jobs, force=force, view=View
            )
    except KeyboardInterrupt:
        print("interrupted; the same command resumes the sweep", file=sys.stderr)
        return 130
    print(f"\n{table_text(table(runs))}")
    return 0


@app.command()
def resume(folder: Folder, track: Track = None, track_clients: TrackClients = False) -> None:
    """Resume an interrupted or failed run.

    RUN is the folder of the run.
    """
    with watched(folder, track or (), track_clients) as progress:
        import fedsim

        run = fedsim.resume(folder, progress=progress)
    if progress.folder is None:
        print(f"{folder} has finished: round {run.rounds_done} of {run.config.rounds}")


@app.command("list")
def list_(kind: Annotated[str, typer.Argument(metavar="KIND")]) -> None:
    """List the components that an experiment can name.

    KIND is strategies, clients, datasets, partitions or models.
    """
    from fedsim.components.lookup import names

    descriptions = names(kind)
    width = max(map(len, descriptions), default=0)
    for name, description in descriptions.items():
        print(f"{name:<{width}}  {description}")


@app.command()
def show(what: Annotated[str, typer.Argument(metavar="RUN|KIND:NAME")]) -> None:
    """Show a run, or a component and its options.

    RUN is the folder of a run; a component is named like strategy:fedavg.
    """
    from fedsim.cli.show import show_component, show_run

    kind, colon, name = what.partition(":")
    if Path(what).is_dir():
        print(show_run(Path(what)))
    elif colon:
        print(show_component(kind, name))
    else:
        raise InputError(
            f"there is no run folder {what}; a component is shown as KIND:NAME, such as "
            "strategy:fedavg"
        )


@app.command()
def partition(
    file: File,
    out: Figure,
    set_: Set = None,
    seed: Annotated[int | None, typer.Option(help="Seed; that of the file by default.")] = None,
    manifest: Annotated[
        Path | None,
        typer.Option("--manifest", help="Also write the partition (.npz), for {name: file}."),
    ] = None,
) -> None:
    """Plot how the data are divided among the clients.

    FILE is an experiment file (YAML). The figure shows classes, client sizes, the long tail and
    domains.
    """
    import fedsim

    fedsim.partition(file, set=set_ or (), seed=seed, out=out, manifest=manifest)
    for path in filter(None, (out, manifest)):
        print(path)


@app.command()
def features(
    runs: Folders,
    out: Figure,
    round: Annotated[int | None, typer.Option(help="Round; the last one by default.")] = None,
) -> None:
    """Plot the features that runs recorded (evaluation.features).

    RUN is the folder of a run. The figure shows class means, the directions they use and the norms
    of the classifiers.
    """
    import fedsim

    fedsim.features(runs, round=round, out=out)
    print(out)


@app.command()
def compare(
    runs: Folders,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="Metric; all accuracies by default."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Run to compare the others with; FedAvg by default.")
    ] = None,
    choice: Annotated[
        str, typer.Option(metavar="last|mean-of-last-K|best-on-validation", help="Rounds to use.")
    ] = "last",
    target: Annotated[
        float | None, typer.Option(help="Also report rounds, bytes and seconds to this value.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write a page, such as report.html.")
    ] = None,
    different_data: Annotated[
        bool, typer.Option("--different-data", help="Allow different data and partitions.")
    ] = False,
) -> None:
    """Compare runs over seeds, with intervals and paired tests.

    RUN is the folder of a run or a sweep, or a glob pattern.
    """
    import fedsim

    if out is not None:
        from fedsim.report.html import check_page

        check_page(out)

    comparison = fedsim.compare(
        runs,
        metric=metric or None,
        reference=reference,
        choice=choice,
        target=target,
        different_data=different_data,
    )
    print(comparison)
    if out is not None:
        comparison.to_html(out)
        print(f"\n{out}")


@app.command()
def export(
    folder: Folder,
    to: Annotated[
        str, typer.Option("--to", metavar="csv|parquet|weights|weights-fp16", help="Format.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; RUN/export by default.")
    ] = None,
) -> None:
    """Export the metrics or the model weights of a run.

    RUN is the folder of the run.
    """
    from fedsim.runs.export import export_run

    for path in export_run(folder, to, out):
        print(path)


@app.command()
def new(
    kind: Annotated[str, typer.Argument(metavar="strategy|client")],
    name: Annotated[str, typer.Argument(metavar="NAME")],
) -> None:
    """Start a strategy or client method of your own.

    Writes a working module, named like trimmed-mean, and its test into the current folder.
    """
    from fedsim.cli.new import write_new

    for path in write_new(kind, name, Path()):
        print(path)


@app.command()
def bench(
    workloads: Annotated[list[str] | None, typer.Argument(metavar="[W1..W4]")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of fedsim and the loop.")] = 3,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds in a turn; set by the workload by default.")
    ] = None,
) -> None:
    """Time fedsim against a hand-written PyTorch loop.

    All workloads are run by default.
    """
    from fedsim.bench.timing import main as run_bench

    run_bench(list(workloads or ()), repeats, rounds)


def _parse_seeds(text: str) -> list[int]:
    seeds = []
    for part in text.split(","):
        if not part.strip().isdecimal():
            raise InputError(
                f"--seeds must be whole numbers of at least 0 joined by commas, such as 0,1,2, "
                f"got {text!r}"
            )
        seeds.append(int(part))
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds must name each seed once, got {text!r}")
    return seeds


def _check_folders(
    file: str, overrides: list[str], seeds: Sequence[int], out: Path, force: bool
) -> None:
    """Raise `InputError` before the first run if the folder of a later one is not vacant."""
    from fedsim.config.reading import load_experiment
    from fedsim.runs.folder import RunFolder

    name = load_experiment(file, overrides).name
    for seed in seeds:
        RunFolder.create(out, name, seed, force)
