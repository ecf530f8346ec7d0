"""Models that are scored by something else than accuracy, brought with the model alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import fedsim
from fedsim.data.datasets.digits import digits
from fedsim.data.partition import Manifest
from fedsim.data.views import View
from fedsim.errors import InputError
from fedsim.sweeps.sweep import table, table_text
from tests.support.runs import assert_same, model_bits, tiny

MODEL = '''
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from fedsim.evaluate import Scorer, Unit
from fedsim.models.mlp import mlp


@dataclass
class Labels:
    """The sum and number of labels, and the order in which they came."""

    seen: list
    moments = None

    def __add__(self, other):
        return Labels(self.seen + other.seen)

    def metrics(self):
        order = float(sum(i * y for i, y in enumerate(self.seen)) % 1009)
        return {"share": sum(self.seen) / len(self.seen) / 9, "order": order}

    def balanced(self):
        return None

    def by_shots(self, groups):
        return {}


class ByLabels(Scorer):
    headline = "share"
    units = {"share": Unit("share"), "order": Unit("plain", higher_is_better=False)}

    def tally(self, module, view, num_classes, batch_size=512, *, features=False):
        assert not features
        return Labels(view.labels().tolist())

    def picture(self, module, dataset):
        figure = Figure(figsize=(1, 1), dpi=10)
        bias = float(next(iter(module.parameters())).detach().abs().sum())
        figure.subplots().plot([0, bias])
        return figure


def scored(input_shape, num_classes):
    """A perceptron that is scored by the labels of what it is scored on."""
    module = mlp(input_shape, num_classes, hidden=[16])
    module.scorer = ByLabels()
    return module
'''


@pytest.fixture
def model(tmp_path: Path) -> str:
    file = tmp_path / "scored.py"
    file.write_text(MODEL)
    return f"{file}:scored"


def test_a_model_says_how_it_is_scored(model: str, tmp_path: Path) -> None:
    run = fedsim.run(tiny(model={"name": model}, rounds=2), out=tmp_path)
    labels = digits().test.y
    assert run.headline == "share"
    assert run.final["test/generic/share"] == pytest.approx(labels.mean() / 9, rel=1e-12)
    assert run.final["test/generic/order"] == float((np.arange(len(labels)) * labels).sum() % 1009)
    assert "test/generic/accuracy" not in run.final
    manifest = Manifest.load(run.path / "partition.npz")
    own = run.client_values("test", "generic/share", last=True).set_index("client")["value"]
    for client in range(8):
        mine = digits().train.y[manifest.client(client).test]
        assert own[client] == pytest.approx(mine.mean() / 9, rel=1e-12)
    summary = dict(run.summary())
    assert summary["generic share"] == f"{labels.mean() / 9:.2%}".replace("%", " %")
    assert summary["worst client"] == f"{own.min():.2%}".replace("%", " %")


def test_comparisons_and_sweeps_show_the_headline_metric(model: str, tmp_path: Path) -> None:
    runs = [fedsim.run(tiny(model={"name": model}, seed=s, rounds=1), out=tmp_path) for s in (0, 1)]
    frame = table(runs)
    assert isinstance(frame, pd.DataFrame)
    assert frame["generic"].tolist() == [pytest.approx(digits().test.y.mean() / 9)]
    assert "generic" in table_text(frame)
    comparison = fedsim.compare(runs)
    assert list(comparison.tables) == ["generic/share", "clients/generic/share"]
    assert "clients/generic/share [%] (last" in str(comparison)
    assert runs[0].unit("clients/generic/order").higher_is_better is False
    assert "clients/generic/share of each client" in comparison.figures()


def test_validation_scores_have_no_balanced_value_where_the_scorer_has_none(
    model: str, tmp_path: Path
) -> None:
    changes = {"evaluation": {"on": "validation"}}
    run = fedsim.run(tiny(model={"name": model}, rounds=1, **changes), out=tmp_path)
    assert {n for n in run.final if n.startswith("validation/generic")} == {
        "validation/generic/share", "validation/generic/order"
    }  # fmt: skip
    assert table([run])["generic"].tolist() == [run.final["validation/generic/share"]]


def test_the_final_model_is_drawn_in_the_run_folder_and_replaced_with_it(
    model: str, tmp_path: Path
) -> None:
    run = fedsim.run(tiny(model={"name": model}, rounds=1), out=tmp_path)
    picture = run.path / "pictures" / "generic.png"
    first = picture.read_bytes()
    assert first.startswith(b"\x89PNG")
    again = fedsim.run(tiny(model={"name": model}, rounds=1), out=tmp_path, force=True)
    assert picture.read_bytes() == first
    other = fedsim.run(tiny(rounds=1), out=tmp_path, force=True)
    assert other.path == again.path
    assert not picture.parent.exists()


def test_further_metrics_are_recorded_and_compared(tmp_path: Path) -> None:
    """Of the server's model and of each client's own test data; the model is the same as without.

    Both metrics are worked out sample by sample from the final model's predictions.
    """
    further = ["macro-f1", "balanced-accuracy"]
    run = fedsim.run(tiny(rounds=2, evaluation={"metrics": further}), out=tmp_path / "with")
    plain = fedsim.run(tiny(rounds=2), out=tmp_path / "without")
    assert model_bits(run) == model_bits(plain)
    assert {n.rpartition("/")[2] for n in set(run.names()) - set(plain.names())} == set(further)
    manifest, data, model = Manifest.load(run.path / "partition.npz"), digits(), run.model()

    def by_hand(view: View) -> tuple[float, float]:
        with torch.no_grad():
            predicted = torch.cat([model(x).argmax(1) for x, _ in view.batches(512)]).tolist()
        pairs = list(zip(view.labels().tolist(), predicted, strict=True))
        f1, recalls = [], []
        for c in range(10):
            right = sum(y == p == c for y, p in pairs)
            true, taken = sum(y == c for y, _ in pairs), sum(p == c for _, p in pairs)
            f1 += [2 * right / (true + taken)] if true + taken else []
            recalls += [right / true] if true else []
        return sum(f1) / len(f1), sum(recalls) / len(recalls)

    whole = by_hand(View(data.test, np.arange(len(data.test)), data.card))
    assert [run.final[f"test/generic/{m}"] for m in further] == pytest.approx(whole)
    for client in range(8):
        own = View(data.train, manifest.client(client).test, data.card)
        for metric, value in zip(further, by_hand(own), strict=True):
            values = run.client_values("test", f"generic/{metric}", last=True)
            assert values.set_index("client")["value"][client] == pytest.approx(value)
    text = str(fedsim.compare([run]))
    for name in ("generic/macro-f1", "clients/generic/balanced-accuracy"):
        assert f"\n{name} [%] (last" in text
        assert run.unit(name).higher_is_better


def test_unknown_metrics_are_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'macro-f1'"):
        fedsim.run(tiny(evaluation={"metrics": ["macro-f2"]}), out=tmp_path)
    assert not list(tmp_path.iterdir())


PUBLIC = '''
from fedsim.client import Update
from fedsim.training.local_sgd import LocalSGD


class Reads(LocalSGD):
    """Reports what it sees of the public samples."""

    def train(self, payload, state, data, rng, ctx):
        public = ctx.public
        rows = [] if public is None else public.indices.tolist()
        labels = 0.0 if public is None else float(public.labels().sum())
        order = float(sum(i * row for i, row in enumerate(rows)) % 100_003)
        seen = {"rows": float(len(rows)), "order": order, "labels": labels}
        return None, Update({"model": payload["model"]}, 1.0, seen)
'''


@pytest.mark.parametrize("engine", ["serial", pytest.param("ray", marks=pytest.mark.ray)])
def test_all_clients_know_the_public_samples_in_one_order(engine: str, tmp_path: Path) -> None:
    file = tmp_path / "reads.py"
    file.write_text(PUBLIC)
    changes = {"client": {"name": f"{file}:Reads"}, "rounds": 1}
    partition = {"name": "public", "clients": 4, "size": 100}
    engines = {"name": engine, **({"workers": 2} if engine == "ray" else {})}
    run = fedsim.run(tiny(partition=partition, engine=engines, **changes), out=tmp_path)
    server = Manifest.load(run.path / "partition.npz").server.astype(np.int64)

    def seen(name: str) -> list[float]:
        return run.client_values("train", name, last=True)["value"].tolist()

    assert seen("rows") == [100.0] * 4
    assert seen("order") == [float((np.arange(100) * server).sum() % 100_003)] * 4
    assert seen("labels") == [float(digits().train.y[server].sum())] * 4


def test_what_only_the_server_knows_is_not_public(tmp_path: Path) -> None:
    file = tmp_path / "reads.py"
    file.write_text(PUBLIC)
    partition = {"name": "server-labelled", "clients": 4, "server_share": 0.5}
    tree = tiny(partition=partition, client={"name": f"{file}:Reads"}, rounds=1)
    run = fedsim.run(tree, out=tmp_path)
    assert run.client_values("train", "rows", last=True)["value"].tolist() == [0.0] * 4


def test_a_resumed_run_knows_them_too(tmp_path: Path) -> None:
    """The partition is then read from the run folder."""
    file = tmp_path / "reads.py"
    file.write_text(PUBLIC)
    partition = {"name": "public", "clients": 4, "size": 100}
    tree = tiny(partition=partition, client={"name": f"{file}:Reads"}, rounds=2)
    whole = fedsim.run(tree, out=tmp_path / "whole")
    cut = fedsim.run({**tree, "rounds": 1}, out=tmp_path / "cut")
    config = cut.path / "config.yaml"
    config.write_text(config.read_text().replace("rounds: 1\n", "rounds: 2\n"))
    for path in (cut.path / "checkpoint").iterdir():
        if path.is_file():
            path.unlink()
    status = cut.path / "status.json"
    status.write_text(status.read_text().replace("finished", "interrupted"))
    assert_same(fedsim.resume(cut.path), whole)
