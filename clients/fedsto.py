"""FedSTO's client: it learns from unlabelled images, taught by its own moving average (Kim et al.
2023, NeurIPS, arXiv:2310.17097, Algorithm 1).

    W_k <- W_s,  W_ema <- W_s
    each batch x:  boxes <- detections of W_ema on x, sorted into reliable and uncertain
                   W_k <- W_k - lr grad [L_u(W_k; x augmented) + lam R(V_k)]
                   W_ema <- alpha W_ema + (1 - alpha) W_k
    send what the payload names: the backbone in stage 1, all of W_k in stage 2

What the payload holds as `fixed` is not trained, and its BatchNorm does not follow the images. A
batch in which the teacher finds nothing is passed over. Nothing is kept between rounds. How images
are augmented is `dataset.augment`, without mosaics of four; the teacher sees them as they are. The
thresholds are fixed, not per class and round. The penalty R is `fedsim.maths.orthogonality`; lam is
the server's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fedsim.client import Audited, AuditedUpdate, ClientContext, Tree, Update
from fedsim.config.ranges import Fraction, NonNegative, Positive
from fedsim.data.views import ClientData, View
from fedsim.errors import check
from fedsim.maths.boxes import matched
from fedsim.maths.detection_loss import Targets
from fedsim.maths.orthogonality import Orthogonality
from fedsim.models.detector import Detections
from fedsim.params import FlatModel, Params
from fedsim.params.filters import in_backbone
from fedsim.training.local_sgd import Fit, LocalSGD, TrainingContext, proximal


class FedSTO(Audited, LocalSGD):
    """Semi-supervised local training of a detector."""

    needs = frozenset({"model", "fixed", "lam", "sides", "penalised"})

    @dataclass(frozen=True)
    class Config(LocalSGD.Config):
        alpha: Fraction = 0.999  # decay of the teacher; 1 keeps it the server's model
        tau_low: Fraction = 0.1  # score of a box from which it is uncertain
        tau_high: NonNegative = 0.6  # ... and from which it is reliable, >= tau_low; above 1: never
        nms_iou: Fraction = 0.65  # overlap of two boxes of a class of which one is dropped
        unsupervised_weight: Positive = 1.0  # of L_u
        mu: NonNegative = 0.0  # FedProx: weight of mu/2 |w - w_t|^2
        uploads: Literal["student", "teacher"] = "student"  # whose weights are sent and kept

        def __post_init__(self) -> None:
            super().__post_init__()
            low, high = self.tau_low, self.tau_high
            check(high >= low, f"tau_high must be >= tau_low = {low}", high)

    def start(self, payload: Tree, state: Any, ctx: ClientContext) -> None:
        ctx.model.load(payload["model"])
        ctx.model.load(payload["fixed"])

    def frozen(self, payload: Tree) -> set[str]:
        """Return the names of the tensors that stay as they are."""
        return set(payload["fixed"])

    def fit(
        self,
        payload: Tree,
        state: Any,
        view: View,
        rng: torch.Generator,
        ctx: TrainingContext,
        *,
        epochs: int | None = None,
        trainable: Callable[[str], bool] | None = None,
    ) -> tuple[Fit, dict[str, float]]:
        frozen = self.frozen(payload)
        return super().fit(
            payload, state, view, rng, ctx, epochs=epochs, trainable=lambda n: n not in frozen
        )

    def prepare(self, fit: Fit) -> None:
        module = fit.ctx.model.module.train()
        frozen = self.frozen(fit.payload)
        for name, layer in module.named_modules():
            if isinstance(layer, _BatchNorm) and f"{name}.running_mean" in frozen:
                layer.eval()
        teacher = FlatModel(copy.deepcopy(module), fit.ctx.device)
        teacher.module.eval().requires_grad_(False)
        everywhere = fit.payload["penalised"] == "all"
        fit.scratch |= {
            "teacher": teacher,
            "ortho": Orthogonality(fit.payload["sides"]),
            "V": {n: p for n, p in fit.named().items() if everywhere or not in_backbone(n)},
            "claims": [],
        }

    def batches(
        self, fit: Fit, rng: torch.Generator, epochs: int, steps: int | None
    ) -> Iterable[tuple[Any, Any]]:
        """Yield augmented images, and the teacher's boxes where they went."""
        view = fit.view
        for order in view.index_batches(self.config.batch_size, rng, epochs, steps):
            found = self.detect(fit.scratch["teacher"].module, view.inputs(order))
            fit.scratch["claims"].append((order, found))
            x, place = view.changed(order, rng)
            boxes, labels = place.boxes(found.boxes, found.labels)
            yield x, Detections(boxes, labels, found.scores, found.objectness)

    @torch.no_grad()
    def detect(self, module: Any, x: Tensor) -> Detections:
        """Return what a teacher finds on images, boxes below tau_low left out."""
        found: Detections = module.detect(
            x, least_score=self.config.tau_low, iou=self.config.nms_iou
        )
        return found

    def loss(self, fit: Fit, x: Tensor, y: Detections) -> Tensor | None:
        if not bool((y.labels >= 0).any()):
            return None
        config = self.config
        targets = pseudo_targets(
            y.boxes, y.labels, y.scores, y.objectness, config.tau_low, config.tau_high
        )
        module: Any = fit.ctx.model.module
        loss: Tensor = config.unsupervised_weight * module.loss_of(module(x), targets)
        if fit.payload["lam"]:
            loss = loss + fit.payload["lam"] * fit.scratch["ortho"](fit.scratch["V"])
        return loss

    def gradient(self, fit: Fit, grads: list[Tensor]) -> list[Tensor]:
        if self.config.mu == 0:
            return grads
        if "anchor" not in fit.scratch:
            fit.scratch["anchor"] = [p.detach().clone() for p in fit.parameters]
        return proximal(grads, fit.parameters, fit.scratch["anchor"], self.config.mu)

    def after_step(self, fit: Fit) -> None:
        fit.scratch["teacher"].flat.lerp_(fit.ctx.model.flat, 1 - self.config.alpha)

    def update(self, fit: Fit) -> Tree:
        named = set(fit.payload["model"])
        return {"model": self.sender(fit).params().only(named.__contains__)}

    def sender(self, fit: Fit) -> FlatModel:
        """Return the model that counts as trained: the student or its teacher."""
        teacher: FlatModel = fit.scratch["teacher"]
        return teacher if self.config.uploads == "teacher" else fit.ctx.model

    def train(
        self, payload: Tree, state: Any, data: ClientData, rng: torch.Generator, ctx: ClientContext
    ) -> tuple[Any, Update]:
        self.start(payload, state, ctx)
        fit, metrics = self.fit(payload, state, data.train, rng, ctx)
        claims = fit.scratch["claims"]
        weight = float(len(data.train))
        return self.keep(fit), AuditedUpdate(self.update(fit), weight, metrics, claims=claims)

    def audit(self, claims: Any, view: View, ctx: ClientContext) -> Mapping[str, float]:
        """Return precision and recall of the reliable boxes at an IoU of 0.5, class included.

        Over all epochs of the round; precision only where there is a reliable box, recall only
        where there is a true one.
        """
        right = reliable = true = 0
        for order, found in claims:
            true_boxes, true_labels = (
                torch.as_tensor(view.column(name, order)) for name in ("boxes", "box_labels")
            )
            labels = torch.where(found.scores >= self.config.tau_high, found.labels, -1)
            right += int(matched(found.boxes, labels, true_boxes, true_labels).sum())
            reliable += int((labels >= 0).sum())
            true += int((true_labels >= 0).sum())
        metrics = {"pseudo_boxes": reliable / max(1, sum(len(order) for order, _ in claims))}
        if reliable:
            metrics["pseudo_precision"] = right / reliable
        if true:
            metrics["pseudo_recall"] = right / true
        return metrics

    def evaluate(
        self, payload: Tree, state: Any, data: ClientData, ctx: ClientContext
    ) -> Mapping[str, float]:
        model: Params = ctx.initial.merged(payload["model"]).merged(payload["fixed"])
        return super().evaluate({**payload, "model": model}, state, data, ctx)


def pseudo_targets(
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor,
    objectness: Tensor,
    low: float,
    high: float,
    sure: float = 0.99,
) -> Targets:
    """Return targets of boxes (n, K, 4) with labels, scores p and objectness o, each (n, K).

    The label of a row without a box is -1.
    """
    there = (labels >= 0) & (scores >= low)
    reliable = there & (scores >= high)
    soft = torch.where(reliable, -1.0, objectness)
    return Targets(
        boxes,
        torch.where(there, labels, -1),
        classify=reliable,
        regress=reliable | (there & (objectness >= sure)),
        soft=soft,
    )
