"""What the pictures of a comparison show, and where."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fedsim
from fedsim.report.figures import matrix_figure
from fedsim.report.plots import bars_figure, clients_figure, curves_figure
from tests.support.written import query, stored, write_run


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
    assert labels == [
        "round",
        "transferred by all clients [MB]",
        "virtual seconds, a round's clients all at once [s]",
    ]
    assert all(tick == round(tick) for tick in axes[0].get_xticks())
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

    table = pd.DataFrame([[0.5, 0.25], [1.0, math.nan]], ["client 0", "client 1"], ["a", "b"])
    axes = matrix_figure(table, "client", "domain", "accuracy").axes[0]
    assert [t.get_text() for t in axes.texts] == ["50", "25", "100"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("domain", "client")


def test_curves_stand_over_virtual_seconds(made: Path, tmp_path: Path) -> None:
    """Means over two seeds; t(0.975, 1) is 12.7062, so that .5 and .7 have .6 +- 1.27062."""
    for seed, accuracies in enumerate(([0.5, 0.80], [0.7, 0.82])):
        curves = {
            "test/generic/accuracy": accuracies,
            "train/virtual_seconds": [2.0 + seed, 4.0],
            "train/seconds": [50.0, 50.0],
            "train/bytes_up": [1e6, 1e6],
            "train/bytes_down": [2e6, 3e6],
        }
        write_run(made, tmp_path, "m", seed, curves)
    groups = fedsim.compare(tmp_path).groups
    by_round, by_bytes, by_seconds = curves_figure(groups, "generic/accuracy").axes
    assert [np.asarray(a.lines[0].get_xdata()).tolist() for a in (by_round, by_bytes)] == [
        [1, 2],
        [3.0, 7.0],
    ]
    assert np.asarray(by_seconds.lines[0].get_xdata()).tolist() == [2.5, 6.5]
    low, high = by_round.get_ylim()
    assert (low, high) == (0.0, 100.0)  # the band of round 1 is wider than what can be
    assert all(tick == round(tick) for tick in by_round.get_xticks())


def test_bands_are_within_the_picture(made: Path, tmp_path: Path) -> None:
    """Of .60, .61, .62 the band is .61 +- 4.302653 * .01 / sqrt 3 = .61 +- .024841."""
    for seed, accuracy in enumerate((0.60, 0.61, 0.62)):
        curves = {"test/generic/accuracy": [accuracy, 0.61], "test/generic/loss": [accuracy, 0.61]}
        write_run(made, tmp_path, "m", seed, curves)
    groups = fedsim.compare(tmp_path).groups
    for name, scale in (("generic/accuracy", 100), ("generic/loss", 1)):
        axes = curves_figure(groups, name).axes[0]
        band = np.concatenate([p.vertices for p in axes.collections[0].get_paths()])[:, 1]
        assert band.min() == pytest.approx(scale * 0.585159, abs=1e-4)
        assert band.max() == pytest.approx(scale * 0.634841, abs=1e-4)
        low, high = axes.get_ylim()
        assert low < band.min() < band.max() < high


def test_a_violin_has_its_median_and_the_rounds_of_the_choice(made: Path, tmp_path: Path) -> None:
    own = [[0.4, 0.4, 0.4], [0.9, 0.1, 0.2]]
    curve = {"test/clients/generic/accuracy": [0.4, 0.4]}
    write_run(made, tmp_path, "m", 0, curve, {"generic/accuracy": own})
    comparison = fedsim.compare(tmp_path)

    def drawn(choice: str) -> tuple[float, list[float]]:
        axes = clients_figure(comparison.groups, "clients/generic/accuracy", choice).axes[0]
        line = axes.collections[-1].get_segments()[0]  # type: ignore[attr-defined]
        points = np.asarray(axes.lines[0].get_ydata(), float)
        return line[0][1], sorted(points.tolist())

    median, points = drawn("last")
    assert median == pytest.approx(20)  # the mean is 40
    assert points == pytest.approx([10, 20, 90])
    median, points = drawn("mean-of-last-2")
    assert median == pytest.approx(30)
    assert points == pytest.approx([25, 30, 65])
    figures = fedsim.compare(tmp_path, choice="mean-of-last-2").figures()
    axes = figures["clients/generic/accuracy of each client"].axes[0]
    shown = np.asarray(axes.lines[0].get_ydata(), float)
    assert sorted(shown.tolist()) == pytest.approx(points)


def test_bars_have_the_intervals_of_the_table(made: Path, tmp_path: Path) -> None:
    """Of .2, .4, .6 the interval is .4 +- 4.302653 * .2 / sqrt 3 = .4 +- .496828."""
    for seed, value in enumerate((0.2, 0.4, 0.6)):
        names = [f"test/generic/accuracy_{shots}" for shots in ("many", "medium", "few")]
        write_run(made, tmp_path, "m", seed, {name: [value] for name in names})
    names = [f"generic/accuracy_{shots}" for shots in ("many", "medium", "few")]
    comparison = fedsim.compare(tmp_path, metric=names)
    axes = bars_figure(comparison, names, ("many", "medium", "few")).axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([40.0] * 3)
    for lines in axes.collections:
        (low, high) = lines.get_segments()[0][:, 1]  # type: ignore[attr-defined]
        assert (low, high) == pytest.approx((40 - 49.6828, 40 + 49.6828), abs=1e-3)


def test_long_names_end_at_their_items(made: Path, tmp_path: Path) -> None:
    labels = [f"a-method-with-a-long-name-{i}" for i in range(14)]
    for i, label in enumerate(labels):
        names = ["generic/accuracy_many", "clients/generic/accuracy"]
        curves = {f"test/{name}": [0.5] for name in names}
        own = {"generic/accuracy": [[0.4, 0.5, 0.7]]}
        write_run(made, tmp_path, label, 0, curves, own, client={"lr": 0.1 + i})
    comparison = fedsim.compare(tmp_path, metric=["generic/accuracy_many", names[1]])
    table = pd.DataFrame(np.eye(14), labels, labels)
    for figure in (
        clients_figure(comparison.groups, "clients/generic/accuracy"),
        bars_figure(comparison, ["generic/accuracy_many"], ["many"]),
        matrix_figure(table, "client", "domain", "accuracy"),
    ):
        axes = figure.axes[0]
        figure.canvas.draw()
        shown = axes.get_xticklabels()
        assert sorted(t.get_text() for t in shown) == sorted(labels)
        for i, label in enumerate(shown):
            assert (label.get_ha(), label.get_rotation_mode()) == ("right", "anchor")
            at = axes.transData.transform((i, 0))[0]
            assert label.get_window_extent().x1 == pytest.approx(at, abs=12)
