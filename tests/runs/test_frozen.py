"""Frozen parts that have changed since a run began."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from fedsim.components.trained import weight_sources
from fedsim.errors import InputError, RunFailed
from fedsim.rounds.progress import Progress
from fedsim.runs import checkpoint
from tests.support.runs import tiny

transformers = pytest.importorskip("transformers")


class Stop(Progress):
    """Ends a run after its second round."""

    def round_end(self, round: int, metrics: Mapping[str, float], seconds: float) -> None:
        if round == 2:
            raise KeyboardInterrupt


def write_weights(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4, num_channels=1,
    )  # fmt: skip
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    write_weights(tmp_path / "net", seed=1)
    model = {"name": "vit", "weights": str(tmp_path / "net"), "prompts": 2}
    return tiny(model=model, partition={"name": "iid", "clients": 2}, dataset={"share": 0.1})


def test_a_model_is_not_put_on_another_backbone(settings: Any, tmp_path: Path) -> None:
    run = fedsim.run(settings, out=tmp_path / "runs")
    x = torch.randn(2, 1, 8, 8)
    expected = run.model()(x)
    write_weights(tmp_path / "net", seed=2)
    text = rf"had other weights in the frozen part .* model\.weights = '{tmp_path}/net' gives now"
    with pytest.raises(InputError, match=text):
        run.model()
    assert run.arrays()  # what was trained is still there
    write_weights(tmp_path / "net", seed=1)
    assert run.model()(x).equal(expected)


def test_without_a_checkpoint_there_is_nothing_to_compare(settings: Any, tmp_path: Path) -> None:
    run = fedsim.run(settings, out=tmp_path / "runs")
    for round in checkpoint.rounds(run.path):
        checkpoint.path_of(run.path, round).write_bytes(b"torn")
    assert run.model()
    checkpoint.remove_all(run.path)
    assert run.model()


def test_a_run_is_not_resumed_on_another_backbone(settings: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(settings, out=tmp_path / "runs", progress=Stop())
    folder = tmp_path / "runs" / "tiny" / "seed-0"
    write_weights(tmp_path / "net", seed=2)
    with pytest.raises(RunFailed, match="frozen part of the model has other weights than it had"):
        fedsim.resume(folder)
    write_weights(tmp_path / "net", seed=1)
    assert fedsim.resume(folder).status == "finished"


def test_all_weights_of_a_model_are_named() -> None:
    options = {"dim": 3, "image": {"name": "vit", "weights": "a"}, "towers": "b", "weights": None}
    assert list(weight_sources(options, "model")) == [
        "model.image.weights = 'a'",
        "model.towers = 'b'",
    ]
