"""The scorer of classifiers: accuracy, loss and metrics of the confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.data.views import View
from fedsim.evaluate.feature_statistics import Moments
from fedsim.evaluate.metric_names import LOSS, SHARE, SHOTS, Unit, named_scores
from fedsim.evaluate.scorer import Scorer
from fedsim.params import protocol

ShotRule = Literal["cumulative", "count"]


@dataclass
class Counts:
    """Correct predictions and samples of each class, int64 (classes,), and the summed loss.

    Where there are `further` metrics of `FURTHER`, also the `confusion`, int64 (classes, classes):
    the samples of a class (rows) by the class that is predicted (columns).
    """

    correct: np.ndarray
    samples: np.ndarray
    loss: float = 0.0
    moments: Moments | None = None  # of the features, where they were asked for
    further: tuple[str, ...] = ()
    confusion: np.ndarray | None = None

    def __add__(self, other: Counts) -> Counts:
        moments = None
        if self.moments is not None and other.moments is not None:
            moments = self.moments + other.moments
        confusion = None
        if self.confusion is not None and other.confusion is not None:
            confusion = self.confusion + other.confusion
        return Counts(
            self.correct + other.correct,
            self.samples + other.samples,
            self.loss + other.loss,
            moments,
            self.further,
            confusion,
        )

    def metrics(self) -> dict[str, float]:
        """Return the accuracy in [0, 1], the mean loss and the further metrics.

        Raises:
            ValueError: there were no samples.
        """
        total = int(self.samples.sum())
        if total == 0:
            raise ValueError("a model cannot be scored on no samples")
        usual = {"accuracy": int(self.correct.sum()) / total, "loss": self.loss / total}
        return usual | {name: FURTHER[name].value(self.confusion) for name in self.further}

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


def macro_f1(confusion: np.ndarray) -> float:
    """Return the mean over classes of F1 = 2 TP / (2 TP + FP + FN).

    A class that no sample is of and that is never predicted does not count.
    """
    doubled, total = 2 * confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
    return float((doubled[total > 0] / total[total > 0]).mean())


def balanced_accuracy(confusion: np.ndarray) -> float:
    """Return the mean over classes of the accuracy on each, classes without samples left out."""
    samples = confusion.sum(1)
    return float((confusion.diagonal()[samples > 0] / samples[samples > 0]).mean())


@dataclass(frozen=True)
class FurtherMetric:
    """A metric of the confusion matrix (`Counts.confusion`) of at least one sample."""

    value: Callable[[Any], float]
    unit: Unit = SHARE


FURTHER = {
    "macro-f1": FurtherMetric(macro_f1),
    "balanced-accuracy": FurtherMetric(balanced_accuracy),
}
"""The metrics of classifiers that ``evaluation.metrics`` can name."""


def counts(
    module: nn.Module,
    view: View,
    num_classes: int,
    batch_size: int = 512,
    *,
    features: bool = False,
    further: tuple[str, ...] = (),
) -> Counts:
    """Return correct predictions and samples of each class, and the summed cross-entropy.

    With `features` also the moments of the inputs of the module's `head`, with `further` metrics
    the confusion matrix.
    """
    moments: Moments | None = None
    inputs: list[Tensor] = []

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal moments
        for x, y in view.batches(batch_size, reads=protocol.reads(module)):
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
        (total,) = count_heads(
            module, lambda x: [module(x)], batches(), [num_classes], view.device, further
        )
    total.moments = moments
    return total


def count_heads(
    module: nn.Module,
    logits_of: Callable[[Tensor], Iterable[Tensor]],
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: Sequence[int],
    device: torch.device | str,
    further: tuple[str, ...] = (),
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
    cells = [n * n if further else 0 for n in num_classes]
    pairs = [torch.zeros(n, dtype=torch.int64, device=device) for n in cells]
    with torch.inference_mode():
        for x, y in batches:
            for i, logits in enumerate(logits_of(x)):
                n, predicted = num_classes[i], logits.argmax(1)
                tallies[i] += torch.bincount(2 * y + (predicted == y), minlength=2 * n)
                if further:
                    pairs[i] += torch.bincount(n * y + predicted, minlength=n * n)
                losses[i] += float(F.cross_entropy(logits, y, reduction="sum"))
    module.train(training)
    totals = []
    for n, tally, loss, cells_of in zip(num_classes, tallies, losses, pairs, strict=True):
        wrong, correct = tally.cpu().view(n, 2).numpy().T
        confusion = cells_of.cpu().view(n, n).numpy() if further else None
        totals.append(Counts(correct.copy(), wrong + correct, loss, None, further, confusion))
    return totals


class Classification(Scorer):
    """Accuracy and cross-entropy of logits (batch, classes)."""

    units: ClassVar = {"accuracy": SHARE, "loss": LOSS}
    further: ClassVar = {name: metric.unit for name, metric in FURTHER.items()}

    def tally(
        self,
        module: nn.Module,
        view: View,
        num_classes: int,
        batch_size: int = 512,
        *,
        features: bool = False,
    ) -> Counts:
        return counts(module, view, num_classes, batch_size, features=features, further=self.chosen)


CLASSIFICATION = Classification()


def head_scores(
    module: Any,
    heads: Mapping[str, tuple[Tensor, Tensor]],
    view: View,
    batch_size: int = 512,
) -> dict[str, float]:
    """Return ``<name>/accuracy`` and the like of linear heads on one body's features.

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
    scorer = protocol.scorer(module, CLASSIFICATION)
    further = scorer.chosen if isinstance(scorer, Classification) else ()
    batches = view.batches(batch_size, reads=protocol.reads(module))
    totals = count_heads(module, logits_of, batches, sizes, view.device, further)
    scores: dict[str, float] = {}
    for name, total in zip(heads, totals, strict=True):
        scores |= named_scores(name, total.metrics())
    return scores
