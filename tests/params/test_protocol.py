"""What a model declares: defaults, and contradictions that are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedsim
from fedsim.errors import InputError
from fedsim.evaluate.classification import CLASSIFICATION
from fedsim.models.answers import Answers
from fedsim.models.blocks.body_head import BodyHead
from fedsim.models.cnn import cnn
from fedsim.models.detector import detector
from fedsim.models.mlp import mlp
from fedsim.models.text_gru import text_gru
from fedsim.params import protocol
from tests.support.runs import tiny

PASSES = ("batched_features", "batched_backward", "batched_head", "head_gradients")


class Net(nn.Module):
    """One linear layer; a test adds members to it."""

    def __init__(self, **members: Any) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        for name, value in members.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1))
        return logits


def method(*_: Any) -> None:
    return None


class NoPicture:
    headline: ClassVar[str] = "accuracy"
    tally = method


def test_a_module_without_members_has_the_defaults() -> None:
    module = nn.Linear(2, 2)
    assert protocol.frozen(module) == protocol.targets(module) == ()
    assert protocol.own_loss(module) is None
    assert protocol.reads(module) == "inputs"
    assert protocol.scorer(module, "default") == "default"
    assert not protocol.detects(module)
    assert not protocol.exports(module)
    assert protocol.stem(module) is None
    assert protocol.linear_head(module) is None
    assert protocol.sample_bytes(module) == 1
    assert protocol.sample_bytes(module, 7) == 7
    assert protocol.missing(module, ("weight", "loss")) == ["loss"]
    protocol.check(module)
    protocol.check_columns(module, ())


def test_declared_members_are_read() -> None:
    head = nn.Linear(2, 2)
    module = Net(
        body=nn.Identity(), head=head, frozen=["body"], targets=["boxes"], loss=method,
        reads="pairs", scorer=CLASSIFICATION, detect=method, save_pretrained=method,
        stem_bytes=3, stem=method, stem_identity=method, sample_bytes=12,
    )  # fmt: skip
    assert protocol.frozen(module) == ("body",)
    assert protocol.targets(module) == ("boxes",)
    assert protocol.own_loss(module) is method
    assert protocol.reads(module) == "pairs"
    assert protocol.scorer(module, None) is CLASSIFICATION
    assert protocol.detects(module)
    assert protocol.exports(module)
    assert protocol.stem(module) is module
    assert protocol.linear_head(module) is head
    assert protocol.sample_bytes(module) == 12


def test_a_loss_without_targets_and_a_stem_of_no_bytes_are_not_used() -> None:
    module = Net(loss=method, stem=nn.Identity(), stem_bytes=0)
    assert protocol.own_loss(module) is None
    assert protocol.stem(module) is None
    protocol.check(module)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"targets": ("boxes",)}, "Net.targets needs a method 'loss' beside it"),
        ({"targets": ("boxes",), "loss": 1.0}, "Net.targets needs a method 'loss' beside it"),
        ({"targets": "boxes", "loss": method}, "Net.targets must be a tuple of names, got 'boxes'"),
        ({"frozen": "head"}, "Net.frozen must be a tuple of names, got 'head'"),
        ({"frozen": (1,)}, r"Net.frozen must be a tuple of names, got \(1,\)"),
        (
            {"frozen": ("head.weight", "hea")},
            "Net.frozen must name layers or tensors of the model, got 'hea'",
        ),
        (
            {"reads": "pair"},
            "Net.reads must be one of 'inputs', 'texts', 'pairs', got 'pair'",
        ),
        ({"stem_bytes": 1}, "Net.stem_bytes needs a method 'stem' beside it"),
        (
            {"stem_bytes": 1, "stem": method},
            "Net.stem_bytes needs a method 'stem_identity' beside it",
        ),
        ({"stem_bytes": -1, "stem": method, "stem_identity": method},
         "Net.stem_bytes must be a whole number >= 0, got -1"),
        ({"sample_bytes": 0}, "Net.sample_bytes must be a whole number >= 1, got 0"),
        ({"sample_bytes": 1.5}, "Net.sample_bytes must be a whole number >= 1, got 1.5"),
        ({"part_of": method}, "Net.part_of needs a method 'scores' beside it"),
        ({"scorer": "mAP"}, "Net.scorer must be a fedsim.evaluate.Scorer, got 'mAP'"),
        ({"scorer": NoPicture()}, "Net.scorer must be a fedsim.evaluate.Scorer, got <.*NoPicture"),
        (
            {"batched_features": method},
            "Net.batched_features needs a method 'batched_gradients' beside it",
        ),
        (
            {"batched_gradients": method, **dict.fromkeys(PASSES[:3], method)},
            "Net.batched_features needs a method 'head_gradients' beside it",
        ),
    ],
)  # fmt: skip
def test_contradictions_are_named(members: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        protocol.check(Net(**members))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"targets": ("boxes", "depth"), "loss": method},
            r"Net.targets must be columns of the data set \(boxes, domain\), got 'depth'",
        ),
        (
            {"reads": "pairs"},
            "Net.reads must be 'inputs' for a data set without texts beside its inputs, "
            "got 'pairs'",
        ),
    ],
)
def test_columns_that_a_data_set_lacks_are_named(members: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        protocol.check_columns(Net(**members), ("boxes", "domain"))


@pytest.mark.parametrize(
    "members",
    [
        {"batched_gradients": method},
        {"batched_gradients": method, **dict.fromkeys(PASSES, method)},
        {"frozen": ("head.bias",)},
        {"frozen": ("head",), "reads": "texts"},
        {"body": nn.Identity()},
        {"targets": ("boxes",), "loss": method},
    ],
)
def test_members_that_fit_are_accepted(members: dict[str, Any]) -> None:
    protocol.check(Net(**members))
    protocol.check_columns(Net(**members), ("boxes", "tokens"))


def test_models_of_the_package_pass_their_own_check() -> None:
    assert Answers.reads == "pairs"
    for module in (
        mlp((1, 4, 4), 2),
        cnn((1, 16, 16), 2),
        detector((3, 32, 32), 2, width=8),
        text_gru((3, 9), 2),
        BodyHead(nn.Flatten(), 4, 2),
    ):
        protocol.check(module)
        protocol.check_columns(module, ("boxes", "box_labels"))


def test_a_run_is_refused_before_it_has_a_folder(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\nclass Net(nn.Sequential):\n    frozen = ('stem',)\n\n"
        "def net(input_shape, num_classes):\n"
        "    return Net(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    experiment = tiny(model={"name": f"{tmp_path / 'net.py'}:net"})
    with pytest.raises(InputError, match=r"^Net\.frozen must name layers or tensors of the model"):
        fedsim.run(experiment, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_loss_of_declared_targets_is_that_of_the_model() -> None:
    module = Net(targets=("boxes",), loss=lambda raw, boxes: (raw - boxes).sum())
    loss = protocol.own_loss(module)
    assert loss is not None
    assert float(loss(torch.ones(2), torch.zeros(2))) == 2.0


@pytest.mark.parametrize(
    "members",
    [
        {
            "body": nn.Identity(),
            "head": nn.Sequential(nn.Linear(2, 2)),
        },
        {"frozen": {"head.bias"}},
        {"sample_bytes": np.int64(64)},
        {"part_of": torch.zeros(2)},
    ],
)
def test_what_a_plain_model_may_have(members: dict[str, Any]) -> None:
    module = nn.Module()
    module.head = nn.Linear(2, 2)
    for name, value in members.items():
        setattr(module, name, value)
    protocol.check(module)
