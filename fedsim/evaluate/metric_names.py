"""Metrics: the one place that composes their names and reads them.

    text                                   what it is
    generic/accuracy                       the server's model on the global test set
    generic/mAP50/fog                      the same, on those samples that are of the domain fog
    clients/personal/loss                  mean over clients, each with its own model and test data
    clients/personal/accuracy_on/fog       the same, on all test samples of the domain fog
    validation/clients/generic/accuracy    the same, on the clients' validation samples
    train/train_loss                       reported by training; what follows ``train/`` is free

``metrics.db`` has the split apart from the rest; tables leave out the split ``test``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

import numpy as np

SHOTS = ("many", "medium", "few")
"""Groups of classes by their number of training samples; ``accuracy_few`` is of such a group."""

Split = Literal["test", "validation", "train", "features"]
_SPLITS = {"test", "validation", "train", "features"}
_FREE = {"train", "features"}
_CLIENTS = "clients"
_ON = "_on/"
_DIRECTIONS = {"i2t", "t2i"}  # of retrieval: recall@1/i2t is a name, and i2t no domain


@dataclass(frozen=True)
class Unit:
    """How a metric is shown, and whether high values are the good ones.

    A share is in [0, 1] and shown in percent; `plain` is a number of any kind.
    """

    kind: Literal["share", "loss", "count", "seconds", "bytes", "plain"]
    higher_is_better: bool = True

    @property
    def is_share(self) -> bool:
        """Whether it is shown in percent."""
        return self.kind == "share"


SHARE, COUNT, PLAIN = Unit("share"), Unit("count"), Unit("plain")
LOSS, SECONDS, BYTES = Unit("loss", False), Unit("seconds", False), Unit("bytes", False)

_UNITS_BY_WORD = {
    **dict.fromkeys(("loss", "error", "mse", "rmse", "mae", "perplexity"), LOSS),
    "seconds": SECONDS,
    "bytes": BYTES,
    "f1": SHARE,
    **dict.fromkeys(("clients", "samples"), COUNT),
}


@dataclass(frozen=True)
class Metric:
    """What a recorded value is of.

    Attributes:
        name: as the scorer has it, such as ``accuracy``, ``accuracy_few`` or ``recall@1/i2t``.
        model: ``generic``, ``personal``, ``deployed`` or another; empty if the name says all.
        split: the samples: ``test``, ``validation``, ``train``, or ``features`` for statistics of
            features on test samples.
        domain: the domain of those samples that count; empty for all.
        clients: whether it is a mean over clients, each on its own data.
        tested_on: the domain whose test samples stand in for the clients' own; empty for none.
    """

    name: str
    model: str = ""
    split: Split = "test"
    domain: str = ""
    clients: bool = False
    tested_on: str = ""

    def __str__(self) -> str:
        """Return the name that tables show and `parse` reads."""
        return self.key if self.split == "test" else f"{self.split}/{self.key}"

    @property
    def key(self) -> str:
        """The name without the split, under which it is recorded."""
        tested_on = f"{_ON}{self.tested_on}" if self.tested_on else ""
        parts = [_CLIENTS * self.clients, self.model, self.name, self.domain]
        return "/".join(filter(None, parts)) + tested_on

    @property
    def shots(self) -> str:
        """The group of classes that it is of, one of `SHOTS`; empty for all classes."""
        group = self.name.rpartition("_")[2]
        return group if group in SHOTS else ""

    @property
    def over_all_classes(self) -> Metric:
        """The same of all classes: of ``accuracy_few`` that is ``accuracy``."""
        return replace(self, name=self.name.removesuffix(f"_{self.shots}")) if self.shots else self

    @classmethod
    def parse(cls, text: str) -> Metric:
        """Return the metric that tables show as `text`, with or without ``test/``."""
        split, _, key = text.partition("/")
        if split in _FREE and key:  # methods name these as they like
            return cls(key, split=split)  # type: ignore[arg-type]
        return cls.of(key, split) if split in _SPLITS and key else cls.of(text)  # type: ignore[arg-type]

    @classmethod
    def of(cls, key: str, split: Split = "test") -> Metric:
        """Return the metric that is reported as `key` on a split.

        A part ``validation`` of the key says that it is of that split instead.
        """
        return _metric(key, split)

    def unit(self, declared: Mapping[str, Unit] = MappingProxyType({})) -> Unit:
        """Return the unit that a scorer has `declared` for this metric.

        Of ``accuracy_few`` and ``recall@1/i2t`` it is that of ``accuracy`` and ``recall@1``. A
        metric that no scorer has declared, such as one that a client reports of its training, has
        the unit that its words tell: accuracy, recall, precision, F1 and mAP are shares; loss,
        error, MSE, RMSE, MAE and perplexity are low where they are good, and so are seconds and
        bytes; all else is a plain number, high where it is good.
        """
        stems = (self.name, self.name.partition("/")[0], self.name.rpartition("_")[0])
        units = [] if self.split in _FREE else [declared[s] for s in stems if s in declared]
        return units[0] if units else _unit_by_words(f"{self.model}/{self.name}")


def named_scores(model: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Return scores under the name of a model: ``personal`` makes ``personal/accuracy``."""
    return {Metric(name, model).key: value for name, value in scores.items()}


def on_validation(scores: Mapping[str, float]) -> dict[str, float]:
    """Return scores under names that tell them from those on test samples: ``validation/...``."""
    return {str(Metric.of(key, "validation")): value for key, value in scores.items()}


def shifted(values: Mapping[str, float], domains: Sequence[str]) -> dict[str, float]:
    """Return ``<metric>_shifted`` of a scorer's values by domain: their mean over some domains.

    A domain without a value does not count.
    """
    by_metric: dict[str, list[float]] = {}
    for key, value in values.items():
        name, domain = _name_and_domain(key)
        if domain in domains:
            by_metric.setdefault(name, []).append(value)
    return {f"{name}_shifted": float(np.mean(numbers)) for name, numbers in by_metric.items()}


@lru_cache(maxsize=4096)
def _metric(key: str, split: Split) -> Metric:
    parts = key.split("/")
    if "validation" in parts[:-1]:
        parts.remove("validation")
        return _metric("/".join(parts), "validation")
    if split in _FREE:
        return Metric(key, split=split)
    first, _, rest = key.partition("/")
    clients = first == _CLIENTS and rest != ""
    text = rest if clients else key
    whole, _, tested_on = text.partition(_ON)
    if not (whole and tested_on):
        whole, tested_on = text, ""
    model, _, rest = whole.partition("/")
    if not (model and rest):
        model, rest = "", whole
    name, domain = _name_and_domain(rest)
    return Metric(name, model, split, domain, clients, tested_on)


def _name_and_domain(key: str) -> tuple[str, str]:
    """Return name and domain of a scorer's metric; ``i2t`` in ``recall@1/i2t`` is no domain."""
    name, _, domain = key.partition("/")
    if not (name and domain) or domain.partition("/")[0] in _DIRECTIONS:
        return key, ""
    return name, domain


def _unit_by_words(text: str) -> Unit:
    words = re.split(r"[/_-]", text.lower())
    shares = ("accuracy", "recall", "precision")
    if any(part.startswith("mAP") for part in text.split("/")) or any(s in text for s in shares):
        return SHARE
    return next((unit for word, unit in _UNITS_BY_WORD.items() if word in words), PLAIN)
