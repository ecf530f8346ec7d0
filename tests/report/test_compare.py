"""Comparisons: the same numbers everywhere, and refusals of what cannot be compared."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
import fedsim.data.partition
from fedsim.cli.commands import main
from fedsim.errors import InputError
from fedsim.report.groups import Group, tell_apart
from tests.support.runs import environment, tiny
from tests.support.written import query, stored, write_run


def test_numbers_agree_everywhere(made: Path, tmp_path: Path, capsys: Any) -> None:
    """Database, data frame, terminal and page; means, intervals and pairs by hand."""
    page = tmp_path / "report.html"
    assert main(["compare", str(made), "--out", str(page)]) == 0
    text, html = capsys.readouterr().out, page.read_text()
    comparison = fedsim.compare(f"{made}/*")
    assert comparison.reference == "fedavg"
    assert list(comparison.tables) == [
        "generic/accuracy",
        "clients/generic/accuracy",
        "clients/personal/accuracy",
        "clients/deployed/accuracy",
    ]
    sources = {
        "generic/accuracy": {"fedavg": "generic", "apfl": "generic"},
        "clients/deployed/accuracy": {
            "fedavg": "clients/generic",
            "apfl": "clients/personal",
            "fedper": "clients/personal",
        },
    }
    for metric, kinds in sources.items():
        frame = comparison.tables[metric].set_index("run")
        seeds = {"fedavg": (0, 1, 2), "apfl": (0, 1, 2), "fedper": (0, 1)}
        numbers = {
            label: {
                s: stored(made / label / f"seed-{s}", f"{kind}/accuracy")[-1][1]
                for s in seeds[label]
            }
            for label, kind in kinds.items()
        }
        for label, values in numbers.items():
            row = frame.loc[label]
            x = np.array(list(values.values()))
            assert row["mean"] == pytest.approx(x.mean(), abs=1e-12)
            t = {3: 4.302653, 2: 12.706205}[len(x)]
            half = t * x.std(ddof=1) / math.sqrt(len(x))
            assert row["high"] - row["mean"] == pytest.approx(half, rel=1e-5)
            shown = f"{100 * x.mean():.2f}"
            assert re.search(rf"^{label} +{len(x)} +{re.escape(shown)} ", text, re.MULTILINE)
            assert f"<td>{label}</td><td>{len(x)}</td><td>{shown}</td>" in html
            if label != "fedavg":
                apart = np.array([v - numbers["fedavg"][s] for s, v in values.items()])
                assert row["difference"] == pytest.approx(apart.mean(), abs=1e-12)
                assert row["pairs"] == len(apart)
                assert f"<td>{100 * apart.mean():+.2f}</td>" in html
    sql = "SELECT value FROM metrics WHERE client IS NOT NULL AND round = 4 AND name = "
    lowest = []
    for seed in (0, 1, 2):
        rows = query(made / f"fedavg/seed-{seed}", sql + "'generic/accuracy' AND split = 'test'")
        lowest.append(min(v for (v,) in rows))  # the lowest tenth of 8 clients is one
    table = comparison.tables["clients/deployed/accuracy"].set_index("run")
    assert table.loc["fedavg", "worst_10"] == pytest.approx(np.mean(lowest))
    values = comparison.values
    one = values[(values["metric"] == "generic/accuracy") & (values["run"] == "apfl")]
    assert one["value"].tolist() == [
        stored(made / f"apfl/seed-{s}", "generic/accuracy")[-1][1] for s in (0, 1, 2)
    ]


@pytest.mark.slow
def test_database_terminal_page_and_notebook_have_one_number(
    made: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient").NotebookClient
    page, metric = tmp_path / "report.html", "generic/accuracy"
    assert main(["compare", str(made), "--target", "0.3", "--out", str(page)]) == 0
    terminal, html = capsys.readouterr().out, page.read_text()
    cells = [
        f"import fedsim\ncomparison = fedsim.compare({str(made)!r}, target=0.3)\nprint(comparison)",
        f"table = comparison.tables[{metric!r}]\n"
        "print(table.set_index('run')['mean'].dropna().to_json(double_precision=15))",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    place = {"metadata": {"path": str(tmp_path)}}
    client(book, timeout=120, kernel_name="python3", resources=place).execute()
    table, exact = (
        "".join(out.text for out in cell.outputs if out.name == "stdout") for cell in book.cells
    )
    kinds = {"fedavg": "clients/generic", "apfl": "clients/personal", "fedper": "clients/personal"}
    for label, kind in kinds.items():
        folders = sorted((made / label).glob("seed-*"))
        sources = {"clients/deployed/accuracy": f"{kind}/accuracy"}
        if label != "fedper":  # the server has a part of a model only
            sources[metric] = metric
        for shown, name in sources.items():
            found = [stored(folder, name) for folder in folders]
            mean = float(np.mean([curve[-1][1] for curve in found]))
            row = rf"^{label} +{len(folders)} +{100 * mean:.2f} "
            for text in (terminal, table):
                block = text[text.index(f"{shown} [%]") :].split("\n\n")[0]
                assert re.search(row, block, re.MULTILINE)
            block = html[html.index(f"<h2>{shown} [%]</h2>") :].split("</table>")[0]
            assert f"<td>{label}</td><td>{len(folders)}</td><td>{100 * mean:.2f}</td>" in block
            if shown == metric:
                assert json.loads(exact)[label] == pytest.approx(mean, abs=1e-14)
                at = [next(r for r, v in curve if v >= 0.3) for curve in found]
                there = [
                    query(
                        folder,
                        "SELECT sum(value) FROM metrics WHERE client IS NULL AND split = 'train' "
                        f"AND name = 'virtual_seconds' AND round <= {r}",
                    )[0][0]
                    for folder, r in zip(folders, at, strict=True)
                ]
                virtual = f"{np.mean(there):.3g}"
                for text in (terminal, table):
                    assert re.search(rf"{row}.* {re.escape(virtual)}$", text, re.MULTILINE)
                assert f"<td>{virtual}</td></tr>" in block


def test_missing_seeds_are_said_and_pairs_are_common(made: Path) -> None:
    comparison = fedsim.compare(str(made))
    assert comparison.missing == {"fedper": [2]}
    assert "fedper has no run of seed 2; differences use the common seeds" in str(comparison)


def test_choices(made: Path) -> None:
    last = fedsim.compare(str(made), metric="generic/accuracy", choice="mean-of-last-3")
    row = last.tables["generic/accuracy"].set_index("run").loc["fedavg"]
    runs = [stored(made / f"fedavg/seed-{s}", "generic/accuracy") for s in (0, 1, 2)]
    assert row["mean"] == pytest.approx(np.mean([[v for _, v in run[-3:]] for run in runs]))
    with pytest.raises(InputError, match=r"best-on-validation needs evaluation\.on: both"):
        fedsim.compare(str(made), choice="best-on-validation")
    for bad in ("best", "mean-of-last-0", "mean-of-last-x"):
        with pytest.raises(InputError, match=f"choice must be 'last', .*'{bad}'"):
            fedsim.compare(str(made), choice=bad)


def test_the_best_round_on_validation_is_scored_on_test(tmp_path: Path) -> None:
    """A learning rate at which the last round is not the best."""
    client = {"lr": 1.5}
    run = fedsim.run(
        tiny(evaluation={"on": "both"}, client=client, rounds=8, strategy={"name": "apfl"}),
        out=tmp_path,
    )
    plain = fedsim.run(
        tiny(name="plain", client=client, rounds=8, strategy={"name": "apfl"}), out=tmp_path
    )
    for name in ("generic/accuracy", "clients/personal/accuracy"):
        sql = "SELECT round, value FROM metrics WHERE client IS NULL AND split = 'validation' AND "
        held = query(run.path, f"{sql} name = '{name}' ORDER BY round")
        assert [r for r, _ in held] == list(range(1, 9))
        best = max(held, key=lambda pair: (pair[1], -pair[0]))[0]
        expected = dict(stored(run.path, name))[best]
        comparison = fedsim.compare([run], metric=name, choice="best-on-validation")
        assert comparison.tables[name]["mean"].tolist() == [expected]
        assert stored(run.path, name) == stored(plain.path, name)  # nothing else changes
    manifest = fedsim.data.partition.Manifest.load(run.path / "partition.npz")
    sizes = [len(manifest.client(c).validation) for c in range(8)]
    one = run.client_values("validation", "generic/accuracy", last=True)
    assert len(one) == sum(size > 0 for size in sizes)


def test_costs_to_a_target(made: Path) -> None:
    target = 0.3
    comparison = fedsim.compare(str(made), metric="generic/accuracy", target=target)
    row = comparison.tables["generic/accuracy"].set_index("run").loc["apfl"]
    rounds, transferred = [], []
    for seed in (0, 1, 2):
        folder = made / f"apfl/seed-{seed}"
        reached = [r for r, v in stored(folder, "generic/accuracy") if v >= target]
        if reached:
            rounds.append(reached[0])
            sql = "SELECT sum(value) FROM metrics WHERE client IS NOT NULL AND name IN "
            sql += f"('bytes_up', 'bytes_down') AND round <= {reached[0]}"
            transferred.append(query(folder, sql)[0][0])
    assert row["reached"] == len(rounds) > 0
    assert row["rounds_to_target"] == pytest.approx(np.mean(rounds))
    assert row["bytes_to_target"] == pytest.approx(np.mean(transferred))
    assert row["seconds_to_target"] > 0


def test_other_data_and_partitions_are_refused(made: Path, tmp_path: Path) -> None:
    changes = {"partition": {"name": "iid", "clients": 8}}
    other = fedsim.run(tiny(name="other", rounds=1, **changes), out=tmp_path)
    with pytest.raises(InputError, match="have different partitions of the data"):
        fedsim.compare([made, other.path])
    allowed = fedsim.compare([made, other.path], different_data=True)
    assert "runs of different lengths: 1, 4 rounds" in str(allowed)
    share = fedsim.run(tiny(name="half", dataset={"share": 0.5}, rounds=1), out=tmp_path)
    with pytest.raises(InputError, match=r"have different data \(dataset\.share\)"):
        fedsim.compare([made, share.path])


def test_partitions_of_other_seeds_are_refused_by_their_settings(
    made: Path, tmp_path: Path
) -> None:
    """The manifests of two seeds differ anyway; what tells partitions apart are the options."""
    curves = {"test/generic/accuracy": [0.5]}
    partition = {"alpha": 100.0}
    write_run(made, tmp_path, "one", 0, curves)
    write_run(made, tmp_path, "two", 1, curves, partition=partition, client={"lr": 0.2})
    text = r"have different partitions of the data \(partition\.alpha: 100\.0 and 1\.0\); compare"
    with pytest.raises(InputError, match=text):
        fedsim.compare(tmp_path)
    assert len(fedsim.compare(tmp_path, different_data=True).groups) == 2
    (tmp_path / "two").rename(tmp_path.parent / "gone")
    write_run(made, tmp_path, "three", 1, curves, client={"lr": 0.2})
    assert len(fedsim.compare(tmp_path).groups) == 2


def test_one_partition_from_two_files_is_one_partition(made: Path, tmp_path: Path) -> None:
    curves = {"test/generic/accuracy": [0.5]}
    for seed, place in enumerate("ab"):
        section = {"name": "file", "path": f"{place}.npz", "clients": 8}
        write_run(made, tmp_path, place, seed, curves, partition=section, client={"lr": seed + 0.1})
    for place in "ab":  # options that a partition from a file does not have
        config = tmp_path / place / f"seed-{'ab'.index(place)}/config.yaml"
        config.write_text(config.read_text().replace("  alpha: 1.0\n", ""))
    assert len(fedsim.compare(tmp_path).groups) == 2
    # By a file or drawn: the same samples of the same seed are the same partition.
    write_run(made, tmp_path, "drawn", 0, curves)
    assert len(fedsim.compare([tmp_path / "a", tmp_path / "drawn"]).groups) == 2


def test_same_names_are_told_apart(tmp_path: Path) -> None:
    one = fedsim.run(tiny(rounds=1), out=tmp_path / "a")
    two = fedsim.run(tiny(rounds=1, strategy={"name": "fedper"}), out=tmp_path / "b")
    three = fedsim.run(tiny(rounds=1, client={"lr": 0.2}), out=tmp_path / "c")
    four = fedsim.run(tiny(rounds=1, client={"lr": 0.2, "epochs": 2}), out=tmp_path / "d")

    def labels(*runs: fedsim.Run) -> list[str]:
        return [g.label for g in fedsim.compare(runs).groups]

    assert labels(one, two) == ["tiny (fedavg)", "tiny (fedper)"]
    assert labels(one, three) == ["tiny (client.lr=0.1)", "tiny (client.lr=0.2)"]
    assert labels(one, three, four) == [
        "tiny (client.epochs=1, client.lr=0.1)",
        "tiny (client.epochs=1, client.lr=0.2)",
        "tiny (client.epochs=2, client.lr=0.2)",
    ]
    assert len(set(labels(one, two, three, four))) == 4
    again = fedsim.run(tiny(rounds=1), out=tmp_path / "e")
    with pytest.raises(InputError, match="are the same setting and seed; leave one out"):
        fedsim.compare([one, again])


def test_two_settings_in_one_folder_have_their_own_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = fedsim.run(tiny(rounds=2), seed=0, out=tmp_path)
    two = fedsim.run(tiny(rounds=2, client={"lr": 0.001}), seed=1, out=tmp_path)
    assert one.path.parent == two.path.parent
    assert main(["compare", str(tmp_path / "tiny"), "--metric", "generic/accuracy"]) == 0
    text = capsys.readouterr().out
    numbers = [stored(run.path, "generic/accuracy")[-1][1] for run in (one, two)]
    assert numbers[0] != numbers[1]
    for lr, value in zip((0.1, 0.001), numbers, strict=True):
        assert re.search(rf"^tiny \(client.lr={lr}\) +1 +{100 * value:.2f} ", text, re.MULTILINE)
    assert "tiny (client.lr=0.1) has no run of seed 1" in text


def test_labels_are_never_the_same(made: Path, tmp_path: Path) -> None:
    """Not even where the settings read the same, or another run has the name already."""
    curves = {"test/generic/accuracy": [0.5]}
    for out, rate in (("a", 0.1), ("b", 0.2)):
        write_run(made, tmp_path / out, "m", 0, curves, client={"lr": rate}, model={"hidden": [8]})
    write_run(made, tmp_path / "c", "m", 0, curves, strategy={"name": "fedper"})
    write_run(made, tmp_path / "d", "m", 0, curves, strategy={"name": "fedprox", "mu": 0.5})
    comparison = fedsim.compare([tmp_path / x for x in "abcd"])
    labels = [g.label for g in comparison.groups]
    assert len(set(labels)) == 4
    assert comparison.tables["generic/accuracy"]["run"].tolist() == labels
    groups = [Group("m (x=1)", []), *(Group("m", g.runs) for g in comparison.groups[:2])]
    for group, value in zip(groups, ("q", "1", 1), strict=True):
        group.__dict__["settings"] = {"x": value, "strategy.name": "fedavg"}
    for group in groups[:1]:
        group.runs = comparison.groups[0].runs
    tell_apart(groups)
    assert [g.label for g in groups] == ["m (x=1)", "m (x=1) #2", "m (x=1) #3"]


def test_damaged_unfinished_and_foreign_folders_are_left_out(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    shutil.copytree(made / "fedavg", out / "fedavg")
    shutil.copytree(made / "apfl", out / "apfl")
    (out / "apfl/seed-0/metrics.db").write_bytes(b"no database at all" * 100)
    status = json.loads((out / "apfl/seed-1/status.json").read_text())
    (out / "apfl/seed-1/status.json").write_text(json.dumps({**status, "status": "failed"}))
    shutil.copytree(made / "fedavg", out / "again")
    (out / "again/seed-0/metrics.db").unlink()
    (out / "again/seed-1/metrics.db").write_bytes(b"")
    (out / "again/seed-2/partition.npz").write_text("junk")
    (out / "notes").mkdir()
    (out / "notes/todo.txt").write_text("buy milk")
    comparison = fedsim.compare(f"{out}/*")
    told = "\n".join(comparison.left_out)
    for name in (
        "apfl/seed-0",
        "apfl/seed-1 is failed after round 4",
        "notes is not a run",
        "again/seed-0/metrics.db is missing or empty, though the run has finished",
        "again/seed-1/metrics.db is missing or empty, though the run has finished",
        "again/seed-2/partition.npz is not a whole partition manifest\n",
    ):
        assert name in f"{told}\n"
    assert "pickle" not in told
    assert told in str(comparison)
    assert [len(g.runs) for g in comparison.groups] == [1, 3]
    with pytest.raises(InputError, match="no runs in"):
        fedsim.compare(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--metric", "generic/acuracy"], "Did you mean 'generic/accuracy'"),
        (["--reference", "fedpr"], "one of apfl, fedavg, fedper, got 'fedpr'.*'fedper'"),
        (["--out", "report.pdf"], "a report's name must end in .html"),
        (["--out", "nowhere/report.html"], "there is no folder nowhere"),
        (["--target", "2"], r"target must be a number in 0\.\.1, as 0\.9, got 2"),
    ],
)
def test_bad_options(options: list[str], text: str, made: Path, capsys: Any) -> None:
    assert main(["compare", str(made), *options]) == 2
    out, err = capsys.readouterr()
    assert re.search(text, err)
    assert out == ""
