"""Moments of features against numpy, and their picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.cli.commands import main
from fedsim.errors import InputError
from fedsim.evaluate.feature_statistics import Moments
from tests.support.runs import DROPOUT_AND_BATCH_NORM, model_bits, tiny


def participation(covariance: np.ndarray) -> float:
    values = np.linalg.eigvalsh(covariance)
    return float(values.sum() ** 2 / (values**2).sum())


def test_against_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    z, y = torch.randn(60, 4, generator=generator), torch.arange(60) % 3
    z += torch.tensor([[3.0, 0, 0, 0], [0, 2, 2, 0], [1, 1, 1, 1]])[y]
    y[y == 2] = 3  # class 2 of four has no samples
    parts = Moments.of(z[:25], y[:25], 4) + Moments.of(z[25:], y[25:], 4)
    found = parts.metrics()
    x, labels = z.double().numpy(), y.numpy()
    means = {c: x[labels == c].mean(0) for c in (0, 1, 3)}
    for c, mean in means.items():
        own = x[labels == c]
        assert found[f"mean_norm/{c}"] == pytest.approx(np.linalg.norm(mean))
        assert found[f"noise/{c}"] == pytest.approx(np.sqrt(own.var(0).sum()))
        assert found[f"mean_dims/{c}"] == pytest.approx((mean**2).sum() ** 2 / (mean**4).sum())
    assert "mean_norm/2" not in found
    around = np.stack([means[c] for c in labels.tolist()])
    assert found["dims"] == pytest.approx(participation(np.cov(x.T, bias=True)))
    assert found["dims_within"] == pytest.approx(participation(np.cov((x - around).T, bias=True)))
    centres = np.stack(list(means.values()))
    assert found["dims_means"] == pytest.approx(participation(np.cov(centres.T, bias=True)))
    assert found["collapse"] == pytest.approx((x - around).var(0).sum() / x.var(0).sum())


def test_collapsed_features() -> None:
    """Three classes at three orthogonal points: no noise, one feature a mean, a plane in all."""
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    found = Moments.of(torch.eye(3)[y] * 5, y, 3).metrics()
    assert [found[f"mean_norm/{c}"] for c in range(3)] == pytest.approx([5, 5, 5])
    assert [found[f"mean_dims/{c}"] for c in range(3)] == pytest.approx([1, 1, 1])
    assert [found[f"noise/{c}"] for c in range(3)] == pytest.approx([0, 0, 0])
    assert (found["dims"], found["collapse"]) == pytest.approx((2, 0))


def test_a_run_records_and_draws_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = {"every": 2, "features": True}
    run = fedsim.run(tiny(rounds=2, evaluation=evaluation), out=tmp_path)
    rows = run.metrics[run.metrics["split"] == "features"].set_index("name")["value"]
    arrays = run.arrays()
    norms = arrays["head.weight"].norm(dim=1)
    for c in range(10):
        assert rows[f"generic/head_norm/{c}"] == pytest.approx(float(norms[c]), rel=1e-6)
    from fedsim.components.build import build_dataset
    from fedsim.data.partition import Manifest

    dataset = build_dataset(run.config)
    owned = Manifest.load(run.path / "partition.npz").indices
    counts = np.bincount(dataset.train.y[owned], minlength=10)
    assert [rows[f"samples/{c}"] for c in range(10)] == counts.tolist()
    features = []
    model: Any = run.model()
    model.body.register_forward_hook(lambda *a: features.append(a[2]))
    from fedsim.data.views import View

    view = View(dataset.test, np.arange(len(dataset.test)), dataset.card)
    with torch.no_grad():
        model(view.inputs())
    mean = features[0][view.labels() == 3].mean(0)
    assert rows["mean_norm/3"] == pytest.approx(float(mean.norm()), rel=1e-5)
    plain = fedsim.run(tiny(rounds=2, name="plain"), out=tmp_path)
    assert model_bits(plain) == model_bits(run)
    assert "features" not in set(plain.metrics["split"])
    assert main(["features", str(run.path), str(run.path), "--out", str(tmp_path / "x.svg")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'x.svg'}\n"
    figure = fedsim.features([run.path])
    lines = figure.axes[0].lines
    order = np.argsort(-counts, kind="stable")
    drawn = np.asarray(lines[0].get_ydata())
    assert drawn == pytest.approx([rows[f"mean_norm/{c}"] for c in order])
    with pytest.raises(InputError, match=r"has recorded no features; set evaluation\.features"):
        fedsim.features(plain.path)
    with pytest.raises(InputError, match=r"recorded features in rounds \[2\], not in 1"):
        fedsim.features(run.path, round=1)


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    odd = tiny(model={"name": DROPOUT_AND_BATCH_NORM}, evaluation={"features": True})
    with pytest.raises(InputError, match=r"evaluation\.features must be false for model"):
        fedsim.run(odd, out=tmp_path)
