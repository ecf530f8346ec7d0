"""FedSTO: what is trained, sent and averaged in each stage, the teacher and its boxes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fedsim
from clients.fedsto import pseudo_targets
from fedsim.client import Update
from fedsim.data.augment import Augmentation
from fedsim.data.views import HiddenData, View
from fedsim.maths.orthogonality import Orthogonality
from fedsim.models.detector import Detections
from fedsim.params import Params
from fedsim.params.filters import in_backbone
from fedsim.training.local_sgd import Fit
from tests.support.fedsto_scenes import Scene, in_rest, moved, sections
from tests.support.played import assert_weights, changed
from tests.support.runs import events, model_bits

# Stage 1


def test_selective_training_changes_and_sends_the_backbone_alone() -> None:
    scene = Scene(1)
    assert set(scene.payload["model"]) == {n for n in scene.w if in_backbone(n)}
    assert set(scene.payload["fixed"]) == {n for n in scene.w if in_rest(n)}
    update = scene.train()
    assert set(update.tensors) == {"model"}
    assert set(update.tensors["model"]) == {n for n in scene.w if in_backbone(n)}
    after = scene.resident()
    different = moved(scene.w, after)
    assert different
    assert all(map(in_backbone, different))
    assert any(name.endswith("running_mean") for name in different)
    trained = {n for n in scene.w.layout.names[: scene.w.layout.num_parameters] if in_backbone(n)}
    assert len(trained & different) > 0.9 * len(trained)


def backbone(params: Params) -> Params:
    return params.only(in_backbone)


def test_the_backbones_are_averaged_by_samples_and_the_rest_stays_the_servers() -> None:
    scene = Scene(1)
    first, second = (backbone(changed(scene.w, 0.1, seed)) for seed in (1, 2))
    updates = [Update({"model": first}, 1.0), Update({"model": second}, 3.0)]
    joined = scene.strategy.join(scene.strategy.state, updates)
    for name in scene.w.layout.names:
        expected = (first[name] + 3 * second[name]) / 4 if in_backbone(name) else scene.w[name]
        torch.testing.assert_close(joined.model[name], expected, rtol=1e-6, atol=1e-7)
    for name in filter(in_rest, scene.w):
        assert joined.model[name].equal(scene.w[name])
    for alike in ([1.0, 5.0], [2.0]):
        updates = [Update({"model": first}, weight) for weight in alike]
        found = scene.strategy.join(scene.strategy.state, updates).model
        torch.testing.assert_close(backbone(found).flat, first.flat)


def test_recorded_bytes_are_those_of_backbone_and_model(tmp_path: Path) -> None:
    run = fedsim.run(sections(), out=tmp_path)
    assert events(run) == []
    sizes = {n: t.numel() * t.element_size() for n, t in run.arrays().items()}
    whole, part = sum(sizes.values()), sum(v for n, v in sizes.items() if in_backbone(n))
    up = run.client_values("train", "bytes_up")
    assert set(up[up["round"] == 2]["value"]) == {part}
    assert set(up[up["round"] >= 3]["value"]) == {whole}
    assert set(up["round"]) == {2, 3, 4}
    down = run.client_values("train", "bytes_down")["value"]
    assert down.min() >= whole
    assert down.max() <= whole + 100  # lam, the round and such
    assert 0.5 < part / whole < 0.9


def test_lam_has_no_effect_before_stage_2(tmp_path: Path) -> None:
    runs = [
        fedsim.run(sections(rounds=2, name=f"lam{lam}", strategy={"lam": lam}), out=tmp_path)
        for lam in (0.0, 10.0)
    ]
    assert model_bits(runs[0]) == model_bits(runs[1])


# Stage 2


def test_everything_is_trained_and_sent_in_stage_2() -> None:
    scene = Scene(2)
    assert len(scene.payload["fixed"]) == 0
    update = scene.train()
    different = moved(scene.w, update.tensors["model"])
    assert len(different) > 0.95 * len(scene.w)
    assert {n.split(".")[0] for n in different} == {"backbone", "neck", "head"}


@pytest.mark.parametrize("penalised", ["non-backbone", "all"])
def test_the_penalty_is_on_filters_of_neck_and_head(penalised: str) -> None:
    scene = Scene(2, {"lam": 1e-4, "penalised": penalised})
    assert scene.payload["lam"] == 1e-4
    context, client = scene.player.context(), scene.player.client
    client.start(scene.payload, None, context)
    names, parameters = context.model.parameter_names, context.model.parameters
    fit = Fit(context, scene.payload, None, names, [*parameters], 0.1, scene.player.data().train)
    client.prepare(fit)
    penalty = fit.scratch["ortho"](fit.scratch["V"])
    grads = torch.autograd.grad(penalty, parameters, allow_unused=True)
    touched = {n for n, g in zip(names, grads, strict=True) if g is not None and g.abs().sum() > 0}
    filters = {n for n, p in zip(names, parameters, strict=True) if p.ndim > 1}
    assert touched == {n for n in filters if penalised == "all" or in_rest(n)}


def test_without_lam_it_is_semi_supervised_averaging(tmp_path: Path) -> None:
    """ortho none and lam 0 are the same run; a large lam is another."""
    different = {"lam": {"lam": 0.0}, "none": {"ortho": "none"}, "much": {"lam": 1.0}}
    runs = {
        name: fedsim.run(sections(rounds=3, name=name, strategy=options), out=tmp_path)
        for name, options in different.items()
    }
    assert model_bits(runs["lam"]) == model_bits(runs["none"])
    assert model_bits(runs["lam"]) != model_bits(runs["much"])
    assert "train/ortho" in runs["much"].final
    assert "train/ortho" not in runs["lam"].final


def test_a_round_of_a_client_written_out() -> None:
    """torch.optim, a teacher averaged by name, and the loss on its boxes: the same weights."""
    options: dict[str, Any] = {"momentum": 0.9, "weight_decay": 1e-3, "alpha": 0.8, "epochs": 2}
    scene = Scene(2, {"lam": 0.01}, **options)
    update = scene.train()
    student: Any = scene.player.module(scene.w)
    teacher: Any = copy.deepcopy(student).eval()
    penalty = Orthogonality("shorter")
    rate = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    view, rng = scene.player.data().train, scene.player.rng(round=scene.round)
    steps = 0
    for order in view.index_batches(2, rng, 2):
        x = view.inputs(order)
        with torch.no_grad():
            found = teacher.detect(x, least_score=0.01, iou=0.65)
        targets = pseudo_targets(
            found.boxes, found.labels, found.scores, found.objectness, 0.01, 0.03
        )
        assert (found.labels >= 0).any()
        loss = student.loss_of(student(x), targets)
        named = {n: p for n, p in student.named_parameters() if in_rest(n)}
        rate.zero_grad()
        (loss + 0.01 * penalty(named)).backward()
        rate.step()
        with torch.no_grad():
            for ours, theirs in zip(
                teacher.state_dict().values(), student.state_dict().values(), strict=True
            ):
                if ours.is_floating_point():
                    ours.copy_(0.8 * ours + 0.2 * theirs)
        steps += 1
    assert steps == 2 * 2
    assert_weights(update.tensors["model"], student, 1e-4)


# The teacher


def teacher_after(alpha: float, steps: int = 1) -> tuple[Params, Params, Params]:
    """Return the broadcast model, the student and the teacher after some steps."""
    found = {}
    for who in ("student", "teacher"):
        scene = Scene(2, uploads=who, alpha=alpha, steps=steps)
        found[who] = scene.train().tensors["model"]
    return scene.w, found["student"], found["teacher"]


def test_the_teacher_is_a_moving_average_from_the_broadcast_model() -> None:
    w, student, teacher = teacher_after(0.75)
    torch.testing.assert_close(teacher.flat, 0.75 * w.flat + 0.25 * student.flat)
    assert moved(w, teacher) >= {n for n in w.layout.names if n.endswith("running_mean")}


def test_the_global_labeller_and_the_current_student_are_its_ends() -> None:
    w, student, teacher = teacher_after(1.0, 3)
    assert teacher.flat.equal(w.flat)
    assert not student.flat.equal(w.flat)
    _, student, teacher = teacher_after(0.0, 3)
    torch.testing.assert_close(teacher.flat, student.flat, rtol=1e-6, atol=1e-7)


def test_the_teacher_has_no_gradient_and_does_not_outlive_the_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(2)
    seen: list[Any] = []
    original = type(scene.player.client).detect

    def detect(self: Any, module: Any, x: Tensor) -> Detections:
        seen.append((module, [p.requires_grad for p in module.parameters()], module.training))
        return original(self, module, x)  # type: ignore[no-any-return]

    monkeypatch.setattr(type(scene.player.client), "detect", detect)
    first = scene.train()
    assert not any(any(flags) or training for _, flags, training in seen)
    scene.train(client=3)
    again = scene.train()
    assert first.tensors["model"].flat.equal(again.tensors["model"].flat)
    assert first.metrics == again.metrics


# Pseudo boxes


def test_a_teacher_that_finds_nothing_changes_nothing() -> None:
    scene = Scene(2, tau_low=1.0, tau_high=1.0, momentum=0.9, weight_decay=0.1)
    update = scene.train()
    assert update.tensors["model"].flat.equal(scene.w.flat)
    assert update.metrics["train_loss"] == 0.0
    assert scene.player.client.audit(update.claims, labelled(scene), None) == {
        "pseudo_boxes": 0.0,
        "pseudo_recall": 0.0,
    }


def labelled(scene: Scene, client: int = 0) -> View:
    data = scene.player.data(client)
    return View(
        scene.player.worker.dataset.train, data.train_rows, scene.player.worker.dataset.card
    )


def truth(view: View) -> Detections:
    boxes, labels = (torch.as_tensor(view.column(c)) for c in ("boxes", "box_labels"))
    sure = (labels >= 0).float()
    return Detections(boxes, labels, sure, sure)


def test_a_perfect_teacher_is_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(2, tau_low=0.1, tau_high=0.6)
    view, client, context = labelled(scene), scene.player.client, scene.player.context()
    client.start(scene.payload, None, context)
    payload = {**scene.payload, "lam": 0.0}
    names, parameters = context.model.parameter_names, context.model.parameters
    fit = Fit(context, payload, None, names, [*parameters], 0.1, view)
    module: Any = context.model.module.eval()
    x, told = view.inputs(), truth(view)
    real = module.loss(module(x), told.boxes, told.labels)
    assert float(client.loss(fit, x, told).detach()) == float(real.detach()) > 0
    claims = [(torch.arange(len(view)), told)]
    metrics = client.audit(claims, view, context)
    assert metrics["pseudo_precision"] == metrics["pseudo_recall"] == 1.0
    assert metrics["pseudo_boxes"] == float((told.labels >= 0).sum()) / len(view)


def test_the_audit_counts_reliable_boxes_alone() -> None:
    scene = Scene(2, tau_low=0.1, tau_high=0.6)
    view = labelled(scene)
    told = truth(view)
    told.scores = told.scores * 0.5
    count = int((told.labels >= 0).sum())
    told.scores[0, 0] = 0.7
    found = scene.player.client.audit([(torch.arange(len(view)), told)], view, None)
    assert found["pseudo_precision"] == 1.0
    assert found["pseudo_recall"] == pytest.approx(1 / count)
    told.labels[0, 0] = 1 - told.labels[0, 0]
    found = scene.player.client.audit([(torch.arange(len(view)), told)], view, None)
    assert found["pseudo_precision"] == found["pseudo_recall"] == 0.0


def test_boxes_follow_the_augmented_image() -> None:
    """With the true boxes for a teacher's, the augmented student is taught where objects went."""
    scene = Scene(2)
    view = labelled(scene)
    view.augment = Augmentation(flip=True, crop=5)
    client, context = scene.player.client, scene.player.context()
    client.start(scene.payload, None, context)
    names, parameters = context.model.parameter_names, context.model.parameters
    fit = Fit(context, scene.payload, None, names, [*parameters], 0.1, view)
    client.prepare(fit)
    order: list[int] = []
    client.detect = (
        lambda module, x: Detections(  # type: ignore[method-assign]
            *(v[order[-len(x) :]] for v in vars(truth(view)).values())
        )
    )
    rng, same = (torch.Generator().manual_seed(5) for _ in range(2))
    shown = torch.randperm(len(view), generator=same)
    order += shown.tolist()
    client.config = type(client.config)(batch_size=len(view))
    ((x, found),) = client.batches(fit, rng, 1, None)
    expected, place = view.changed(shown, same)
    told = truth(view)
    boxes, labels = place.boxes(told.boxes[shown], told.labels[shown])
    assert x.equal(expected)
    assert found.boxes.equal(boxes)
    assert found.labels.equal(labels)
    assert not found.boxes.equal(told.boxes[shown])


def test_clients_read_no_label() -> None:
    scene = Scene(2)
    view = scene.player.data().train
    for read in (view.labels, lambda: view.column("boxes"), lambda: view.column("box_labels")):
        with pytest.raises(HiddenData):
            read()
    assert scene.train().weight == len(view)


def test_the_loss_is_weighed() -> None:
    """A step with the weight 3 is one with three times the rate."""
    options: dict[str, Any] = {"steps": 1, "momentum": 0.0, "weight_decay": 0.0}
    heavy = Scene(2, {"lam": 0.0}, unsupervised_weight=3.0, lr=0.05, **options).train()
    fast = Scene(2, {"lam": 0.0}, unsupervised_weight=1.0, lr=0.15, **options).train()
    plain = Scene(2, {"lam": 0.0}, unsupervised_weight=1.0, lr=0.05, **options).train()
    assert heavy.metrics["train_loss"] == pytest.approx(3 * plain.metrics["train_loss"], rel=1e-5)
    w = Scene(2).w.flat
    steps = [(update.tensors["model"].flat - w) for update in (heavy, fast, plain)]
    size = Scene(2).w.layout.parameter_size
    torch.testing.assert_close(steps[0][:size], steps[1][:size], rtol=1e-3, atol=1e-7)
    assert float(steps[0][:size].norm()) > 2.9 * float(steps[2][:size].norm()) > 0


def test_the_proximal_term_pulls_to_the_broadcast_model() -> None:
    """The second step's gradient differs by mu times the first step."""
    plain = Scene(2, steps=1).train().tensors["model"]
    w = Scene(2).w
    pulled = Scene(2, steps=1, mu=5.0).train().tensors["model"]
    assert pulled.flat.equal(plain.flat)
    far, near = (Scene(2, steps=8, mu=mu).train().tensors["model"] for mu in (0.0, 5.0))
    size = w.layout.parameter_size
    distances = [float((p.flat - w.flat)[:size].norm()) for p in (far, near)]
    assert distances[1] < 0.8 * distances[0]
