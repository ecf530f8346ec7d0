"""FedETF: a body trained against a fixed simplex ETF (Li et al. 2023, ICCV, arXiv:2303.10058).

    once      S <- dense simplex ETF of the seed, rows of norm gamma
    client k  u = P f_theta(x) + b;  v = u / |u|
              theta, P, b, tau by CE(tau S v + log n_k, y), n_k the client's class counts
    server    the mean of theta, P, b, tau, weighted by n_k
    generic   argmax_c S_c u, which is one linear head S P, S b on the features of the body
    personal  that head, fine-tuned on the client's own data

P is the projection and tau the temperature of the paper, and the loss its balanced feature loss.
The authors fine-tune the body first, and then S and P in turn, with CE; here the product S P alone
is fine-tuned. Without `projection`, the client's `normalise` and its balanced loss, what is left
is plain CE against a fixed dense ETF: FedLoGe at beta 0 without realignment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.client import Metrics, Tree, Update
from fedsim.config.ranges import CheckedConfig, Positive
from fedsim.maths.etf import check_etf, sparse_etf
from fedsim.maths.heads import BIAS, WEIGHT, check_head
from fedsim.params import Params
from fedsim.strategy import ServerContext, Strategy, mean_update


@dataclass
class State:
    model: Params  # theta; its head is S P and S b
    feature: dict[str, Tensor]  # temperature (); with a projection weight P (d, d) and bias b (d,)


class FedETF(Strategy):
    """Weighted mean of all that is trained; the head follows from the projection and S."""

    weighted_mean = True
    sends = frozenset({"model", "feature", "gamma"})
    needs = frozenset({"model", "feature"})

    @dataclass(frozen=True)
    class Config(CheckedConfig):
        gamma: Positive = 1.0  # row norm of S
        projection: bool = True  # a linear layer d -> d between the body and S
        temperature: Positive = 10.0  # tau before round 1; the authors' CNN for CIFAR-10

    def check(self, params: Params, ctx: ServerContext) -> None:
        check_head(params, ctx.num_classes, "fedetf")
        check_etf(ctx.num_classes, params[WEIGHT].shape[1], 0.0, self.config.gamma)

    def init(self, params: Params, ctx: ServerContext) -> State:
        self.check(params, ctx)
        feature = {"temperature": torch.tensor(self.config.temperature)}
        if self.config.projection:
            d = params[WEIGHT].shape[1]
            generator = ctx.generator("fedetf/projection", 0)
            for name, shape in (("weight", (d, d)), ("bias", (d,))):
                draw = torch.rand(shape, generator=generator)
                feature[name] = (2 * draw - 1) / math.sqrt(d)  # a linear layer's default
        return State(self._with_head(params, feature), feature)

    def configure(self, state: State, round: int, cohort: Sequence[int]) -> Tree:
        return {"model": state.model, "feature": state.feature, "gamma": self.config.gamma}

    def aggregate(self, state: State, updates: Sequence[Update]) -> tuple[State, Metrics]:
        mean = mean_update(updates)
        feature = mean["feature"]
        return State(self._with_head(mean["model"], feature), feature), {
            "update_norm": (mean["model"] - state.model).norm(),
            "temperature": float(feature["temperature"]),
        }

    def _with_head(self, model: Params, feature: dict[str, Tensor]) -> Params:
        """Return the model with the head that classifies by S after the projection."""
        assert self.ctx is not None
        classes, d = model[WEIGHT].shape
        s = sparse_etf(classes, d, beta=0.0, gamma=self.config.gamma, seed=self.ctx.seed)
        weight, bias = s, torch.zeros(classes)
        if "weight" in feature:
            weight, bias = s @ feature["weight"], s @ feature["bias"]
        return model.merged({WEIGHT: weight, BIAS: bias})
