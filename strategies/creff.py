"""CReFF: the classifier is retrained on features that imitate the clients' (Shang et al. 2022,
arXiv:2204.13399, Algorithm 1).

    client k:  g_k,c <- gradient of the retrained head's loss on its real features of class c
               (theta, psi)_k <- local SGD;  send both
    server:    (theta, psi) <- sum_k n_k (theta, psi)_k / sum_k n_k
               g_c <- mean of g_k,c over the clients with class c
               features v_c,i <- steps down  sum_c D(g_c, gradient on v_c)
               psi^ <- steps on the cross-entropy of the features, from psi

D sums 1 - cosine over the rows of a gradient, that is over classes. The generic model is
(theta, psi^). That retraining starts from the aggregated head is our reading of the algorithm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.client import Metrics, Update
from fedsim.config.ranges import CheckedConfig, Count, NonNegativeInt, Positive
from fedsim.params import Params
from fedsim.strategy import ServerContext, Strategy, mean_update


@dataclass
class State:
    model: Params  # (theta, psi)
    weight: Tensor  # psi^, (classes, d)
    bias: Tensor  # (classes,)
    features: Tensor  # v, (classes, per class, d)


class CReFF(Strategy):
    """FedAvg, and a head retrained on federated features."""

    sends = frozenset({"model", "weight", "bias"})
    needs = frozenset({"model", "gradients", "present"})

    @dataclass(frozen=True)
    class Config(CheckedConfig):
        features_per_class: Count = 100
        match_steps: NonNegativeInt = 100  # steps on the features a round
        match_lr: Positive = 1.0  # rate of a class's features; small rates need many rounds
        retrain_steps: NonNegativeInt = 300  # steps on the head a round
        retrain_lr: Positive = 0.1

    def init(self, params: Params, ctx: ServerContext) -> State:
        weight, bias = params["head.weight"].clone(), params["head.bias"].clone()
        shape = len(weight), self.config.features_per_class, weight.shape[1]
        features = torch.randn(shape, generator=ctx.generator("creff/features", 0))
        return State(params, weight, bias, features)

    def configure(self, state: State, round: int, cohort: Sequence[int]) -> dict[str, object]:
        return {"model": state.model, "weight": state.weight, "bias": state.bias}

    def aggregate(self, state: State, updates: Sequence[Update]) -> tuple[State, Metrics]:
        model: Params = mean_update(
            [Update({"model": u.tensors["model"]}, u.weight) for u in updates]
        )["model"]
        present = torch.stack([u.tensors["present"] for u in updates])
        total = torch.stack([u.tensors["gradients"] for u in updates]).sum(0)
        owners = present.sum(0)
        targets = total / owners.clamp_min(1).view(-1, 1, 1)
        features, mismatch = self._match(state, targets, owners > 0)
        weight, bias = self._retrain(model, features, owners > 0)
        metrics = {"update_norm": (model - state.model).norm(), "feature_mismatch": mismatch}
        return State(model, weight, bias, features), metrics

    def _match(self, state: State, targets: Tensor, known: Tensor) -> tuple[Tensor, float]:
        """Return features whose gradients point along the targets (classes, classes, d + 1)."""
        features = state.features.clone().requires_grad_()
        value = torch.zeros(())
        for _ in range(self.config.match_steps):
            found = head_gradients(state.weight, state.bias, features)
            apart = 1 - F.cosine_similarity(found[known], targets[known], dim=2)
            (slope,) = torch.autograd.grad(apart.sum(), features)
            value = apart.detach().mean()
            with torch.no_grad():
                features -= self.config.match_lr * slope
        return features.detach(), float(value)

    def _retrain(self, model: Params, features: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Return the head after full-batch steps on the features of classes that somebody has."""
        weight, bias = model["head.weight"].clone(), model["head.bias"].clone()
        labels = known.nonzero().squeeze(1).repeat_interleave(features.shape[1])
        x = features[known].flatten(0, 1)
        truth = F.one_hot(labels, len(weight)).float()
        for _ in range(self.config.retrain_steps):
            error = (F.softmax(F.linear(x, weight, bias), 1) - truth) / len(x)
            weight -= self.config.retrain_lr * error.T @ x
            bias -= self.config.retrain_lr * error.sum(0)
        return weight, bias

    def generic(self, state: State) -> Params:
        return state.model.merged({"head.weight": state.weight, "head.bias": state.bias})

    def scored(self, state: State) -> Mapping[str, Params]:
        return {"generic": self.generic(state), "generic-before": state.model}


def head_gradients(weight: Tensor, bias: Tensor, features: Tensor) -> Tensor:
    """Return each class's gradient of the mean cross-entropy in (weight, bias).

    `features` are (classes, n, d), n of each class; returns (classes, classes, d + 1).
    """
    p = F.softmax(F.linear(features, weight, bias), dim=2)
    error = p - torch.eye(len(weight)).unsqueeze(1)
    by_weight = error.mT @ features / features.shape[1]
    return torch.cat([by_weight, error.mean(1).unsqueeze(2)], dim=2)
