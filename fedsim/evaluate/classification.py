"""Scoring classifiers: accuracy and loss, by class, by groups of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.data.views import View, view_for
from fedsim.evaluate.feature_statistics import Moments
from fedsim.evaluate.metric_names import LOSS, SHARE, SHOTS, named_scores
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
    """
    moments: Moments | None = None
    inputs: list[Tensor] = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal moments
        for x, y in view_for(module, view).batches(batch_size):
            yield x, y
            if features:  # the batch has been through the head by now
                batch = Moments.of(inputs.pop(), y, num_classes)
                moments = batch if moments is None else moments + batch

    watch: Any = None
    if features:
        watch = module.get_submodule("head").register_forward_pre_hook(
            lambda _, args: inputs.append(args[0])
        )
    with watch or nullcontext():
        (total,) = count_heads(module, lambda x: [module(x)], batches(), [num_classes], view.device)
    total.moments = moments
    return total


def count_heads(
    module: nn.Module,
    logits_of: Callable[[Tensor], Iterable[Tensor]],
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: Sequence[int],
    device: torch.device | str,
) -> list[Counts]:
    """Return the counts of each of several classifiers that have a body in common.

    `logits_of` maps the inputs of a batch to the logits (batch, classes) of each classifier, of
    which `num_classes` tells the classes; `batches` are inputs and labels int64 (batch,).

    The module is scored in evaluation mode and left in the mode it was in. The losses are summed
    over batches in fp64, so that they depend on the size of the batches only.
    """
    training = module.training
    module.eval()
    losses = [0.0] * len(num_classes)
    # Class and rightness in one number, so that a batch costs one transfer from the device.
    tallies = [torch.zeros(2 * n, dtype=torch.int64, device=device) for n in num_classes]
    with torch.inference_mode():
        for x, y in batches:
            for i, logits in enumerate(logits_of(x)):
                right = logits.argmax(1) == y
                tallies[i] += torch.bincount(2 * y + right, minlength=2 * num_classes[i])
                losses[i] += float(F.cross_entropy(logits, y, reduction="sum"))
    module.train(training)
    counts = []
    for tally, loss in zip(tallies, losses, strict=True):
        wrong, correct = tally.cpu().view(-1, 2).numpy().T
        counts.append(Counts(correct.copy(), wrong + correct, loss))
    return counts


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
    placed = [[t.to(view.device) for t in head] for head in heads.values()]

    def logits_of(x: Tensor) -> Iterator[Tensor]:
        features = module.body(x)
        for head in placed:
            yield F.linear(features, *head)

    sizes = [len(weight) for weight, _ in heads.values()]
    totals = count_heads(module, logits_of, view.batches(batch_size), sizes, view.device)
    scores: dict[str, float] = {}
    for name, total in zip(heads, totals, strict=True):
        scores |= named_scores(name, total.metrics())
    return scores
