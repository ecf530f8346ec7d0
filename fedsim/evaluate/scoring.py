"""Score a model on a view of the data with the scorer that it carries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from fedsim.evaluate.scorer import Scorer
from fedsim.params import protocol

if TYPE_CHECKING:
    from fedsim.data.views import View


def scorer_of(module: nn.Module) -> Scorer:
    """Return the scorer of a model: its attribute `scorer`, else that of classifiers."""
    from fedsim.evaluate.classification import CLASSIFICATION

    scorer: Scorer = protocol.scorer(module, CLASSIFICATION)
    return scorer


def score(module: nn.Module, view: View, batch_size: int = 512) -> dict[str, float]:
    """Return the module's metrics on a view, as its scorer has them.

    Raises:
        ValueError: the view is empty.
    """
    if len(view) == 0:
        raise ValueError("a model cannot be scored on no samples")
    return scorer_of(module).tally(module, view, len(view.card.classes), batch_size).metrics()
