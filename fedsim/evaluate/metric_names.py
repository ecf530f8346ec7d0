"""Names of metrics: how they are composed, and what they say of unit and direction."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

VALIDATION = "validation/"
"""What the names of values on validation samples begin with, beside those on test samples."""


SHOTS = ("many", "medium", "few")


def shifted(values: Mapping[str, float], domains: Sequence[str]) -> dict[str, float]:
    """Return ``<metric>_shifted`` of values by domain: their mean over some domains.

    Values by domain are named ``<metric>/<domain>``; a domain without one does not count.
    """
    found: dict[str, list[float]] = {}
    for name, value in values.items():
        metric, _, domain = name.partition("/")
        if domain in domains:
            found.setdefault(metric, []).append(value)
    return {f"{metric}_shifted": float(np.mean(some)) for metric, some in found.items()}


def named_scores(model: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Return scores under the name of a model: ``personal`` makes ``personal/accuracy``."""
    return {f"{model}/{name}": value for name, value in scores.items()}


_LOWER = {"loss", "error", "mse", "rmse", "mae", "perplexity", "seconds", "bytes"}


def lower_is_better(name: str) -> bool:
    """Whether low values of a metric are the good ones, by the words of its name."""
    return not is_share(name) and not _LOWER.isdisjoint(re.split(r"[/_-]", name.lower()))


def is_share(name: str) -> bool:
    """Whether a metric is a share that is shown in percent."""
    precision = any(part.startswith("mAP") for part in name.split("/"))
    return precision or any(word in name for word in ("accuracy", "recall", "precision"))
