"""CreamFL: clients of any architecture share representations of public pairs (Yu et al. 2023,
arXiv:2302.08888).

    round t = 1..T
    1  server:    one epoch of retrieval training on the public pairs
    3  server:    G^I, G^T <- representations of all public pairs
    4  client c:  clients/creamfl.py on (G^I, G^T);  send L^I_c, L^T_c
    5  server:    s_{c,k} = log softmax_j(<L^I_{c,k}, G^T_j> / gca_tau) at j = k
                  a_{c,k} = softmax_c(s_{c,k}),   Ibar_k = sum_c a_{c,k} L^I_{c,k}   (GCA)
                  and Tbar likewise, of L^T_c against G^I
    6  server:    one epoch of  w mse(f(i), Ibar) + w mse(f(t), Tbar)
    7  the server's model after step 6 is scored; its rate falls by a cosine

`init` does steps 1 and 3 of round 1, `aggregate` steps 5 and 6 of its round, then 1 and 3 of the
next, on a copy that is not scored. The order of steps is that of the authors' code. Representations
are taken in evaluation mode, and public images are augmented in step 1 alone.

Other rules of aggregation make the methods that CreamFL is compared with, as far as representations
can stand for their logits: mean (FedMD, reptFL), confidence (FedET: weight var_j <L_{c,k}, G_j>),
selective (FedGEMS: the server's own representation where it retrieves the right one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedsim.client import Metrics, Tree, Update
from fedsim.config.ranges import NonNegative, Positive
from fedsim.errors import check
from fedsim.maths.contrastive import best_matches, matches, mean_of_weighted, spreads
from fedsim.params import Params
from fedsim.strategy import ServerContext, Strategy
from fedsim.training.optimisers import OptimiserState
from strategies._public_pairs import PublicConfig, PublicTraining, Target, check_pairs

Aggregation = Literal["gca", "mean", "confidence", "selective"]


@dataclass
class State:
    model: Params  # the server's after step 6, and the clients' first ones
    ahead: Params  # the server's part after step 1 of the next round
    images: Tensor  # G^I of the next round, (N, d)
    texts: Tensor  # G^T
    round: int = 0  # rounds that are over
    moments: OptimiserState = field(default_factory=dict)
    consensus_images: Tensor | None = None  # Ibar of the last round that had one
    consensus_texts: Tensor | None = None


class CreamFL(Strategy):
    """A server's model distilled from the weighted mean of the clients' representations."""

    sends = frozenset({"global_img", "global_txt"})
    needs = frozenset({"local_img", "local_txt"})

    @dataclass(frozen=True)
    class Config(PublicConfig):
        aggregation: Aggregation = "gca"
        kd_weight: NonNegative = 0.6  # w; 0 trains the server on the public pairs alone
        kd_reduction: Literal["mse", "l2"] = "mse"  # l2: unsquared distances
        gca_tau: Positive = 1.0
        gca_exclude_self: bool = False  # leaves j = k out of the denominator
        diversity: NonNegative = 0.0  # FedET: weight of the mean over clients that disagree
        # What clients get: the server's representations, or the last targets (FedMD).
        shares: Literal["server", "consensus"] = "server"

    def check(self, params: Params, ctx: ServerContext) -> None:
        check_pairs(params, ctx, "creamfl")
        enough = not self.config.gca_exclude_self or (
            ctx.server is not None and len(ctx.server) > 1
        )
        check(enough, "gca_exclude_self needs at least 2 public pairs", 1)

    def init(self, params: Params, ctx: ServerContext) -> State:
        self.check(params, ctx)
        server = PublicTraining(self.config, ctx)
        server.load(params)
        moments, _ = server.supervised({}, 1)
        return State(params, server.read(), *server.embed_both(), moments=moments)

    def configure(self, state: State, round: int, cohort: Sequence[int]) -> Tree:
        images, texts = state.images, state.texts
        if self.config.shares == "consensus":
            images = images if state.consensus_images is None else state.consensus_images
            texts = texts if state.consensus_texts is None else state.consensus_texts
        return {"global_img": images, "global_txt": texts}

    def aggregate(self, state: State, updates: Sequence[Update]) -> tuple[State, Metrics]:
        assert self.ctx is not None
        round = state.round + 1
        images = self.ensemble("img", updates, state.images, state.texts)
        texts = self.ensemble("txt", updates, state.texts, state.images)
        metrics: Metrics = {**images.metrics, **texts.metrics}
        metrics["modality_gap"] = float((state.images.mean(0) - state.texts.mean(0)).norm())
        server = PublicTraining(self.config, self.ctx)
        server.load(state.model)
        server.load(state.ahead)
        moments = state.moments
        if images.targets or texts.targets:
            moments, metrics["kd_loss"] = server.distil(
                images.targets, texts.targets, self.config.kd_reduction, moments, round
            )
        part = server.read()
        after = State(
            state.model.merged(part),
            part,
            state.images,
            state.texts,
            round,
            moments,
            state.consensus_images if images.mean is None else images.mean,
            state.consensus_texts if texts.mean is None else texts.mean,
        )
        if round < self.ctx.rounds:
            after.moments, metrics["server_loss"] = server.supervised(moments, round + 1)
            after.ahead = server.read()
            after.images, after.texts = server.embed_both()
        return after, metrics

    def ensemble(
        self, name: str, updates: Sequence[Update], same: Tensor, other: Tensor
    ) -> Ensemble:
        """Return what the clients that have a modality together say of the public pairs.

        `name` is img or txt; `same` and `other` (N, d) are the server's representations of this
        modality and of the other one.

        Raises:
            ValueError: a client sent another number of rows, or rows of another width.
        """
        senders = [u for u in updates if len(u.tensors[f"local_{name}"])]
        local = [u.tensors[f"local_{name}"] for u in senders]
        for update, rep in zip(senders, local, strict=True):
            if rep.shape != same.shape:
                raise ValueError(
                    f"client {update.client} sent local_{name} of the shape {tuple(rep.shape)}, "
                    f"representations of the public pairs are {tuple(same.shape)}"
                )
        metrics = {f"clients_{name}": float(len(local))}
        if not local:
            return Ensemble(None, [], metrics)
        tau, exclude = self.config.gca_tau, self.config.gca_exclude_self
        found = [matches(rep, other, tau, exclude_self=exclude) for rep in local]
        weights = self._weights(local, torch.stack([s for s, _ in found]), other)
        mean = mean_of_weighted(local, weights)
        metrics |= _diagnostics(name, senders, [f for _, f in found], weights, mean, same)
        if self.config.aggregation == "selective":
            trusted = matches(same, other)[1]
            metrics[f"trusted_{name}"] = float(trusted.double().mean())
            mean = torch.where(trusted.unsqueeze(1), same, mean)
        targets = [Target(mean, self.config.kd_weight)] if self.config.kd_weight else []
        if self.config.diversity:
            targets.append(disagreement(local, weights, mean, other, self.config.diversity))
        return Ensemble(mean, targets, metrics)

    def _weights(self, local: Sequence[Tensor], scores: Tensor, other: Tensor) -> Tensor:
        """Return the weights a (C, N) of C clients, which sum to 1 at every public sample."""
        if self.config.aggregation == "gca":
            return torch.softmax(scores, dim=0)
        if self.config.aggregation == "confidence":
            confidence = torch.stack([spreads(rep, other) for rep in local]).clamp_min(1e-12)
            return confidence / confidence.sum(0)
        return torch.full_like(scores, 1 / len(scores))


@dataclass
class Ensemble:
    """The weighted mean (N, d) of the clients, None without clients, and what follows from it."""

    mean: Tensor | None
    targets: list[Target]
    metrics: Metrics


def disagreement(
    local: Sequence[Tensor], weights: Tensor, mean: Tensor, other: Tensor, weight: float
) -> Target:
    """Return the weighted mean over the clients that retrieve another pair than the ensemble does.

    FedET's diversity term (Cho et al. 2022, arXiv:2204.12703, Eq. 5) with representations for
    logits. It counts at the public samples where a client disagrees.
    """
    chosen = best_matches(mean, other)
    apart = torch.stack([best_matches(rep, other) != chosen for rep in local])
    share = weights * apart
    total = share.sum(0)
    return Target(mean_of_weighted(local, share / total.clamp_min(1e-12)), weight, apart.any(0))


def _diagnostics(
    name: str,
    senders: Sequence[Update],
    first: Sequence[Tensor],
    weights: Tensor,
    mean: Tensor,
    same: Tensor,
) -> Metrics:
    """Return each client's mean weight, and how near clients and their mean are to the server.

    ``single_recall@1`` is that of the other modality's server representations by clients that
    never see it: whether the modality gap is closed.
    """
    metrics: Metrics = {
        f"weight_{name}/{u.client}": float(a) for u, a in zip(senders, weights.mean(1), strict=True)
    }
    local = [u.tensors[f"local_{name}"] for u in senders]
    metrics[f"alignment_{name}"] = _mean([float((rep * same).sum(1).mean()) for rep in local])
    near = torch.cosine_similarity(mean, same, dim=1)
    metrics[f"target_alignment_{name}"] = float(near.mean())
    sizes = [{len(u.tensors["local_img"]), len(u.tensors["local_txt"])} for u in senders]
    alone = [float(f.double().mean()) for f, n in zip(first, sizes, strict=True) if 0 in n]
    if alone:
        metrics[f"single_recall@1/{name}"] = _mean(alone)
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
