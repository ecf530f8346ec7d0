"""CreamFL's server: what it trains on and when, and what is missing at times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fedsim
from fedsim.client import Update
from fedsim.errors import InputError
from fedsim.params import Params
from fedsim.runs.codec import to_bytes
from strategies._public_pairs import Target, distance
from tests.support.pairs import DIM, PUBLIC, Scene, small, unit
from tests.support.runs import events, tiny

NOTHING = torch.empty(0, DIM)


def same_weights(one: Params, two: Params, only: str = "") -> bool:
    return all(one[n].equal(two[n]) for n in one if n.startswith(only))


# The server


def test_without_distillation_clients_do_not_matter() -> None:
    """Its trajectory is that of an image-text model trained on the public pairs alone."""
    alone, other = Scene(strategy={"kd_weight": 0.0}), Scene(strategy={"kd_weight": 0.0})
    for round in (1, 2):
        alone.round(round=round)
        other.round([5], round=round)
    assert alone.strategy.state.model.flat.equal(other.strategy.state.model.flat)
    with_them = Scene()
    for round in (1, 2):
        with_them.round(round=round)
    assert not with_them.strategy.state.model.flat.equal(alone.strategy.state.model.flat)


def test_the_server_trains_on_the_public_pairs_in_the_order_of_the_rounds() -> None:
    """Rounds of one epoch each at the cosine rate, by torch's Adam on the model itself."""
    scene = Scene(rounds=3, strategy={"kd_weight": 0.0, "optimiser": "adam", "clip_norm": None})
    reference = Scene(rounds=3).ctx
    module: Any = reference.model.module
    server, view = module.server, reference.server
    reference.model.load(scene.initial)
    assert view is not None
    optimiser = torch.optim.Adam(server.parameters())
    server.train()
    for round, rate in ((1, 1.0), (2, 0.75), (3, 0.25)):
        optimiser.param_groups[0]["lr"] = 0.01 * rate
        generator = reference.generator("public/server/supervised", round)
        for rows in torch.randperm(PUBLIC, generator=generator).split(16):
            x, y = server.images(view.inputs(rows)), server.texts(view.tokens(rows))
            u = server.shift - server.scale * ((x.unsqueeze(1) - y) ** 2).sum(2).add(1e-6).sqrt()
            truth = torch.eye(len(rows))
            loss = 2 * F.binary_cross_entropy_with_logits(2 * u, truth, reduction="sum")
            optimiser.zero_grad()
            loss.backward()
            for parameter in server.parameters():
                if parameter is server.log_temperature:
                    parameter.grad = None
            optimiser.step()
        scene.round([0], round=round)
        for name, tensor in server.state_dict().items():
            found = scene.strategy.state.model[f"server.{name}"]
            torch.testing.assert_close(found, tensor, rtol=1e-3, atol=1e-4)
    assert scene.strategy.state.round == 3


def test_targets_that_are_the_servers_own_give_no_loss_and_no_step() -> None:
    from strategies._public_pairs import PublicTraining

    scene = Scene(strategy={"optimiser": "sgd", "lr": 1.0, "clip_norm": None})
    server = PublicTraining(scene.strategy.config, scene.ctx)
    server.load(scene.initial)
    before = server.read()
    images, texts = ([Target(rep, 0.6)] for rep in server.embed_both())
    _, loss = server.distil(images, texts, "mse", {}, 1)
    assert loss == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(server.read().flat, before.flat, rtol=0, atol=1e-6)


def test_distances_by_hand() -> None:
    x, target = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 1.0]])
    assert float(distance(x, target, "mse")) == (9 + 16 + 1) / 4
    assert float(distance(x, target, "l2")) == (5 + 1) / 2


def both(first: int) -> list[Update]:
    """Return updates of two clients with pairs, of four different matrices."""
    made = []
    for client in (4, 5):
        reps = [unit(PUBLIC, DIM, first + 10 * client + m) for m in range(2)]
        tensors: dict[str, Any] = {"local_img": reps[0], "local_txt": reps[1]}
        made.append(Update(tensors, 1.0, client=client))
    return made


def test_each_modality_is_weighed_by_the_other_one() -> None:
    """The targets of a round, from the server's representations that the clients got in it."""
    scene = Scene()
    state, updates = scene.strategy.state, both(1)
    after, metrics = scene.strategy.aggregate(state, updates)
    for name, found, other in (
        ("img", after.consensus_images, state.texts),
        ("txt", after.consensus_texts, state.images),
    ):
        local = torch.stack([u.tensors[f"local_{name}"] for u in updates]).double()
        scores = (local @ other.double().T).log_softmax(2).diagonal(dim1=1, dim2=2)
        weights = scores.softmax(0)
        expected = (weights.unsqueeze(2) * local).sum(0)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
        own = [metrics[f"weight_{name}/{u.client}"] for u in updates]
        assert own == pytest.approx(weights.mean(1).tolist())
    gap = (state.images.mean(0) - state.texts.mean(0)).square().sum().sqrt()
    assert metrics["modality_gap"] == pytest.approx(float(gap), rel=1e-5)


@pytest.mark.parametrize("reduction", ["mse", "l2"])
def test_distillation_is_a_step_towards_each_modalitys_target(reduction: str) -> None:
    """In round 2 of 2, whose rate is half the first one, on all pairs at once."""
    options = {"batch_size": PUBLIC, "optimiser": "sgd", "lr": 0.1, "clip_norm": None}
    scene = Scene(rounds=2, strategy={**options, "kd_weight": 0.4, "kd_reduction": reduction})
    scene.round()
    state = scene.strategy.state
    after, metrics = scene.strategy.aggregate(state, both(1))
    view = scene.ctx.server
    assert view is not None
    scene.ctx.model.load(state.ahead)
    server: Any = scene.ctx.model.module.get_submodule("server").train()
    apart = (
        server.images(view.inputs()) - after.consensus_images,
        server.texts(view.tokens()) - after.consensus_texts,
    )
    how = {"mse": lambda d: d.square().mean(), "l2": lambda d: d.square().sum(1).sqrt().mean()}
    loss = 0.4 * sum(how[reduction](d) for d in apart)
    assert metrics["kd_loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    named = dict(server.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
        moved = torch.zeros(()) if gradient is None else 0.05 * gradient
        found = after.model[f"server.{name}"]
        torch.testing.assert_close(found, parameter.detach() - moved, rtol=0, atol=1e-6)


def test_supervised_images_are_augmented_and_others_are_not() -> None:
    from fedsim.models.image_text import retrieval_loss
    from strategies._public_pairs import PublicTraining

    emoji = {"name": "emoji", "vendors": ["noto"], "share": 0.12, "augment": {"crop": 4}}
    scene = Scene(dataset=emoji, strategy={"batch_size": PUBLIC})
    training = PublicTraining(scene.strategy.config, scene.ctx)
    training.load(scene.initial)
    part, view = training.part, training.public
    draw = scene.ctx.generator("public/server/supervised", 1)
    order = torch.randperm(PUBLIC, generator=draw)
    moved = view.changed(order, draw)[0]
    assert not moved.equal(view.inputs(order))
    with torch.no_grad():
        clean = part.images(view.inputs())
        x, y = part.images(moved), part.texts(view.tokens(order))
        expected = float(retrieval_loss(part, x, y, "pcme", None))
    assert training.embed("image").equal(clean)
    _, loss = training.distil([Target(clean, 1.0)], [], "mse", {}, 1)
    assert loss == pytest.approx(0, abs=1e-12)
    training.load(scene.initial)
    _, loss = training.supervised({}, 1)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_an_epoch_is_the_mean_over_batches_at_the_given_temperature() -> None:
    """16 + 16 + 8 pairs in the order of the epoch; another epoch of the round has another order."""
    from strategies._public_pairs import PublicTraining

    still = {"optimiser": "sgd", "lr": 1e-9, "retrieval_loss": "infonce", "temperature": 0.2}
    scene = Scene(strategy=still)
    training = PublicTraining(scene.strategy.config, scene.ctx)
    found = []
    for epoch, name in ((0, "supervised"), (1, "supervised-1")):
        training.load(scene.initial)
        with torch.no_grad():
            x, y = training.part.images(training.public.inputs()), training.embed("text")
        draw = scene.ctx.generator(f"public/server/{name}", 1)
        losses = []
        for rows in torch.randperm(PUBLIC, generator=draw).split(16):
            logits = x[rows] @ y[rows].T / 0.2
            both_ways = logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()
            losses.append(-float(both_ways.mean()) / 2)
        assert len(losses) == 3
        found.append(training.supervised({}, 1, epoch)[1])
        assert found[-1] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert found[0] != pytest.approx(found[1], rel=1e-5)


def test_a_mask_leaves_rows_out_of_the_distance_and_not_of_the_mean() -> None:
    from strategies._public_pairs import PublicTraining

    scene = Scene(strategy={"batch_size": PUBLIC})
    server = PublicTraining(scene.strategy.config, scene.ctx)
    server.load(scene.strategy.state.model)
    own = server.embed("image")
    wrong, chosen = own.clone(), torch.zeros(PUBLIC, dtype=torch.bool)
    wrong[:10] += 1.0
    chosen[5:] = True
    _, loss = server.distil([Target(wrong, 0.5, chosen)], [], "mse", {}, 1)
    assert loss == pytest.approx(0.5 * 5 / PUBLIC, rel=1e-4)


def test_what_is_sent_after_a_round_is_the_server_one_epoch_ahead() -> None:
    scene = Scene(rounds=2)
    before = to_bytes(scene.strategy.state)
    scene.payload(0)
    assert to_bytes(scene.strategy.state) == before
    scene.round()
    state = scene.strategy.state
    scene.ctx.model.load(state.ahead)
    module: Any = scene.ctx.model.module.eval()
    assert scene.ctx.server is not None
    with torch.no_grad():
        found = module.images(scene.ctx.server.inputs())
    torch.testing.assert_close(scene.payload(0, 2)["global_img"], found)
    assert not same_weights(state.ahead, state.model)
    scene.round(round=2)
    # No round follows: nothing is trained ahead.
    assert same_weights(scene.strategy.state.ahead, scene.strategy.state.model)


def test_consensus_is_what_clients_get_where_that_is_wanted() -> None:
    scene = Scene(rounds=3, strategy={"shares": "consensus", "aggregation": "mean"})
    first = scene.payload(0)
    assert first["global_img"].equal(scene.strategy.state.images)
    sent = [scene.train(c) for c in (0, 1)]
    scene.strategy.state, _ = scene.strategy.aggregate(scene.strategy.state, sent)
    mean = (sent[0].tensors["local_img"] + sent[1].tensors["local_img"]) / 2
    second = scene.payload(0, 2)
    torch.testing.assert_close(second["global_img"], mean)
    assert second["global_txt"].equal(scene.strategy.state.texts)  # nobody sent texts
    sent = [scene.train(c, round=2) for c in (2, 3)]
    scene.strategy.state, _ = scene.strategy.aggregate(scene.strategy.state, sent)
    mean = (sent[0].tensors["local_txt"] + sent[1].tensors["local_txt"]) / 2
    third = scene.payload(0, 3)
    torch.testing.assert_close(third["global_txt"], mean)
    assert third["global_img"].equal(second["global_img"])  # nobody sent images


# What is missing


def test_a_round_without_a_modality_distils_the_other_alone() -> None:
    scene = Scene()
    metrics = scene.round([2, 3])
    assert (metrics["clients_img"], metrics["clients_txt"]) == (0.0, 2.0)
    assert "alignment_img" not in metrics
    assert scene.strategy.state.consensus_images is None
    other = Scene()
    nobody = [Update({"local_img": NOTHING, "local_txt": NOTHING}, 1.0, client=0)]
    other.strategy.state, metrics = other.strategy.aggregate(other.strategy.state, nobody)
    assert "kd_loss" not in metrics
    assert metrics["clients_txt"] == 0.0


def test_such_a_round_is_recorded(tmp_path: Path) -> None:
    inner = {"name": "modality", "images": 0, "texts": 6, "pairs": 0}
    partition = {"name": "public", "clients": 6, "size": PUBLIC, "test": 0.2, "within": inner}
    run = fedsim.run(tiny(**small(partition=partition)), out=tmp_path)
    assert run.status == "finished"
    assert (run.final["train/clients_img"], run.final["train/clients_txt"]) == (0.0, 6.0)
    assert "train/single_recall@1/txt" in run.final
    assert "train/single_recall@1/img" not in run.final


def test_texts_without_words_are_represented_and_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsim.data.dataset import Dataset, Split
    from fedsim.data.datasets import emoji as module

    whole = module.emoji(vendors=("noto",))

    def speechless(**options: Any) -> Dataset:
        splits = []
        for split in (whole.train, whole.test):
            tokens = split.extra["tokens"].copy()
            tokens[::3] = 0
            splits.append(Split(split.x, split.y, {**split.extra, "tokens": tokens}))
        return Dataset("emoji", *splits, whole.card, vocabulary=whole.vocabulary)

    speechless.__wrapped__ = module.emoji  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "emoji", speechless)
    changes = small(dataset={"name": "emoji", "share": 0.12})
    run = fedsim.run(tiny(**changes), out=tmp_path)
    assert run.status == "finished"
    assert events(run) == []
    assert all(bool(torch.isfinite(t).all()) for t in run.arrays().values())


def test_what_it_needs_is_said_before_the_first_round(tmp_path: Path) -> None:
    iid = {"name": "iid", "clients": 6}
    with pytest.raises(InputError, match="'creamfl' needs public pairs"):
        fedsim.run(tiny(**small(partition=iid)), out=tmp_path)
    secret = {**small()["partition"], "name": "server-labelled", "server_share": 0.2}
    del secret["size"]
    with pytest.raises(InputError, match="'creamfl' needs public pairs"):
        fedsim.run(tiny(**small(partition=secret)), out=tmp_path)
    with pytest.raises(InputError, match=r"needs the model \{name: image-text\}"):
        fedsim.run(tiny(**small(model={"name": "mlp"})), out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("section", "options", "text"),
    [
        ("strategy", {"kd_weight": -1.0}, "kd_weight must be >= 0"),
        ("strategy", {"gca_tau": 0.0}, "gca_tau must be > 0"),
        ("strategy", {"aggregation": "median"}, "aggregation"),
        ("strategy", {"batch_size": 0}, "batch_size must be >= 1"),
        ("client", {"gamma": -0.5}, "gamma must be >= 0"),
        ("client", {"tau": 0.0}, "tau must be > 0"),
        ("client", {"inter": False, "intra": False}, "inter must be true"),
        ("client", {"temperature": 0.0}, "temperature must be > 0"),
        ("client", {"lcr_mode": "both"}, "lcr_mode"),
        ("client", {"lr_drops": [3, 0]}, "lr_drops must be a list, each >= 1"),
    ],
)
def test_bad_options(section: str, options: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=text):
        fedsim.run(tiny(**small(**{section: options})), out=tmp_path)
    assert not list(tmp_path.iterdir())
