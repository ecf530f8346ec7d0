"""Scorers and metrics (`fedsim.evaluate.scorer`, `fedsim.evaluate.metric_names`)."""

from fedsim.evaluate.classification import (
    CLASSIFICATION,
    Classification,
    Counts,
    ShotRule,
    counts,
    head_scores,
    shot_groups,
)
from fedsim.evaluate.metric_names import SHOTS, Metric, Unit, named_scores, shifted
from fedsim.evaluate.scorer import Scorer, Tally
from fedsim.evaluate.scoring import score, scorer_of

VALIDATION = "validation/"
"""Prefix of the names of values on validation samples."""

__all__ = [
    "CLASSIFICATION",
    "SHOTS",
    "VALIDATION",
    "Classification",
    "Counts",
    "Metric",
    "Scorer",
    "ShotRule",
    "Tally",
    "Unit",
    "counts",
    "head_scores",
    "named_scores",
    "score",
    "scorer_of",
    "shifted",
    "shot_groups",
]
