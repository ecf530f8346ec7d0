"""Screening by hand: what is dropped, what is clipped to what, when a round has too few left."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fedsim.client import GroupUpdate
from fedsim.config.experiment import Screening
from fedsim.engine.jobs import Failure, Report, RoundLog
from fedsim.engine.screening import RoundScreen, UpdateScreen
from fedsim.errors import RunFailed
from fedsim.params import Layout, Params, Rows


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def screened(update: Any, weight: Any = 3.0, **settings: Any) -> Report:
    """Return the report of client 4, who was sent a = (1, 2) and must send a."""
    report = Report(4, weight=weight, update=update)
    screen = UpdateScreen(Screening(**settings), frozenset({"a"}))
    screen.screen(report, {"a": vector(1, 2), "config": {"server-round": 1}})
    return report


@pytest.mark.parametrize(
    ("update", "weight", "text"),
    [
        ([1], 3.0, "Update.tensors is a list, expected a dict"),
        ({"b": vector(1, 2)}, 3.0, "missing keys ['a']"),
        ({"a": vector(1, 2)}, 0.0, "weight must be positive and finite, got 0.0"),
        ({"a": vector(1, 2)}, math.nan, "weight must be positive and finite, got nan"),
        ({"a": vector(1, 2)}, "many", "weight must be positive and finite, got 'many'"),
        ({"a": vector(1, 2, 3)}, 3.0, "wrong shape of 'a': (3,), expected (2,)"),
        ({"a": vector(1, math.nan)}, 3.0, "not finite: 1 of 2 elements of 'a' are NaN or infinite"),
        ({"a": vector(4, 6)}, 3.0, "norm 5 of the change exceeds screening.max_norm = 4.5"),
    ],
)
def test_what_is_dropped(update: Any, weight: Any, text: str) -> None:
    report = screened(update, weight, max_norm=4.5)
    assert report.failure is not None
    assert report.failure.kind == "screened"
    assert report.failure.text == f"client 4: {text}"


def test_what_passes_is_left_alone() -> None:
    # (4, 6) - (1, 2) has the norm 5; further keys are the method's own business.
    update = {"a": vector(4, 6), "own": vector(1, 2, 3)}
    report = screened(update, max_norm=5.0)
    assert (report.failure, report.note) == (None, None)
    assert report.update is update


def test_a_change_is_clipped_to_the_bound() -> None:
    report = screened({"a": vector(4, 6)}, max_norm=2.5, policy="clip")
    assert report.failure is None
    assert report.update is not None
    assert report.update["a"].tolist() == [2.5, 4.0]  # half of the way from (1, 2) to (4, 6)
    assert report.note == "client 4: clipped: norm 5 of the change exceeds screening.max_norm = 2.5"


def test_who_failed_is_not_judged_again() -> None:
    report = Report(4, failure=Failure("raised", "why"))
    UpdateScreen(Screening(), frozenset({"a"})).screen(report, {"a": vector(1)})
    assert report.failure == Failure("raised", "why")


def test_a_group_is_admitted_where_no_update_can_exceed_the_bound() -> None:
    params = Params(Layout(("w",), ((2,),), 1), vector(3, 4))
    rows = Rows(params, torch.tensor([[3.0, 4.0], [6.0, 8.0]]))
    update = GroupUpdate({"model": rows}, [1.0, 1.0], [{}, {}], [None, None])
    payload = {"model": params}
    # The norms 5 and 10, and 5 of what was sent.
    for bound, admitted in ((15.0, True), (14.9, False)):
        screen = UpdateScreen(Screening(max_norm=bound), frozenset({"model"}))
        assert screen.admits(update, payload) is admitted
    assert not UpdateScreen(Screening(), frozenset({"model", "h"})).admits(update, payload)


def answers(*updates: dict[str, torch.Tensor]) -> list[Report]:
    return [Report(client, weight=1.0, update=update) for client, update in enumerate(updates)]


def test_who_differs_from_most_is_dropped() -> None:
    reports = answers({"a": vector(1)}, {"a": vector(1, 2)}, {"a": vector(2)}, {"b": vector(1)})
    log = RoundLog(reports)
    RoundScreen(Screening()).compare(reports, log)
    assert [r.client for r in log.failures] == [1, 3]
    assert [r.client for r in log.survivors()] == [0, 2]
    texts = {r.failure.text.partition(": ")[2] for r in log.failures if r.failure}
    assert texts == {"its update has other keys or shapes than those of most clients"}


def test_clients_that_may_differ_are_not_compared() -> None:
    reports = answers({"a": vector(1)}, {"b": vector(1, 2)})
    log = RoundLog(reports)
    RoundScreen(Screening(), uniform=False).compare(reports, log)
    assert log.failures == []


@pytest.mark.parametrize(
    ("least", "cohort", "lost", "enough"),
    [
        (1, 5, 4, True),
        (1, 5, 5, False),
        (3, 5, 2, True),
        (3, 5, 3, False),
        (0.5, 5, 2, True),  # half of 5, rounded up, is 3
        (0.5, 5, 3, False),
        (4, 2, 0, True),  # a round may have fewer clients than that
    ],
)
def test_survivors(least: int | float, cohort: int, lost: int, enough: bool) -> None:
    failures = [Report(c, failure=Failure("raised", f"client {c}")) for c in range(lost)]
    screen = RoundScreen(Screening(min_survivors=least))
    if enough:
        screen.check_survivors(cohort, failures)
        return
    with pytest.raises(RunFailed, match=f"only {cohort - lost} of {cohort} clients"):
        screen.check_survivors(cohort, failures)


def test_abort_ends_the_run_at_the_first_loss() -> None:
    screen = RoundScreen(Screening(policy="abort"))
    screen.check_survivors(3, [])
    with pytest.raises(RunFailed, match=r"^why \(screening.policy is abort\)$"):
        screen.check_survivors(3, [Report(1, failure=Failure("raised", "why"))])
