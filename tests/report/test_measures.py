"""The numbers of a table, from runs with chosen values, against values worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.evaluate.metric_names import SHARE
from fedsim.report.measures import worst_tenth
from fedsim.report.text import rows_of
from tests.support.written import write_run

ACCURACY = "test/generic/accuracy"


def one_round(made: Path, out: Path, name: str, values: list[float]) -> None:
    for seed, value in enumerate(values):
        write_run(made, out, name, seed, {ACCURACY: [value]}, client={"lr": 0.1 + len(name)})


def test_means_intervals_pairs_and_holm(made: Path, tmp_path: Path) -> None:
    """With 3 pairs p of the two-sided t test is 1 - t / sqrt(t^2 + 2); t(0.975, 2) is 4.302653.

    Of `a` the differences .10, .12, .08 have t = .1 / (.02 / sqrt 3) = 8.6603, p = .013072; of
    `bb` .02, .01, .03 have t = 3.4641, p = .074180; of `ccc` .1, .101, .099 have p = .0000333.
    """
    one_round(made, tmp_path, "fedavg", [0.50, 0.60, 0.70])
    one_round(made, tmp_path, "a", [0.60, 0.72, 0.78])
    one_round(made, tmp_path, "bb", [0.52, 0.61, 0.73])
    one_round(made, tmp_path, "ccc", [0.600, 0.701, 0.799])
    comparison = fedsim.compare(tmp_path, metric="generic/accuracy")
    table = comparison.tables["generic/accuracy"].set_index("run")
    assert table["mean"].to_dict() == pytest.approx(
        {"a": 0.70, "bb": 0.62, "ccc": 0.70, "fedavg": 0.60}
    )
    a = table.loc["a"]
    assert (a["low"], a["high"]) == pytest.approx((0.472326, 0.927674), abs=1e-6)
    assert a["difference"] == pytest.approx(0.1)
    ends = (a["difference_low"], a["difference_high"])
    assert ends == pytest.approx((0.050317, 0.149683), abs=1e-6)
    assert table["p"][["a", "bb"]].tolist() == pytest.approx([0.013072, 0.074180], abs=1e-6)
    assert table["p"]["ccc"] == pytest.approx(1 / 30_001, rel=1e-3)
    corrected = [2 * 0.013072, 0.074180, 3 / 30_001]  # the smallest times 3, the next times 2
    assert table["p_holm"][["a", "bb", "ccc"]].tolist() == pytest.approx(corrected, abs=2e-6)
    assert table.loc["fedavg", ["difference", "p", "p_holm"]].isna().all()
    _, rows = rows_of(comparison.tables["generic/accuracy"], SHARE)
    assert {row[0]: row[1:] for row in rows} == {
        "a": ["3", "70.00", "47.23 .. 92.77", "+10.00", "+5.03 .. +14.97", "0.026"],
        "bb": ["3", "62.00", "35.83 .. 88.17", "+2.00", "-0.48 .. +4.48", "0.074"],
        "ccc": ["3", "70.00", "45.28 .. 94.72", "+10.00", "+9.75 .. +10.25", "< 0.001"],
        "fedavg": ["3", "60.00", "35.16 .. 84.84", "-", "-", "-"],
    }


def test_the_worst_tenth_and_the_spread(made: Path, tmp_path: Path) -> None:
    """Of 20 clients two are a tenth; their variance is (2 (.4^2) + 2 (.2^2)) / 20 = .02."""
    values = [0.5] * 8 + [0.9, 0.1] + [0.5] * 8 + [0.3, 0.7]
    write_run(
        made,
        tmp_path,
        "fedavg",
        0,
        {"test/clients/generic/accuracy": [0.5], "test/clients/generic/loss": [0.5]},
        {"generic/accuracy": [values], "generic/loss": [values]},
    )
    names = ["clients/generic/accuracy", "clients/generic/loss"]
    tables = fedsim.compare(tmp_path, metric=names).tables
    for name, worst in zip(names, (0.2, 0.8), strict=True):  # of losses the highest
        row = tables[name].iloc[0]
        assert row["worst_10"] == pytest.approx(worst)
        assert row["spread"] == pytest.approx(math.sqrt(0.02))
    _, rows = rows_of(tables[names[0]], SHARE)
    assert rows[0][-2:] == ["20.00", "14.14"]


def test_a_tenth_is_rounded_up_and_a_loss_without_a_number_is_the_worst() -> None:
    assert worst_tenth(np.arange(21.0), lower=False) == 1.0  # of 0, 1, 2
    assert worst_tenth(np.arange(70.0), lower=False) == 3.0  # of 0..6; 0.1 * 70 is above 7
    assert worst_tenth(np.arange(70.0), lower=True) == 66.0
    assert worst_tenth(np.array([0.4]), lower=False) == 0.4
    assert math.isnan(worst_tenth(np.array([0.4, math.nan, 0.1]), lower=True))


def test_the_clients_are_those_of_the_rounds_that_count(made: Path, tmp_path: Path) -> None:
    """The best round on validation samples is 2; client means of rounds 3 and 4 are .55, .45."""
    own = [[0.1, 0.4], [0.2, 0.9], [0.3, 0.7], [0.8, 0.2]]
    curve = [0.25, 0.55, 0.5, 0.5]
    run = write_run(
        made,
        tmp_path,
        "fedavg",
        0,
        {
            "test/clients/generic/accuracy": curve,
            "validation/clients/generic/accuracy": [0.1, 0.6, math.nan, 0.6],
        },
        {"generic/accuracy": own},
    )
    name = "clients/generic/accuracy"
    expected = {
        "last": (0.5, 0.2, 0.3),
        "mean-of-last-2": (0.5, 0.45, 0.05),
        "best-on-validation": (0.55, 0.2, 0.35),
    }
    for choice, numbers in expected.items():
        comparison = fedsim.compare([run], metric=name, choice=choice)
        row = comparison.tables[name].iloc[0]
        assert (row["mean"], row["worst_10"], row["spread"]) == pytest.approx(numbers)


def test_targets_and_best_rounds_of_losses(made: Path, tmp_path: Path) -> None:
    run = write_run(
        made,
        tmp_path,
        "fedavg",
        0,
        {
            "test/generic/loss": [2.0, 0.6, 0.4, 0.7],
            "validation/generic/loss": [0.9, 0.3, 0.5, math.nan],
            "train/bytes_up": [1, 1, 1, 1],
            "train/bytes_down": [1, 1, 1, 1],
            "train/seconds": [1, 1, 1, 1],
        },
    )
    name = "generic/loss"
    for target, at in ((0.5, 3), (0.6, 2), (1.0, 2), (2.5, 1), (0.1, None)):
        row = fedsim.compare([run], metric=name, target=target).tables[name].iloc[0]
        assert row["reached"] == (at is not None)
        assert at is None or row["rounds_to_target"] == at
    best = fedsim.compare([run], metric=name, choice="best-on-validation").tables[name]
    assert best["mean"].tolist() == [0.6]


COSTS: dict[str, list[float]] = {
    "train/seconds": [10, 20, 30, 40],
    "train/train_seconds": [1, 1, 1, 1],
    "train/virtual_seconds": [3, 4, 5, 6],
    "train/bytes_up": [100, 200, 300, 400],
    "train/bytes_down": [1000, 2000, 3000, 4000],
}


def test_costs_are_up_to_the_first_time_that_a_target_is_reached(
    made: Path, tmp_path: Path
) -> None:
    """Seed 0 is there in round 2 and leaves again, seed 1 in round 4, seed 2 never."""
    curves = ([0.1, 0.5, 0.3, 0.6], [0.1, 0.2, 0.3, 0.9], [0.1, 0.2, 0.3, 0.4])
    for seed, curve in enumerate(curves):
        write_run(made, tmp_path, "fedavg", seed, {ACCURACY: curve, **COSTS})
    comparison = fedsim.compare(tmp_path, metric="generic/accuracy", target=0.5)
    row = comparison.tables["generic/accuracy"].iloc[0]
    assert row["reached"] == 2
    assert row["rounds_to_target"] == 3.0  # of 2 and 4
    assert row["bytes_to_target"] == 7150  # of 300 + 3000 and 1000 + 10000
    assert row["seconds_to_target"] == 65  # of 30 and 100
    assert row["virtual_seconds_to_target"] == 12.5  # of 7 and 18
    heads, rows = rows_of(comparison.tables["generic/accuracy"], SHARE)
    assert heads[-5:] == ["reached", "rounds", "bytes", "seconds", "virtual seconds"]
    assert rows[0][-5:] == ["2/3", "3.0", "7.15 kB", "65", "12.5"]
    assert comparison.remarks == []


@pytest.mark.parametrize("gone", ["all", "first"])
def test_runs_of_before_virtual_seconds(gone: str, made: Path, tmp_path: Path) -> None:
    """Also one that a later version has resumed: a sum without its first rounds would be wrong."""
    import sqlite3

    costs = {k: v for k, v in COSTS.items() if gone == "first" or "virtual" not in k}
    curve = [0.1, 0.5, 0.3, 0.6]
    run = write_run(made, tmp_path, "old", 0, {ACCURACY: curve, **costs})
    if gone == "first":
        with sqlite3.connect(run.path / "metrics.db") as db:
            query = "SELECT id FROM series WHERE name = 'virtual_seconds'"
            db.execute(f"DELETE FROM globals WHERE round = 1 AND series = ({query})")
    comparison = fedsim.compare(tmp_path, metric="generic/accuracy", target=0.5)
    row = comparison.tables["generic/accuracy"].iloc[0]
    assert row["seconds_to_target"] == 30
    assert math.isnan(row["virtual_seconds_to_target"])
    told = "old has runs without virtual seconds, of an earlier version"
    assert comparison.remarks == [told]
    assert told in str(comparison)
    axes = comparison.figures()["generic/accuracy by round, bytes and seconds"].axes[2]
    assert axes.get_xlabel() == "time on the runs' own machines [s]"
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == [10, 30, 60, 100]


def test_choices_are_not_silent(made: Path, tmp_path: Path) -> None:
    curve = [0.1, 0.5, 0.3, 0.6]
    often = write_run(made, tmp_path, "often", 0, {ACCURACY: curve, **COSTS})
    rarely = write_run(
        made, tmp_path, "rarely", 0, {ACCURACY: curve, **COSTS}, evaluation={"every": 3}
    )

    def told(runs: list[fedsim.Run], **options: Any) -> list[str]:
        comparison = fedsim.compare(runs, metric="generic/accuracy", **options)
        assert all(text in str(comparison) for text in comparison.remarks)
        return comparison.remarks

    assert told([often, rarely]) == []
    assert told([often], choice="mean-of-last-4", target=0.5) == []
    assert told([often], choice="mean-of-last-100") == [
        "often has 4 evaluations only: mean-of-last-100 is the mean of these"
    ]
    assert told([often, rarely], target=0.5) == [
        "evaluated every 1, 3 rounds: what a target took is only as exact as that"
    ]
    assert told([often, rarely], choice="mean-of-last-2") == [
        "evaluated every 1, 3 rounds: mean-of-last-2 is of other rounds in each"
    ]
