"""Comparisons: the same numbers everywhere, and refusals of what cannot be compared."""

from __future__ import annotations

import json
import math
import re
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedsim
import fedsim.data.partition
from fedsim.cli import main
from fedsim.errors import InputError
from fedsim.report.plots import matrix_figure
from tests.runs import tiny

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FedAvg and APFL with three seeds, FedPer with two."""
    out = tmp_path_factory.mktemp("made")
    for seed in (0, 1, 2):
        for name in ("fedavg", "apfl", "fedper"):
            if (name, seed) != ("fedper", 2):
                fedsim.run(tiny(name=name, strategy={"name": name}, rounds=4), seed=seed, out=out)
    return out


def query(folder: Path, sql: str) -> list[Any]:
    with sqlite3.connect(folder / "metrics.db") as db:
        return db.execute(sql).fetchall()


def stored(folder: Path, name: str) -> list[tuple[int, float]]:
    """Return round and value of a global test metric, by plain SQL."""
    return query(
        folder,
        "SELECT round, value FROM metrics WHERE client IS NULL AND split = 'test' "
        f"AND name = '{name}' ORDER BY round",
    )


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


def test_same_names_are_told_apart(tmp_path: Path) -> None:
    one = fedsim.run(tiny(rounds=1), out=tmp_path / "a")
    two = fedsim.run(tiny(rounds=1, strategy={"name": "fedper"}), out=tmp_path / "b")
    three = fedsim.run(tiny(rounds=1, client={"lr": 0.2}), out=tmp_path / "c")
    assert [g.label for g in fedsim.compare([one, two]).groups] == [
        "tiny (fedavg)",
        "tiny (fedper)",
    ]
    labels = [g.label for g in fedsim.compare([one, three]).groups]
    assert labels == [str(tmp_path / "a/tiny"), str(tmp_path / "c/tiny")]
    again = fedsim.run(tiny(rounds=1), out=tmp_path / "d")
    with pytest.raises(InputError, match="are the same setting and seed; leave one out"):
        fedsim.compare([one, again])


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


def test_pictures_have_names_and_units(made: Path) -> None:
    figures = fedsim.compare(str(made)).figures()
    assert set(figures) == {
        "generic/accuracy by round, bytes and seconds",
        "clients/generic/accuracy by round, bytes and seconds",
        "clients/personal/accuracy by round, bytes and seconds",
        "clients/deployed/accuracy by round, bytes and seconds",
        "clients/deployed/accuracy of each client",
    }
    axes = figures["generic/accuracy by round, bytes and seconds"].axes
    assert axes[0].get_ylabel() == "generic/accuracy [%]"
    labels = [a.get_xlabel() for a in axes]
    assert labels == ["round", "transferred by all clients [MB]", "training time [s]"]
    line = next(ln for ln in axes[0].lines if ln.get_label() == "fedavg")
    curves = [stored(made / f"fedavg/seed-{s}", "generic/accuracy") for s in (0, 1, 2)]
    means = [100 * np.mean([c[i][1] for c in curves]) for i in range(4)]
    assert np.asarray(line.get_ydata(), float) == pytest.approx(means)
    sent = query(
        made / "fedavg/seed-0",
        "SELECT sum(value) FROM metrics WHERE client IS NOT NULL "
        "AND name IN ('bytes_up', 'bytes_down')",
    )[0][0]
    assert axes[1].lines[1].get_xdata()[-1] == pytest.approx(sent / 1e6)


def test_matrix_names_rows_and_columns() -> None:
    import pandas as pd

    table = pd.DataFrame([[0.5, 0.25], [1.0, math.nan]], ["client 0", "client 1"], ["a", "b"])
    axes = matrix_figure(table, "client", "domain", "accuracy").axes[0]
    assert [t.get_text() for t in axes.texts] == ["50", "25", "100"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("domain", "client")


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no chromium or chrome is installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(width: int, scheme: str, made: Path, tmp_path: Path) -> None:
    """Not empty, no console error, no sideways scrolling of the page, both colour schemes."""
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    fedsim.compare(str(made)).to_html(page)
    probe = tmp_path / "probe.html"
    frame = f"<iframe id=f src=report.html style='width:{width}px;height:9000px;border:0'></iframe>"
    probe.write_text(
        f"<body style='margin:0'>{frame}<script>onload = () => {{ const r = f.contentDocument"
        ".documentElement; document.title = 'wide ' + r.scrollWidth; }</script>"
    )
    dark = "--blink-settings=preferredColorScheme=" + {"dark": "0", "light": "1"}[scheme]
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", dark,
        f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files",
        "--enable-logging=stderr", "--v=0",
    ]  # fmt: skip
    url = page.as_uri()
    size = f"--window-size={width},3000"
    taken = subprocess.run(
        [*command, size, f"--screenshot={shot}", url], capture_output=True, text=True, timeout=60
    )
    assert "CONSOLE" not in taken.stderr
    pixels = np.asarray(Image.open(shot).convert("L"))
    assert pixels.shape[1] == width
    assert len(np.unique(pixels)) > 50
    corner = int(pixels[2, 2])
    assert corner < 60 if scheme == "dark" else corner > 240
    dom = subprocess.run(
        [*command, "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=60
    )
    found = re.search(r"<title>wide (\d+)</title>", dom.stdout)
    assert found is not None
    assert int(found[1]) <= width
    text = page.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "http://" not in text.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_two_hundred_runs_are_read_in_seconds(made: Path, tmp_path: Path) -> None:
    """200 runs of 200 rounds and 100 clients; the time is printed, the memory asserted."""
    import resource

    from fedsim.runs.record import Recorder

    rng = np.random.default_rng(0)
    for run in range(200):
        folder = tmp_path / f"method{run // 10}/seed-{run % 10}"
        shutil.copytree(made / "fedavg/seed-0", folder, ignore=shutil.ignore_patterns("metrics*"))
        config = (folder / "config.yaml").read_text()
        config = config.replace("name: fedavg\n", f"name: method{run // 10}\n", 1)
        config = re.sub(r"\nseed: 0\n", f"\nseed: {run % 10}\n", config)
        config = config.replace("\nrounds: 4\n", "\nrounds: 200\n")
        config = re.sub(r"lr: 0\.1", f"lr: {0.1 + run // 10}", config)
        (folder / "config.yaml").write_text(config)
        recorder = Recorder(folder / "metrics.db")
        clients = list(range(100))
        for round in range(1, 201):
            scores = {("test", "generic/accuracy"): rng.random(), ("train", "seconds"): 0.1}
            scores |= {("train", "bytes_up"): 1e6, ("train", "bytes_down"): 1e6}
            rows = [
                ("test", "generic/accuracy", clients, rng.random(100).tolist()),
                ("train", "train_loss", clients, rng.random(100).tolist()),
            ]
            recorder.write_round(round, scores, rows)
        recorder.close()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    comparison = fedsim.compare(str(tmp_path))
    str(comparison)
    seconds = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    print(f"{seconds:.2f} s, {grown:.2f} GiB more")
    assert len(comparison.groups) == 20
    assert grown < 1.0
