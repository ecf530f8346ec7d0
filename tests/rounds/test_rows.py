"""The time of a round as if its clients trained all at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import fedsim
from fedsim.engine.jobs import Failure, Report, RoundLog
from fedsim.rounds.journal import RoundResult
from fedsim.rounds.loop import RoundLoop
from fedsim.rounds.rows import round_costs
from fedsim.rounds.server import OwnServer
from tests.support.runs import tiny


def test_the_slowest_client_and_the_servers_own_time() -> None:
    """Of 12 s without evaluation clients trained 8 one after another, the slowest 5."""
    log = RoundLog(
        [
            Report(0, seconds=2.0, bytes_up=10),
            Report(1, seconds=5.0, bytes_up=20),
            Report(2, seconds=9.0, failure=Failure("raised", "text")),
        ],
        bytes_down={0: 100, 1: 200, 2: 300},
        seconds=8.0,
    )
    log.failures = log.reports[2:]
    assert round_costs(log, 20.0, 12.0) == {
        "clients": 2.0,
        "bytes_down": 600.0,
        "bytes_up": 30.0,
        "train_seconds": 8.0,
        "seconds": 20.0,
        "virtual_seconds": 9.0,  # 5 + (12 - 8)
    }
    alone = round_costs(RoundLog(), 3.0, 2.5)
    assert alone["virtual_seconds"] == 2.5  # a round of the server alone


def test_evaluation_is_left_out_and_aggregation_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds that hold on any machine, as what sleeps is known."""
    evaluate, take = RoundLoop._evaluate, OwnServer.take

    def slow_evaluate(loop: RoundLoop, result: RoundResult) -> None:
        time.sleep(0.3)
        evaluate(loop, result)

    def slow_take(server: OwnServer, round: int, log: RoundLog) -> dict[str, float]:
        time.sleep(0.2)
        return take(server, round, log)

    monkeypatch.setattr(RoundLoop, "_evaluate", slow_evaluate)
    monkeypatch.setattr(OwnServer, "take", slow_take)
    run = fedsim.run(tiny(rounds=2), out=tmp_path)
    slowest = run.client_values("train", "seconds").groupby("round")["value"].max()
    virtual, seconds, trained = (
        run.values("train", name).set_index("round")["value"]
        for name in ("virtual_seconds", "seconds", "train_seconds")
    )
    assert virtual.index.tolist() == [1, 2]
    assert (virtual >= slowest + 0.2).all()
    assert (virtual <= slowest + seconds - trained - 0.3).all()
