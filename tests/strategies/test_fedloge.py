"""FedLoGe: what is trained by what, what travels, and what realignment makes of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fedsim
import fedsim.evaluate
from clients.fedloge import FedLoGe as LogeClient
from clients.fedloge import fixed_head
from fedsim.client import Update
from fedsim.components.build import build_dataset, build_partition, training_rows
from fedsim.data.partition import Manifest
from fedsim.data.subsets import class_sizes
from fedsim.engine.jobs import Block, ClientJob
from fedsim.errors import InputError
from fedsim.evaluate.classification import shot_groups
from fedsim.maths.etf import sparse_etf
from fedsim.maths.heads import BIAS, WEIGHT, realign_to, realigned, row_norms
from fedsim.params import Params
from fedsim.params.trees import leaves
from fedsim.runs import checkpoint
from fedsim.runs.client_states import StateStore
from fedsim.strategy import sample_cohort
from fedsim.training.local_sgd import Fit
from strategies.fedloge import FedLoGe
from tests.support.played import Player
from tests.support.runs import DROPOUT_AND_BATCH_NORM, prepared, tiny

LOGE = {"name": "fedloge", "gamma": 1.0}
FRESH = {"partition": {"name": "iid", "clients": 4, "test": 0.2}}


def played(**changes: Any) -> Player:
    strategy = {**LOGE, **changes.pop("strategy", {})}
    return Player(strategy=strategy, **changes)


class Batch:
    """One batch of client 0 with a fit under way, as the loss sees it."""

    def __init__(self, scene: Player) -> None:
        self.scene = scene
        worker = scene.worker
        self.ctx = worker.context(Block(0, 1, "train"), 0)
        self.payload = scene.payload(1, 0)
        self.state = scene.client.init_state(self.ctx)
        data = worker.data(ClientJob(0, scene.manifest.client(0)))
        self.x, self.y = next(iter(data.train.batches(32)))
        self.ctx.model.load(self.payload["model"])
        extra = scene.client.extra(self.payload, self.state, self.ctx)
        names = [*self.ctx.model.parameter_names, *extra]
        tensors = [*self.ctx.model.parameters, *(t.requires_grad_() for t in extra.values())]
        self.fit = Fit(self.ctx, self.payload, self.state, names, tensors, 0.1, data.train)

    def gradients(self) -> dict[str, torch.Tensor]:
        loss = self.scene.client.loss(self.fit, self.x, self.y)
        grads = torch.autograd.grad(loss, self.fit.parameters)
        return dict(zip(self.fit.names, grads, strict=True))

    def set(self, name: str, value: float) -> None:
        with torch.no_grad():
            self.fit.named()[name].fill_(value)

    @property
    def body(self) -> list[str]:
        return [name for name in self.fit.names if name.startswith("body.")]


@pytest.fixture
def batch() -> Batch:
    return Batch(played())


def test_each_part_has_a_loss_of_its_own(batch: Batch) -> None:
    named = batch.fit.named()
    module: Any = batch.ctx.model.module
    z = module.body(batch.x)
    s = fixed_head(batch.payload, batch.ctx)
    alone = {
        "body.": F.cross_entropy(z @ s.T, batch.y),
        "head.": F.cross_entropy(F.linear(z, named[WEIGHT], named[BIAS]), batch.y),
        "phi.": F.cross_entropy(F.linear(z, named["phi.weight"], named["phi.bias"]), batch.y),
    }
    together = batch.gradients()
    for prefix, loss in alone.items():
        names = [name for name in batch.fit.names if name.startswith(prefix)]
        assert names
        grads = torch.autograd.grad(loss, [named[n] for n in names], retain_graph=True)
        for name, grad in zip(names, grads, strict=True):
            torch.testing.assert_close(together[name], grad, rtol=1e-6, atol=1e-9)
            assert float(grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("changed", "moved"), [(WEIGHT, "head."), ("phi.weight", "phi."), ("S", "body.")]
)
def test_no_head_reaches_another_part(batch: Batch, changed: str, moved: str) -> None:
    """The gradients of a part are the same bits whatever the heads are that train the others."""
    before = batch.gradients()
    if changed == "S":
        batch.payload["etf"]["gamma"] = 3.0
    else:
        batch.set(changed, 0.25)
    after = batch.gradients()
    for name in batch.fit.names:
        assert torch.equal(before[name], after[name]) != name.startswith(moved), name


@pytest.mark.parametrize("order", [("body", "head", "phi"), ("phi", "head", "body")])
def test_one_loss_is_three_optimisers_in_any_order(order: tuple[str, ...]) -> None:
    scene = played(client={"lr": 0.1, "momentum": 0.5, "epochs": 2, "batch_size": 16})
    own = Batch(scene)
    named = {n: t.detach().clone().requires_grad_() for n, t in own.fit.named().items()}
    module = copy.deepcopy(own.ctx.model.module)
    s = fixed_head(own.payload, own.ctx)
    sgd = {
        part: torch.optim.SGD(
            [t for n, t in named.items() if n.startswith(part)], lr=0.1, momentum=0.5
        )
        for part in order
    }
    data = scene.worker.data(ClientJob(0, scene.manifest.client(0)))
    generator = fedsim.rng.torch_generator(0, "client", 1, 0)
    body = {n: t for n, t in named.items() if n.startswith("body.")}
    for x, y in data.train.batches(16, generator, 2):
        short = {n.removeprefix("body."): t for n, t in body.items()}
        z = torch.func.functional_call(module.body, short, (x,))  # type: ignore[arg-type]
        stopped = z.detach()
        losses = {
            "body": F.cross_entropy(z @ s.T, y),
            "head": F.cross_entropy(F.linear(stopped, named[WEIGHT], named[BIAS]), y),
            "phi": F.cross_entropy(F.linear(stopped, named["phi.weight"], named["phi.bias"]), y),
        }
        for part in order:
            sgd[part].zero_grad()
            losses[part].backward()
            sgd[part].step()
    update = scene.update(0, own.payload)
    for name, tensor in update.tensors["model"].items():
        torch.testing.assert_close(tensor, named[name].detach(), rtol=1e-5, atol=1e-6)
    for name, tensor in scene.states[0].items():
        torch.testing.assert_close(tensor, named[f"phi.{name}"].detach(), rtol=1e-5, atol=1e-6)


def test_heads_are_passengers() -> None:
    """The body's way is the same bits, whatever psi and phi_k are."""
    one, two = played(), played()
    payload = two.payload(1, 0)
    other = payload["model"].merged({WEIGHT: torch.randn(10, 16), BIAS: torch.ones(10)})
    two.states[0] = {"weight": torch.zeros(10, 16), "bias": torch.ones(10)}
    first = one.update(0, one.payload(1, 0)).tensors["model"]
    second = two.update(0, {**payload, "model": other}).tensors["model"]
    for name in first:
        assert torch.equal(first[name], second[name]) == name.startswith("body."), name


def test_the_fixed_head_stays_what_it_is() -> None:
    scene = played(strategy={"score_etf": True})
    numbers = {"beta": 0.6, "gamma": 1.0, "seed": 0, "paper_schedule": False}
    before = sparse_etf(10, 16, **numbers).clone()
    for round in (1, 2):
        updates = scene.updates(round)
        scene.strategy.state, _ = scene.strategy.aggregate(scene.strategy.state, updates)
    ctx = scene.worker.context(Block(0, 3, "train"), 0)
    assert torch.equal(fixed_head(scene.payload(3, 0), ctx), before)
    probe = scene.strategy.scored(scene.strategy.state)["generic-etf"]
    assert torch.equal(probe[WEIGHT], before)
    assert not probe[BIAS].any()
    sparse_etf.cache_clear()
    assert torch.equal(sparse_etf(10, 16, **numbers), before)


def test_aggregation_weighs_by_samples() -> None:
    """n = (1, 3) with constants a = 1, b = 5: (1 + 15) / 4 = 4, BatchNorm's buffers included."""
    scene = played(model={"name": "resnet", "width": 8}, strategy=LOGE)
    like: Params = scene.strategy.state.model
    assert any("running_var" in name for name in like.layout.names)
    updates = [
        Update({"model": like.replace(torch.full_like(like.flat, value))}, weight)
        for value, weight in ((1.0, 1.0), (5.0, 3.0))
    ]
    state, _ = scene.strategy.aggregate(scene.strategy.state, updates)
    assert torch.equal(state.model.flat, torch.full_like(like.flat, 4.0))
    assert {WEIGHT, BIAS} <= set(state.model)


def test_what_reaches_the_server(tmp_path: Path) -> None:
    scene = played()
    update = scene.update(0, scene.payload(1, 0))
    found = dict(leaves(update.tensors))
    assert list(found) == ["model"]
    body = 64 * 16 + 16  # digits are 8 x 8
    assert found["model"].flat.numel() == body + 10 * 16 + 10
    assert not found["model"].integers
    assert set(update.metrics) == {"train_loss"}
    assert not torch.equal(found["model"][WEIGHT], scene.states[0]["weight"])
    run = fedsim.run(tiny(strategy=LOGE, rounds=1), out=tmp_path)
    up = run.clients[run.clients["name"] == "bytes_up"]["value"]
    assert set(up) == {4.0 * (body + 10 * 16 + 10)}


def test_the_fixed_head_does_not_travel() -> None:
    payload = played().payload(1, 0)
    sizes = {path: leaf for path, leaf in leaves(payload) if isinstance(leaf, torch.Tensor)}
    assert sizes == {}
    assert isinstance(payload["model"], Params)


def test_who_is_not_selected_keeps_its_head(tmp_path: Path) -> None:
    kept = []
    for rounds in (1, 2):
        setting = tiny(strategy=LOGE, rounds=rounds, participation=0.5, name=f"r{rounds}")
        run = fedsim.run(setting, out=tmp_path)
        loaded = checkpoint.load_latest(run.path)
        assert loaded is not None
        store = StateStore(run.path)
        store.restore(loaded[1]["states"])
        kept.append([store.get_bytes(client) for client in range(8)])
        store.close()
    first, second = (set(sample_cohort(0, round, 8, 4)) for round in (1, 2))
    assert first - second
    assert second - first
    for client in range(8):
        if client not in first:
            assert kept[0][client] is None
        assert (kept[0][client] == kept[1][client]) == (client not in second)


def test_personal_heads_start_apart_and_small() -> None:
    scene = played()
    heads = []
    for client in range(8):
        ctx = scene.worker.context(Block(0, 1, "train"), client)
        heads.append(scene.client.init_state(ctx))
    for head in heads:
        assert float(head["weight"].abs().max()) <= 1 / 4  # 1 / sqrt(16)
        assert float(head["weight"].abs().max()) > 0.2
        assert head["bias"].shape == (10,)
    assert len({head["weight"].numpy().tobytes() for head in heads}) == 8


def test_realignment_is_a_function_of_the_state() -> None:
    scene = played(strategy={"realign_scale": 2.5, "realign_bias": "drop"})
    scene.strategy.state, _ = scene.strategy.aggregate(scene.strategy.state, scene.updates(1))
    state = scene.strategy.state
    before = state.model.flat.clone()
    models = scene.strategy.scored(state)
    psi, after = state.model, models["generic"]
    assert models["generic-before"] is psi
    torch.testing.assert_close(row_norms(after[WEIGHT]), torch.full((10,), 2.5))
    torch.testing.assert_close(F.cosine_similarity(after[WEIGHT], psi[WEIGHT]), torch.ones(10))
    assert not after[BIAS].any()
    assert psi[BIAS].any()
    for name in psi:
        assert torch.equal(after[name], psi[name]) == name.startswith("body.")
    assert torch.equal(state.model.flat, before)


@pytest.mark.parametrize("how", ["realigned", "realigned+local", "realigned+global"])
def test_personal_logits(how: str) -> None:
    scene = played(client={"personal_logits": how})
    scene.update(0, scene.payload(1, 0))
    payload, phi = scene.payload(2, 0), scene.states[0]
    psi: Params = payload["model"]
    sent, kept = psi.flat.clone(), {n: t.clone() for n, t in phi.items()}
    ctx = scene.worker.context(Block(0, 2, "evaluate"), 0)
    model = scene.client.personal_model(payload, phi, ctx)
    z = torch.rand(5, 16)
    logits = z @ realign_to(psi[WEIGHT], phi["weight"]).T + psi[BIAS]
    if how == "realigned+local":
        logits = logits + z @ phi["weight"].T + phi["bias"]
    if how == "realigned+global":
        logits = logits + z @ psi[WEIGHT].T + psi[BIAS]
    torch.testing.assert_close(F.linear(z, model[WEIGHT], model[BIAS]), logits)
    model.flat.zero_()
    assert torch.equal(psi.flat, sent)
    assert all(torch.equal(phi[name], kept[name]) for name in phi)


def test_rows_of_norm_one_are_the_global_head() -> None:
    scene = played(client={"personal_logits": "realigned"})
    payload = scene.payload(1, 0)
    phi = {"weight": F.normalize(torch.randn(10, 16), dim=1), "bias": torch.zeros(10)}
    weight, bias = scene.client.personal_head(payload, phi)
    torch.testing.assert_close(weight, payload["model"][WEIGHT])
    torch.testing.assert_close(bias, payload["model"][BIAS])


def test_scores_of_a_client_are_those_of_its_models() -> None:
    scene = played(**FRESH)
    scene.update(0, scene.payload(1, 0))
    scene.strategy.state, _ = scene.strategy.aggregate(scene.strategy.state, scene.updates(1))
    payload = scene.payload(2, 0)
    data = scene.worker.data(ClientJob(0, scene.manifest.client(0)))
    ctx = scene.worker.context(Block(0, 2, "evaluate"), 0)
    found = scene.client.evaluate(payload, scene.states[0], data, ctx)
    assert set(found) == {
        f"{kind}{when}/{what}" for kind in ("generic", "personal") for when in ("", "-before")
        for what in ("accuracy", "loss")
    }  # fmt: skip
    psi = payload["model"]
    phi = scene.states[0]
    models = {
        "generic": scene.strategy.generic(scene.strategy.state),
        "generic-before": psi,
        "personal": scene.client.personal_model(payload, phi, ctx),
        "personal-before": psi.merged(
            {WEIGHT: psi[WEIGHT] + phi["weight"], BIAS: psi[BIAS] + phi["bias"]}
        ),
    }
    for kind, params in models.items():
        ctx.model.load(params)
        accuracy, loss = fedsim.evaluate.score(ctx.model.module, data.test).values()
        assert found[f"{kind}/accuracy"] == accuracy
        assert found[f"{kind}/loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("rule", ["train", "test"])
def test_absent_classes_are_masked(rule: str) -> None:
    scene = played(client={"mask_absent": rule}, partition={"alpha": 0.05})
    data = scene.worker.data(ClientJob(0, scene.manifest.client(0)))
    view = data.train if rule == "train" else data.test
    present = set(view.labels().tolist())
    assert 0 < len(present) < 10
    head = torch.zeros(10, 16), torch.arange(10.0)
    weight, bias = scene.client._masked(head, data)
    assert {c for c in range(10) if bias[c] > -torch.inf} == present
    assert torch.equal(weight, head[0])
    assert head[1].tolist() == list(range(10))
    own = LogeClient(LogeClient.Config())
    assert own._masked(head, data) is head


def test_with_a_dense_head_it_is_plain_fedetf(tmp_path: Path) -> None:
    """beta 0, before realignment: the body of FedETF with cross-entropy on plain features."""
    loge = fedsim.run(tiny(strategy={**LOGE, "beta": 0.0, "gamma": 2.0}, name="a"), out=tmp_path)
    etf = fedsim.run(
        tiny(
            strategy={"name": "fedetf", "gamma": 2.0, "projection": False},
            client={"normalise": False, "loss": "cross-entropy"},
            name="b",
        ),
        out=tmp_path,
    )
    one, other = loge.arrays(), etf.arrays()
    names = [name for name in one if name.startswith("body.")]
    assert names
    assert all(torch.equal(one[name], other[name]) for name in names)
    scored = fedsim.run(
        tiny(strategy={**LOGE, "beta": 0.0, "gamma": 2.0, "score_etf": True}, name="c"),
        out=tmp_path,
    )
    for what in ("accuracy", "loss"):
        assert scored.final[f"test/generic-etf/{what}"] == etf.final[f"test/generic/{what}"]


def test_trained_by_the_auxiliary_head_it_is_fedavg(tmp_path: Path) -> None:
    loge = fedsim.run(tiny(strategy={**LOGE, "backbone": "auxiliary"}, name="a"), out=tmp_path)
    avg = fedsim.run(tiny(client={"vectorise": False}, name="b"), out=tmp_path)
    for what in ("accuracy", "loss"):
        mine, theirs = (run.final[f"test/{kind}/{what}"]
                        for run, kind in ((loge, "generic-before"), (avg, "generic")))  # fmt: skip
        assert mine == theirs
    # Realigned from the folder of the other run alone, FedAvg's model is the one saved here.
    arrays = avg.arrays()
    for name, tensor in {**arrays, **realigned(arrays)}.items():
        assert torch.equal(tensor, loge.arrays()[name]), name


def test_a_run_gives_both_models(tmp_path: Path) -> None:
    run = fedsim.run(tiny(strategy=LOGE), out=tmp_path)
    torch.testing.assert_close(row_norms(run.arrays()[WEIGHT]), torch.full((10,), 1.7))
    names = run.clients[run.clients["split"] == "test"]["name"]
    kinds = {name.partition("/")[0] for name in names}
    assert kinds == {"generic", "generic-before", "personal", "personal-before"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": {**LOGE, "beta": 1.0}}, r"beta must be in \[0, 1\), got 1\.0"),
        ({"strategy": {**LOGE, "beta": -0.1}}, r"beta must be in \[0, 1\), got -0\.1"),
        ({"strategy": {**LOGE, "gamma": 0.0}}, "gamma must be > 0"),
        ({"strategy": {**LOGE, "realign_scale": 0.0}}, "realign_scale must be > 0"),
        ({"strategy": {**LOGE, "realign_bias": "zero"}}, "strategy.realign_bias must be 'keep' or"),
        ({"client": {"mask_absent": "all"}}, "client.mask_absent must be 'none' or"),
        ({"model": {"name": "mlp", "hidden": [9]}}, "needs at least 10 features, .* has 9"),
        ({"model": {"name": DROPOUT_AND_BATCH_NORM}}, "needs a model with a linear layer named"),
        (
            {"partition": {"name": f"{__file__}:one_without", "clients": 4}},
            r"every client must have at least 1 sample, but 1 of 4 have none \(clients 2\)",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        fedsim.run(tiny(**{"strategy": LOGE, **changes}), out=tmp_path)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def one_without(samples: Any, clients: int, rng: Any) -> Any:
    """All clients but the third share the samples."""
    from fedsim.data.partition import Assignment as Owners

    bounds = np.array([0, 10, 20, 20, len(samples)], np.int64)
    return Owners(np.arange(len(samples), dtype=np.int32), bounds)


# Class sizes worked out in the paper's protocol: floor(n_max IF^(-c / (C - 1))), and how many of
# the classes are many, medium and few by the shares 75 % and 95 %.
@pytest.mark.parametrize(
    ("classes", "largest", "imbalance", "ends", "total", "groups"),
    [
        (10, 5000, 50, (5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100), 13_996, (4, 3, 3)),
        (10, 5000, 100, (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50), 12_406, (3, 3, 4)),
        (100, 500, 50, (500, 480, 462), 12_608, (34, 34, 32)),
        (100, 500, 100, (500, 477, 455), 10_847, (30, 31, 39)),
        (10, 6000, 50, (6000, 3884, 2515, 1628, 1054, 682, 442, 286, 185, 120), 16_796, (4, 3, 3)),
        (10, 6000, 100, (6000, 3596, 2156, 1292, 774, 464, 278, 166, 100, 60), 14_886, (3, 3, 4)),
    ],
)
def test_the_protocol_of_the_data(
    classes: int, largest: int, imbalance: int, ends: tuple[int, ...], total: int,
    groups: tuple[int, ...],
) -> None:  # fmt: skip
    sizes = class_sizes(classes, largest, imbalance)
    assert tuple(sizes[: len(ends)].tolist()) == ends
    assert int(sizes.sum()) == total
    assert tuple(len(g) for g in shot_groups(sizes, "cumulative")) == groups


def test_every_sample_of_the_long_tail_has_one_owner() -> None:
    setting = {
        "dataset": {"name": "digits", "imbalance": 10},
        "partition": {"name": "dirichlet", "variant": "multinomial", "alpha": 0.5, "clients": 8,
                      "validation": 0.0, "test": "matched"},
    }  # fmt: skip
    experiment = prepared(strategy=LOGE, **setting)
    dataset = build_dataset(experiment)
    manifest: Manifest = build_partition(experiment, dataset)
    rows = training_rows(experiment, dataset)
    assert rows is not None
    assert sorted(manifest.indices.tolist()) == rows.tolist()
    again = build_partition(experiment, dataset)
    assert again.indices.tolist() == manifest.indices.tolist()
    assert again.pointers.tolist() == manifest.pointers.tolist()
    other = build_partition(prepared(strategy=LOGE, seed=1, **setting), dataset)
    assert other.indices.tolist() != manifest.indices.tolist()


def test_options_reach_the_clients() -> None:
    strategy = FedLoGe(FedLoGe.Config(beta=0.3, gamma=0.2, paper_schedule=True))
    scene = played(strategy={"beta": 0.3, "gamma": 0.2})
    payload = strategy.configure(scene.strategy.state, 1, [0])
    assert payload["etf"] == {
        "beta": 0.3, "gamma": 0.2, "paper_schedule": True, "backbone": "etf",
    }  # fmt: skip
    ctx = scene.worker.context(Block(0, 1, "train"), 0)
    rows = fixed_head(scene.payload(1, 0), ctx)
    assert torch.equal(rows, sparse_etf(10, 16, beta=0.3, gamma=0.2, seed=0, paper_schedule=False))
    assert int((rows == 0).sum()) == 48
