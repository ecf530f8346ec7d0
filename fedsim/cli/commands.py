"""The command line: every verb is one call into the API; errors become exit codes.

Exit status: 0 done, 1 a run failed, 2 bad input, 130 interrupted (and resumable).
Everything heavy is imported inside the verb that needs it, so that ``--help`` is instant.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from fedsim.errors import InputError, RunFailed

if TYPE_CHECKING:
    from fedsim.rounds.progress import Progress

app = typer.Typer(
    name="fedsim",
    help="Federated-learning simulation: one file, one command, the same bits every time.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    suggest_commands=False,  # click does
)

TrackOption = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="tensorboard|mlflow|wandb", help="Also send metrics there."),
]
TrackClientsOption = Annotated[
    bool, typer.Option("--track-clients", help="Also the last values of every client.")
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder that holds the runs.")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; `argv` is ``sys.argv[1:]`` unless given."""
    try:
        status = app(args=None if argv is None else list(argv), standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, click.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output is gone; without this the interpreter complains at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from fedsim.errors import describe

        print(f"error: {describe(error)}", file=sys.stderr)
        return 1


def _show_version(wanted: bool) -> None:
    if wanted:
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
    file: Annotated[str, typer.Argument(metavar="FILE", help="Experiment file (YAML).")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a value: client.lr=0.1"),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Run once for each seed, such as 0,1,2.")
    ] = None,
    out: OutOption = Path("runs"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run.")] = False,
    track: TrackOption = None,
    track_clients: TrackClientsOption = False,
) -> int:
    """Run an experiment."""
    chosen: list[int | None] = [None] if seeds is None else [*_parse_seeds(seeds)]
    overrides = list(set_ or ())
    if seeds is not None and any(o.partition("=")[0].strip() == "seed" for o in overrides):
        raise InputError(f"the seed is given twice: --set seed=... and --seeds {seeds}")
    if seeds is not None and not force:
        _refuse_existing(file, overrides, out, _parse_seeds(seeds))
    for seed in chosen:
        with _watched(track=track or (), track_clients=track_clients) as progress:
            import fedsim

            fedsim.run(file, set=overrides, seed=seed, out=out, force=force, progress=progress)
    return 0


@app.command()
def sweep(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Sweep file or experiment file (YAML).")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=A,B", help="Values to try: client.lr=0.1,0.2"),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Run all once for each seed, such as 0,1,2.")
    ] = None,
    out: OutOption = Path("runs"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; one a core unless given.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing runs.")] = False,
) -> int:
    """Run every combination of variants, values and seeds; again to resume."""
    from fedsim.sweeps.sweep import sweep, table, table_text
    from fedsim.sweeps.view import View

    chosen = None if seeds is None else _parse_seeds(seeds)
    views: list[View] = []

    def show(*arguments: Any) -> View:
        views.append(View(*arguments))
        return views[0]

    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        runs = sweep(file, set=set_ or (), seeds=chosen, out=out, jobs=jobs, force=force, view=show)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        return 130
    finally:
        for view in views:
            view.close()
        signal.signal(signal.SIGTERM, previous)
    print()
    print(table_text(table(runs)))
    return 0


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    track: TrackOption = None,
    track_clients: TrackClientsOption = False,
) -> int:
    """Go on with an interrupted or failed run."""
    with _watched(folder, track or (), track_clients) as progress:
        import fedsim

        run = fedsim.resume(folder, progress=progress)
    if progress.folder is None:
        print(f"{folder} has finished: round {run.rounds_done} of {run.config.rounds}")
    return 0


@app.command("list")
def list_(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="strategies, clients, datasets, partitions or models."),
    ],
) -> None:
    """List the components that an experiment can name."""
    from fedsim.components.lookup import names

    found = names(kind)
    width = max(map(len, found), default=0)
    for name, description in found.items():
        print(f"{name:<{width}}  {description}")


@app.command()
def show(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN|KIND:NAME",
            help="Folder of a run, or a component such as strategy:fedavg.",
        ),
    ],
) -> None:
    """Show a run or a component."""
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
    file: Annotated[str, typer.Argument(metavar="FILE", help="Experiment file (YAML).")],
    out: Annotated[Path, typer.Option("--out", help="Picture to write: .png, .svg or .pdf.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a value: partition.alpha=0.1"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The file's seed unless given.")] = None,
    manifest: Annotated[
        Path | None,
        typer.Option("--manifest", help="Also write who owns what (.npz), for {name: file}."),
    ] = None,
) -> None:
    """Draw who owns what: classes, sizes, the long tail, domains."""
    import fedsim

    fedsim.partition(file, set=set_ or (), seed=seed, out=out, manifest=manifest)
    for path in filter(None, (out, manifest)):
        print(path)


@app.command()
def features(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[Path, typer.Option("--out", help="Picture to write: .png, .svg or .pdf.")],
    round: Annotated[int | None, typer.Option(help="The last one recorded unless given.")] = None,
) -> None:
    """Draw what evaluation.features recorded: class means, directions used, classifier norms."""
    import fedsim

    fedsim.features(runs, round=round, out=out)
    print(out)


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Folders of runs or of a sweep; globs welcome."),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="Metric; the accuracies there are if none."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Run that the others are compared with; FedAvg if none.")
    ] = None,
    choice: Annotated[
        str,
        typer.Option(metavar="last|mean-of-last-K|best-on-validation", help="Which round counts."),
    ] = "last",
    target: Annotated[
        float | None, typer.Option(help="Also rounds, bytes and seconds to this value: 0.9")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write a page: report.html")
    ] = None,
    different_data: Annotated[
        bool, typer.Option("--different-data", help="Allow other data and partitions.")
    ] = False,
) -> None:
    """Compare strategies over seeds, with intervals and paired tests."""
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
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    to: Annotated[str, typer.Option("--to", metavar="csv|parquet|weights", help="File format.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the files; the run's own unless given.")
    ] = None,
) -> None:
    """Write a run's metrics, or its model's weights, to files that other programs read."""
    from fedsim.runs.export import export_run

    for path in export_run(folder, to, out):
        print(path)


@app.command()
def new(
    kind: Annotated[str, typer.Argument(metavar="strategy|client", help="What to write.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, such as trimmed-mean.")],
) -> None:
    """Write a strategy or client method to start from, and its test, into this folder."""
    from fedsim.cli.new import write_new

    for path in write_new(kind, name, Path()):
        print(path)


@app.command()
def bench(
    workloads: Annotated[
        list[str] | None, typer.Argument(metavar="[W1..W4]", help="Workloads; all unless given.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions, interleaved.")] = 3,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds; the workload's own unless given.")
    ] = None,
) -> None:
    """Time fedsim against a hand-written PyTorch loop."""
    from fedsim.bench import main as run_bench

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
    repeated = sorted({s for s in seeds if seeds.count(s) > 1})
    if repeated:
        raise InputError(f"--seeds must name each seed once, got {text!r}")
    return seeds


def _refuse_existing(file: str, overrides: list[str], out: Path, seeds: list[int]) -> None:
    """Raise before the first of several runs what would stop a later one."""
    from fedsim.config.reading import load_experiment

    experiment = load_experiment(file, overrides)
    for seed in seeds:
        folder = out / experiment.name / f"seed-{seed}"
        if folder.exists():
            raise InputError(
                f"the run folder {folder} exists: go on with `fedsim resume {folder}`, or replace "
                "it with --force"
            )


@contextlib.contextmanager
def _watched(
    folder: Path | None = None, track: Sequence[str] = (), track_clients: bool = False
) -> Iterator[Progress]:
    """Give a run its progress display, and say how to go on if it does not reach its end."""
    from fedsim.rounds.progress import make_progress

    progress: Progress = make_progress()
    if track:
        from fedsim.trackers import Tracked, make_trackers

        progress = Tracked(make_trackers(track), progress, track_clients)
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield progress
    except InputError:
        progress.close()
        raise
    except (KeyboardInterrupt, SystemExit) as error:
        progress.close()
        # Ray replaces the handler by one that exits with the signal's number.
        if isinstance(error, SystemExit) and error.code != signal.SIGTERM:
            raise
        where = progress.folder or folder
        print(
            f"interrupted; resume with: fedsim resume {where}"
            if where
            else "interrupted before the run began",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    except Exception as error:
        progress.close()
        where = progress.folder or folder
        if isinstance(error, RunFailed):
            print(f"error: {error}", file=sys.stderr)
        else:
            print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
            notes = getattr(error, "__notes__", [])  # says where it is logged, if it is
            if notes:
                print(*notes, sep="\n", file=sys.stderr)
            else:
                _log_traceback(where)
        if where and f"fedsim resume {where}" not in str(error):
            print(f"resume with: fedsim resume {where}", file=sys.stderr)
        raise typer.Exit(1) from None
    finally:
        progress.close()
        signal.signal(signal.SIGTERM, previous)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _log_traceback(folder: Path | None) -> None:
    """Append the traceback to the run's log, or print it where there is none."""
    if folder is not None and folder.is_dir():
        with contextlib.suppress(OSError), open(folder / "log.txt", "a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
            print(f"the traceback is in {folder / 'log.txt'}", file=sys.stderr)
            return
    traceback.print_exc()
