"""Scoring models: what they are for says how (`fedsim.evaluate.scorer`)."""

from fedsim.evaluate.classification import (
    CLASSIFICATION,
    SHOTS,
    Classification,
    Counts,
    ShotRule,
    counts,
    head_scores,
    shot_groups,
)
from fedsim.evaluate.scorer import Scorer, Tally, named_scores, score, scorer_of, shifted

VALIDATION = "validation/"
"""What the names of values on validation samples begin with, beside those on test samples."""

__all__ = [
    "CLASSIFICATION",
    "SHOTS",
    "VALIDATION",
    "Classification",
    "Counts",
    "Scorer",
    "ShotRule",
    "Tally",
    "counts",
    "head_scores",
    "named_scores",
    "score",
    "scorer_of",
    "shifted",
    "shot_groups",
]
