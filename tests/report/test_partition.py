import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedsim
from fedsim.cli.commands import main
from fedsim.data.dataset import Card, Dataset, Split
from fedsim.data.partition import Assignment, Manifest, build_manifest
from fedsim.errors import InputError
from fedsim.report.partition import MOST_COLUMNS, class_counts, partition_figure
from fedsim.rng import numpy_generator

EXPERIMENT: dict[str, Any] = {
    "name": "picture", "rounds": 1, "dataset": {"name": "digits"}, "model": {"name": "mlp"},
    "partition": {"name": "dirichlet", "clients": 8, "alpha": 0.3},
    "strategy": {"name": "fedavg"}, "participation": 1.0,
}  # fmt: skip


def dataset(labels: list[int], domains: list[int]) -> Dataset:
    y = np.array(labels, np.int64)
    split = Split(np.zeros((len(y), 1, 1, 1), np.uint8), y, {"domain": np.array(domains)})
    card = Card(
        "t", "s", "l", ("ant", "bee", "cat"), (1, 1, 1), (0.5,), (0.5,), "d", domains=("sun", "fog")
    )
    return Dataset("tiny", split, split, card)


def texts(figure: Any) -> str:
    from matplotlib.text import Text

    figure.canvas.draw()
    return " | ".join(t.get_text() for t in figure.findobj(Text))


def test_counts_by_class_and_domain() -> None:
    data = dataset([0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1])
    own = Assignment(np.array([0, 1, 5, 2, 3]), np.array([0, 3, 5]))
    manifest = build_manifest(own, 0, 0.4, numpy_generator(0, "holdout"))
    assert class_counts(manifest, data).tolist() == [[1, 1, 1], [0, 1, 1]]
    assert class_counts(manifest, data, "domain").tolist() == [[2, 1], [0, 2]]


def test_the_picture_says_what_there_is() -> None:
    data = dataset([0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1])
    own = Assignment(
        np.array([0, 1, 5, 2]), np.array([0, 3, 4]), server=np.array([3]),
        labelled=np.array([1, 0]), modality=np.array([0, 2]),
    )  # fmt: skip
    manifest = build_manifest(own, 0, 0, numpy_generator(0, "holdout"))
    figure = partition_figure(manifest, data, "my title")
    said = texts(figure)
    for part in ("my title", "2 clients, 4 samples", "1 to 3, median 2", "the server has 1",
                 "ant", "cat", "sun", "fog", "1\ntext\nno\nlabels",
                 "share of a client's samples\nof a domain"):  # fmt: skip
        assert part in said
    axes = figure.axes
    assert {"class", "domain"} <= {a.get_ylabel() for a in axes}
    bubbles = figure.axes[0].collections[0].get_offsets()
    assert np.asarray(bubbles).tolist() == [[0, 0], [0, 1], [0, 2], [1, 1]]
    assert [bar.get_height() for bar in figure.axes[1].patches] == [3.0, 1.0]
    assert [bar.get_width() for bar in figure.axes[2].patches] == [1, 2, 1, 0, 0, 1]


def test_a_million_clients_are_drawn_by_a_sample() -> None:
    data = dataset([0, 1, 2, 2], [0, 0, 1, 1])
    own = Assignment(np.tile(np.arange(4), 2500), np.arange(0, 10_001, 2))
    manifest = build_manifest(own, 0, 0, numpy_generator(0, "holdout"))
    figure = partition_figure(manifest, data, "many")
    assert f"{MOST_COLUMNS} of 5,000 clients" in texts(figure)
    assert figure.axes[0].images[0].get_array().shape == (3, MOST_COLUMNS)
    assert "share of a client's samples\nof a class" in texts(figure)


def test_the_command_writes_a_picture_and_a_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    file = tmp_path / "e.yaml"
    file.write_text(yaml.safe_dump(EXPERIMENT))
    out, saved = tmp_path / "x.png", tmp_path / "m.npz"
    arguments = ["partition", str(file), "--out", str(out), "--manifest", str(saved)]
    assert main([*arguments, "--seed", "3"]) == 0
    assert capsys.readouterr().out.split() == [str(out), str(saved)]
    with Image.open(out) as image:
        colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
        assert image.width > 600
        assert colours is not None and len(colours) > 50  # noqa: PT018
    run = fedsim.run(EXPERIMENT, seed=3, out=tmp_path / "runs")
    assert Manifest.load(run.path / "partition.npz").digest() == Manifest.load(saved).digest()


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.gif", r"must end in \.png, \.svg, \.pdf, got .*x\.gif"), ("no/x.png", "no folder")],
)
def test_a_target_that_can_not_be_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fedsim.partition(EXPERIMENT, out=tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_the_same_picture_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        fedsim.partition(EXPERIMENT, out=tmp_path / name)
    first, second = (
        re.sub(r"(id=\"|#)[\w-]+", "", (tmp_path / name).read_text()) for name in ("a.svg", "b.svg")
    )
    assert first == second
