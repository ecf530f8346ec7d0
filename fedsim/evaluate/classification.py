"""Scoring classifiers: accuracy and loss, by class, by groups of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.data.views import View, view_for
from fedsim.evaluate.feature_statistics import Moments
from fedsim.evaluate.metric_names import LOSS, SHARE, SHOTS
from fedsim.evaluate.scorer import Scorer

ShotRule = Literal["cumulative", "count"]


@dataclass
class Counts:
    """What a model got right: `correct` and `samples` int64 (classes,), and the summed loss."""

    correct: np.ndarray
    samples: np.ndarray
    loss: float = 0.0
    moments: Moments | None = None  # of the features, where they were asked for

    def __add__(self, other: Counts) -> Counts:
        moments = None
        if self.moments is not None and other.moments is not None:
            moments = self.moments + other.moments
        return Counts(
            self.correct + other.correct,
            self.samples + other.samples,
            self.loss + other.loss,
            moments,
        )

    def metrics(self) -> dict[str, float]:
        """Return the accuracy in [0, 1] and the mean loss.

        Raises:
            ValueError: there were no samples.
        """
        total = int(self.samples.sum())
        if total == 0:
            raise ValueError("a model cannot be scored on no samples")
        return {"accuracy": int(self.correct.sum()) / total, "loss": self.loss / total}

    def balanced(self) -> float:
        """Return the mean over classes of the accuracy on each, classes without samples left out.

        Raises:
            ValueError: there were no samples.
        """
        present = self.samples > 0
        if not present.any():
            raise ValueError("a model cannot be scored on no samples")
        return float((self.correct[present] / self.samples[present]).mean())

    def by_shots(self, groups: Sequence[np.ndarray]) -> dict[str, float]:
        """Return the accuracy over the samples of each group of `shot_groups` that has any."""
        scores = {}
        for name, classes in zip(SHOTS, groups, strict=True):
            total = int(self.samples[classes].sum())
            if total:
                scores[f"accuracy_{name}"] = int(self.correct[classes].sum()) / total
        return scores


def shot_groups(class_sizes: np.ndarray, rule: ShotRule) -> list[np.ndarray]:
    """Return the classes with many, medium and few training samples, each int64 (k,).

    cumulative: from the largest class down, those up to and with the one that crosses 75 % of all
    samples are *many*, up to and with the one that crosses 95 % *medium* (FedLoGe's code). count:
    more than 100 samples are *many*, fewer than 20 *few* (Liu et al. 2019, arXiv:1904.05160).
    """
    sizes = np.asarray(class_sizes, np.int64)
    if rule == "count":
        return [
            np.flatnonzero(sizes > 100),
            np.flatnonzero((sizes >= 20) & (sizes <= 100)),
            np.flatnonzero(sizes < 20),
        ]
    order = np.argsort(-sizes, kind="stable")
    # The share before a class decides: the class that crosses a bound still belongs below it.
    before = np.cumsum(sizes[order]) - sizes[order]
    total = int(sizes.sum())
    many, medium = before * 100 < 75 * total, before * 100 < 95 * total
    return [np.sort(order[many]), np.sort(order[medium & ~many]), np.sort(order[~medium])]


def counts(
    module: nn.Module,
    view: View,
    num_classes: int,
    batch_size: int = 512,
    *,
    features: bool = False,
) -> Counts:
    """Return correct predictions and samples of each class, and the summed cross-entropy.

    With `features` also the moments of what the module's `head` is given.

    The module is scored in evaluation mode and left in the mode it was in. The sum runs over
    batches in fp64, so it does not depend on how a caller cuts the data, only on `batch_size`.
    """
    training = module.training
    module.eval()
    loss = 0.0
    # Class and rightness in one number, so that a batch costs one transfer from the device.
    found = torch.zeros(2 * num_classes, dtype=torch.int64, device=view.device)
    moments: Moments | None = None
    given: list[torch.Tensor] = []
    watch: Any = None
    if features:
        watch = module.get_submodule("head").register_forward_pre_hook(
            lambda _, inputs: given.append(inputs[0])
        )
    with torch.inference_mode(), watch or nullcontext():
        for x, y in view_for(module, view).batches(batch_size):
            logits = module(x)
            if features:
                some = Moments.of(given.pop(), y, num_classes)
                moments = some if moments is None else moments + some
            right = logits.argmax(1) == y
            found += torch.bincount(2 * y + right, minlength=2 * num_classes)
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
    module.train(training)
    wrong, correct = found.cpu().view(num_classes, 2).numpy().T
    return Counts(correct.copy(), wrong + correct, loss, moments)


class Classification(Scorer):
    """Accuracy and cross-entropy of logits (batch, classes)."""

    units: ClassVar = {"accuracy": SHARE, "loss": LOSS}

    def tally(
        self,
        module: nn.Module,
        view: View,
        num_classes: int,
        batch_size: int = 512,
        *,
        features: bool = False,
    ) -> Counts:
        return counts(module, view, num_classes, batch_size, features=features)


CLASSIFICATION = Classification()


def head_scores(
    module: Any,
    heads: Mapping[str, tuple[Tensor, Tensor]],
    view: View,
    batch_size: int = 512,
) -> dict[str, float]:
    """Return ``<name>/accuracy`` and ``<name>/loss`` of linear heads on one body's features.

    `module` is a torch Module with a `body`, which is run once, in evaluation mode. `heads` are
    weights (C, d) and biases (C,), on any device. A bias of -inf masks its class; where that class
    occurs, the loss is infinite.

    Raises:
        ValueError: the view is empty.
    """
    if len(view) == 0:
        raise ValueError("a model cannot be scored on no samples")
    training = module.training
    module.eval()
    right = dict.fromkeys(heads, 0)
    loss = dict.fromkeys(heads, 0.0)
    placed = {name: [t.to(view.device) for t in head] for name, head in heads.items()}
    with torch.inference_mode():
        for x, y in view.batches(batch_size):
            features = module.body(x)
            for name, head in placed.items():
                logits = F.linear(features, *head)
                right[name] += int((logits.argmax(1) == y).sum())
                loss[name] += float(F.cross_entropy(logits, y, reduction="sum"))
    module.train(training)
    scores: dict[str, float] = {}
    for name in heads:
        scores |= {f"{name}/accuracy": right[name] / len(view)}
        scores |= {f"{name}/loss": loss[name] / len(view)}
    return scores
