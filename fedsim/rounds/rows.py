"""The rows of metrics.db: measurements of a round, of the run and of its clients."""

from __future__ import annotations

from fedsim.engine.jobs import Report, RoundLog
from fedsim.evaluate.metric_names import Metric, Split
from fedsim.runs.recorder import ClientRows


def client_means(log: RoundLog) -> dict[str, float]:
    """Return the weighted mean over the round's clients of each metric that all of them report."""
    good = [r for r in log.reports if r.failure is None]
    total = sum(r.weight for r in good)
    if not good or total <= 0:
        return {}
    names = set.intersection(*(set(r.measured) for r in good))
    return {
        name: sum(r.weight * r.measured[name] for r in good) / total
        for name in sorted(names - {"num-examples"})
    }


def round_costs(log: RoundLog, seconds: float, trained: float) -> dict[str, float]:
    """Return what a round took: clients that answered, bytes, and seconds of three kinds.

    ``seconds`` are those of the whole round on this machine, ``train_seconds`` those in which its
    clients trained. ``virtual_seconds`` are of a round whose clients train all at once, each on a
    worker of its own: the slowest client's, and what the server took for itself (`trained`, the
    seconds of all but evaluation, without `train_seconds`). Of clients that were trained together
    each has an equal part of their time.
    """
    slowest = max((r.seconds for r in log.reports if r.failure is None), default=0.0)
    return {
        "clients": float(len(log.reports) - len(log.failures)),
        "bytes_down": float(sum(log.bytes_down.values())),
        "bytes_up": float(sum(r.bytes_up for r in log.reports)),
        "train_seconds": log.seconds,
        "seconds": seconds,
        "virtual_seconds": slowest + max(0.0, trained - log.seconds),
    }


def train_rows(log: RoundLog) -> list[ClientRows]:
    """Return what the clients of a round reported of their training, and what they transferred."""
    good = [r for r in log.reports if r.failure is None]
    clients = [r.client for r in good]
    transfer: dict[str, list[float]] = {
        "weight": [r.weight for r in good],
        "seconds": [r.seconds for r in good],
        "bytes_down": [log.bytes_down.get(client, 0) for client in clients],
        "bytes_up": [r.bytes_up for r in good],
    }
    reported = [column for column in columns("train", good) if column[1] not in transfer]
    return reported + [("train", name, clients, values) for name, values in transfer.items()]


def columns(split: Split, reports: list[Report]) -> list[ClientRows]:
    """Return the clients' metrics as ``(split, name, clients, values)``."""
    rows: list[ClientRows] = []
    for name in dict.fromkeys(name for r in reports for name in r.measured):
        reporting = [r for r in reports if name in r.measured]
        values = [r.measured[name] for r in reporting]
        metric = Metric.of(name, split)
        rows.append((metric.split, metric.key, [r.client for r in reporting], values))
    return rows
