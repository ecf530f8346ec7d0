"""FRAug's feature augmentation on a batch (Chen et al. 2023, arXiv:2205.14900): `clients.fraug`'s
steps for everything but the model.

    begin           v_bar <- (1 - m) v_bar + m (class means of v);  draw s and z
    synthetic       e_p = v_bar[s] + r(g(z, s), s),  e_r = v + r(g(z, y), y)             step A
    step_generator  omega by CE(c(g(z, s)), s) - lam_g dist(g(z, s), v or v_bar[s])      step B
    step_rtnet      r by mean_e -H(softmax c(e)) + lam_r dist(e, its base)               step C

v are features, y labels, s balanced labels, z noise, v_bar prototypes, c the head, g the generator
with the weights omega, r the RTNet. All of it is of several clients at once, one row a client, with
backward passes written out: autograd's record of so small networks costs more than they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clients._distances import Discrepancy
from fedsim import rng as streams
from fedsim.client import ClientContext, Tree
from fedsim.models.blocks.batched import Head, classify, cross_entropies
from fedsim.models.blocks.conditional import (
    Padding,
    Stack,
    generator_network,
    initial_weights,
    transformation_network,
)
from fedsim.params import Params, Rows

State = dict[str, Any]

METRICS = ("generator_loss", "generator_distance", "rtnet_entropy", "rtnet_distance")
"""Metrics of a client, means over its steps; those of RTNet last."""


class _Plan:
    """Masks and weights of the rows in a step, which depend on the batch sizes alone.

    `share` (clients, batch) and `rows` (clients, rows of all parts) are what a row counts in a
    mean, `weights` (clients, real and synthetic rows) in the loss of step A.
    """

    def __init__(self, share: Tensor, lengths: Sequence[int], parts: int, mu: float) -> None:
        taking = [n if n > 1 else 0 for n in lengths]  # one sample alone sits the step out
        self.share = share
        if 0 in taking:
            self.share = share * share.new_tensor([float(n > 0) for n in taking])[:, None]
        self.one, self.all = Padding(self.share, taking), Padding(self.share, taking, parts)
        self.rows = self.all.shares.view(len(share), -1) / parts
        self.weights = torch.cat([share - mu * self.share, mu * self.rows], dim=1)
        # None where there is no padding.
        self.real = (self.share > 0)[:, :, None] if min(taking) < share.shape[1] else None
        self.discrepancy = Discrepancy(self.share, taking)
        self.discrepancies = Discrepancy(
            self.all.shares[:, 0], [n for n in taking for _ in range(parts)]
        )


class Augmenter:
    """Generators g, RTNets r and prototypes v_bar of several clients during a round.

    In each step the first rows are active and batches are padded, as in
    `fedsim.training.client_groups.Batch`. A client whose batch has one sample sits the step out.
    """

    def __init__(
        self,
        config: Any,
        payload: Tree,
        states: Sequence[State],
        contexts: Sequence[ClientContext],
    ) -> None:
        self._config, self._payload = config, payload
        ctx, shared = contexts[0], payload["generator"]
        dim, classes = ctx.initial["head.weight"].shape[1], ctx.num_classes
        sizes = dim, shared["first.weight"].shape[1] - classes, classes
        generators = [_generator(shared, state, sizes, ctx.seed) for state in states]
        rtnets = [_rtnet(*client, sizes) for client in zip(states, contexts, strict=True)]
        self._all_g = Stack.of(generators, ctx.device, positive=True)
        self._all_r = Stack.of(rtnets, ctx.device, positive=False)
        zeros = torch.zeros(classes, dim)
        start = [state.get("prototypes", zeros) for state in states]
        self._all_prototypes = torch.stack(start).to(ctx.device)
        self._steps = [int(state.get("steps", 0)) for state in states]
        self._rngs = [
            streams.torch_generator(ctx.seed, "fraug/noise", ctx.round, context.client_id)
            for context in contexts
        ]
        self._noise_dim, self._eye = sizes[1], torch.eye(classes, device=ctx.device)
        self._parts = 2 if config.augment == "both" else 1
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._velocities: dict[str, Tensor] = {}
        self._names = METRICS if config.use_rtnet else METRICS[:2]
        self._sums = torch.zeros(len(self._names), len(states), device=ctx.device)
        self._counts = [0] * len(states)
        self._narrow(len(states))

    def _narrow(self, active: int) -> None:
        """Restrict networks and prototypes to the first `active` clients."""
        self.g, self.r = self._all_g.first(active), self._all_r.first(active)
        self.prototypes = self._all_prototypes[:active]

    def begin(self, v: Tensor, y: Tensor, share: Tensor, lengths: list[int]) -> None:
        """Start a step on features v (clients, batch, D) and labels y (clients, batch).

        The prototypes move, and the labels and the noise of all three steps are drawn.
        """
        clients, longest = y.shape
        if clients != len(self.prototypes):
            self._narrow(clients)
        if tuple(lengths) not in self._plans:
            plan = _Plan(share, lengths, self._parts, self._payload["mu"])
            self._plans[tuple(lengths)] = plan
        self._plan = self._plans[tuple(lengths)]
        firsts = [step * n for step, n in zip(self._steps, lengths, strict=False)]
        s = balanced_labels(longest, firsts, len(self._eye)).to(y.device)
        parts = {"both": [s, y], "real": [y], "prototype": [s]}[self._config.augment]
        k = len(parts)
        # Of A, B and C in turn, and for the prototypes.
        labels = torch.stack([*parts, s, *parts, y], dim=1)
        one_hot = F.embedding(labels, self._eye)
        noise = self._noise(1 + (1 + self._config.use_rtnet) * k, longest, lengths)
        inputs = torch.cat([noise, one_hot[:, : noise.shape[1]]], dim=3)
        self._inputs = [step.flatten(1, 2) for step in inputs.tensor_split((k, k + 1), dim=1)]
        self._one_hot, self._labels = one_hot[:, :k].flatten(1, 2), labels[:, :k].flatten(1)
        members = one_hot[:, -1]
        if self._plan.real is not None:
            members = members * self._plan.real
        move_prototypes(self.prototypes, v, members, self._config.prototype_momentum)
        self._near = torch.bmm(one_hot[:, k], self.prototypes)  # v_bar[s]
        self._s, self.features = s, v
        for row, n in enumerate(lengths):
            self._steps[row] += n > 1
            self._counts[row] += n > 1

    def _noise(self, parts: int, longest: int, lengths: list[int]) -> Tensor:
        """Return fresh noise of each client's own stream, (clients, parts, batch, z_dim)."""
        noise = torch.zeros(len(lengths), parts, longest, self._noise_dim)
        for row, n, rng in zip(noise, lengths, self._rngs, strict=False):
            if n < 2:
                continue
            if self._config.noise == "gaussian":
                draws = [self._parts, 1, self._parts][: 2 + self._config.use_rtnet]
                drawn = [torch.randn((k, n, self._noise_dim), generator=rng) for k in draws]
                row[:, :n] = torch.cat(drawn)
            elif n == longest:  # uniform: one draw has the values of several in turn
                torch.rand(row.shape, generator=rng, out=row)
            else:
                row[:, :n] = torch.rand((parts, n, self._noise_dim), generator=rng)
        return noise.to(self.prototypes.device)

    def _bases(self) -> Tensor:
        """Return the bases of e, v_bar[s] and v as `augment` says, (clients, rows, D)."""
        which = self._config.augment
        if which == "both":
            return torch.cat([self._near, self.features], dim=1)
        return self._near if which == "prototype" else self.features

    def synthetic(self) -> tuple[Tensor, Tensor, Tensor]:
        """Step A: return e (clients, rows, D), its labels (clients, rows) and its base."""
        e, base = self.g.evaluated(self._inputs[0]), self._bases()
        if self._config.use_rtnet:
            e = base + self.r.evaluated(torch.cat([e, self._one_hot], dim=2))
        if self._config.interpolate:
            e = torch.lerp(base, e, self._payload["rho"])
        return e, self._labels, base

    @property
    def weights(self) -> Tensor:
        """Weights of the real and synthetic rows in the loss of step A, (clients, rows)."""
        return self._plan.weights

    def learn(self, features: Tensor, head: Head) -> None:
        """Make the steps B and C with the features and the head of the model after step A."""
        self.features = features
        values = self.step_generator(head)
        if self._config.use_rtnet:
            values += self.step_rtnet(head)
        self._sums[:, : len(features)] += torch.stack(values)

    def step_generator(self, head: Head) -> tuple[Tensor, ...]:
        """Step B: g's features are classified as s but far from v; return loss and distance.

        Both are (clients,), and 0 for clients that sit the step out.
        """
        c, plan = self._config, self._plan
        out = self.g.trained(self._inputs[1], plan.one)
        right, delta = cross_entropies(classify(head, out), self._s, plan.share)
        if c.dist_g == "mmd":
            apart, away = plan.discrepancy.gradient(out, self.features)
        else:
            apart, away = _mean_squares(out, self._near, plan.share)
        delta = torch.bmm(delta.mT, head[0]).sub_(away, alpha=c.lam_g)
        step = self.g.backward(delta, plan.one)
        if c.generator_clip is not None:
            norms = torch.linalg.vector_norm(step, dim=1, keepdim=True)
            step *= (c.generator_clip / (norms + 1e-6)).clamp(max=1.0)
        self._descend("generator", self.g, step, c.generator_lr)
        return right, apart

    def step_rtnet(self, head: Head) -> tuple[Tensor, ...]:
        """Step C: e is near its base but hard to classify; return entropy and distance.

        Both are (clients,), and 0 for clients that sit the step out.
        """
        c, plan, base = self._config, self._plan, self._bases()
        inputs = torch.cat([self.g.evaluated(self._inputs[2]), self._one_hot], dim=2)
        # Part by part: in training mode BatchNorm takes the statistics of one part.
        e = self.r.trained(inputs, plan.all).add_(base)
        entropy, delta = entropies(classify(head, e), plan.rows)
        if c.dist_r == "mmd":
            shape = -1, self._s.shape[1], e.shape[2]
            apart, near = plan.discrepancies.gradient(e.view(shape), base.view(shape))
            apart, near = apart.view(-1, self._parts).mean(1), near.view(e.shape)
            near *= c.lam_r / self._parts
        else:
            apart, near = _mean_squares(e, base, plan.rows)
            near *= c.lam_r
        step = self.r.backward(near.sub_(torch.bmm(delta.mT, head[0])), plan.all)
        self._descend("rtnet", self.r, step, c.rtnet_lr)
        return entropy, apart

    def _descend(self, name: str, net: Stack, step: Tensor, lr: float) -> None:
        m, alive = self._config.momentum, self._plan.one.alive
        if m:
            velocities = self._velocities.setdefault(name, torch.zeros_like(step))
            velocity = velocities[: len(step)]
            velocity.mul_(m if alive is None else 1 - (1 - m) * alive).add_(step)
            step = velocity if alive is None else velocity * alive
        net.descend(step, lr)

    def metrics(self) -> list[dict[str, float]]:
        """Return each client's means over its steps of the round."""
        totals = zip(self._sums.T.tolist(), self._counts, strict=True)
        return [
            {name: total / n for name, total in zip(self._names, row, strict=True)} if n else {}
            for row, n in totals
        ]

    def generators(self) -> Rows:
        """Return the shared part of the generators, the one in the payload."""
        return self._all_g.rows().only(set(self._payload["generator"]).__contains__)

    def states(self) -> list[State]:
        """Return each client's state: RTNet, prototypes, steps, and its own part of g if any."""
        prototypes, rtnets = self._all_prototypes.cpu(), self._all_r.rows().split()
        rows = zip(rtnets, prototypes, self._steps, strict=True)
        kept: list[State] = [{"rtnet": r, "prototypes": p, "steps": n} for r, p, n in rows]
        if self._all_g.template.layout != self._payload["generator"].layout:
            for state, generator in zip(kept, self._all_g.rows().split(), strict=True):
                state["generator"] = generator
        return kept


Sizes = tuple[int, int, int]
"""Features, noise and classes."""


def _generator(shared: Params, state: State, sizes: Sizes, seed: int) -> Params:
    """Return a client's generator: the shared part merged into its own."""
    if "generator" in state:
        return state["generator"].merged(shared)
    if "first_norm.running_mean" in shared:
        return shared
    return initial_weights(generator_network(*sizes), seed, "fraug/generator").merged(shared)


def _rtnet(state: State, ctx: ClientContext, sizes: Sizes) -> Params:
    if "rtnet" in state:
        return state["rtnet"]
    return initial_weights(transformation_network(*sizes), ctx.seed, "fraug/rtnet", ctx.client_id)


def move_prototypes(prototypes: Tensor, v: Tensor, members: Tensor, momentum: float) -> None:
    """Move prototypes (clients, C, D) towards the class means of v (clients, batch, D), in place.

    `members` (clients, batch, C) are one-hot labels, 0 for padding. Absent classes stay.
    """
    sizes = members.sum(1)[:, :, None]
    means = torch.bmm(members.mT, v) / sizes.clamp_min(1)
    prototypes.lerp_(means, momentum * (sizes > 0))


def balanced_labels(batch: int, firsts: Sequence[int], num_classes: int) -> Tensor:
    """Return labels that cycle through the classes from `firsts`, int64 (clients, batch)."""
    return (torch.tensor(firsts)[:, None] + torch.arange(batch)) % num_classes


def entropies(logits: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return weighted Shannon entropies in nats (clients,), and their gradients by the logits.

    Logits are (clients, C, rows); `weights` (clients, rows) are those of the rows.
    """
    log_p = F.log_softmax(logits, dim=1)
    p = log_p.exp()
    rows = -(p * log_p).sum(1, keepdim=True)
    slope = log_p.add_(rows).mul_(p).mul_(-weights[:, None])
    return (rows[:, 0] * weights).sum(1), slope


def _mean_squares(a: Tensor, b: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean squared differences (clients,), and their gradients by a (clients, rows, D)."""
    difference = a - b
    values = (difference.square().mean(2) * share).sum(1)
    return values, difference.mul_(share[:, :, None] * (2 / a.shape[2]))
