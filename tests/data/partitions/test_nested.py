"""Partitions as options of partitions: ``within: {name: dirichlet, alpha: 0.5}``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.cli.show import show_component
from fedsim.components.configure import complete, configure
from fedsim.config.reading import load_experiment, to_yaml
from fedsim.data.nested import Partition
from fedsim.data.partition import Assignment, build_manifest
from fedsim.data.partitions.dirichlet import dirichlet
from fedsim.errors import InputError
from fedsim.rng import numpy_generator
from tests.support.partitions import divide, samples_of

SAMPLES = samples_of(np.arange(40) % 4, domains=np.arange(40) % 2)
MINE = """\
import numpy as np
from fedsim.data.nested import Partition
from fedsim.data.partition import Assignment
from fedsim.data.partitions.iid import iid

def odd(samples, clients, rng, *, clients_made: int = 0, rows: int = 0):
    n = clients_made or clients
    return Assignment(np.full(n, rows, np.int32), np.arange(n + 1))

def none(samples, clients, rng):
    return None

def around(samples, clients, rng, *, inside: Partition = Partition("iid", iid, option="inside")):
    return inside(samples, clients, rng)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def experiment(**partition: Any) -> Any:
    return load_experiment(
        {
            "name": "x",
            "rounds": 1,
            "dataset": {"name": "digits"},
            "partition": {"clients": 4, **partition},
            "model": {"name": "mlp"},
            "strategy": {"name": "fedavg"},
            "participation": 1.0,
        }
    )


def completed(base: Path | None = None, **partition: Any) -> dict[str, Any]:
    done = complete(experiment(**partition), base)
    assert complete(done, base) == done
    section = done.partition.options
    return {"name": done.partition.name, **section}


def test_a_nested_section_becomes_the_function_with_its_options() -> None:
    within = configure("partitions", "public", {"within": {"name": "dirichlet", "alpha": 1}})
    assert within["within"] == Partition("dirichlet", dirichlet, {"alpha": 1.0})
    assert repr(within["within"]) == "{name: dirichlet, alpha: 1.0}"


def test_the_completed_experiment_holds_every_default_of_the_nested_one() -> None:
    assert completed(name="public", size=3)["within"] == {"name": "iid"}
    given = {"name": "modality", "images": 4, "within": {"name": "dirichlet", "alpha": 1}}
    assert completed(name="public", size=3, within=given) == {
        "name": "public",
        "size": 3,
        "share": None,
        "domain": None,
        "within": {
            "name": "modality",
            "images": 4,
            "texts": 0,
            "pairs": 0,
            "within": {"name": "dirichlet", "alpha": 1.0, "min_size": 1, "variant": "class"},
        },
    }


def test_it_can_be_written_read_and_overridden(tmp_path: Path) -> None:
    done = complete(experiment(name="domain", within={"name": "dirichlet", "alpha": 1}))
    (tmp_path / "x.yaml").write_text(to_yaml(done))
    assert load_experiment(tmp_path / "x.yaml") == done
    again = load_experiment(tmp_path / "x.yaml", ["partition.within.alpha=0.25"])
    assert complete(again).partition.options["within"]["alpha"] == 0.25


def test_a_nested_partition_of_a_file_becomes_absolute(folder: Path) -> None:
    done = completed(folder, name="public", size=1, within={"name": "./mine.py:odd"})
    assert done["within"] == {"name": f"{folder}/mine.py:odd", "clients_made": 0, "rows": 0}
    done = completed(folder, name="./mine.py:around")
    assert done == {"name": f"{folder}/mine.py:around", "inside": {"name": "iid"}}


@pytest.mark.parametrize(
    ("within", "parts"),
    [
        ("iid", ["partition.within must be a mapping with the name and options of a partition"]),
        (None, ["partition.within must be a mapping", "such as {name: iid}, got null"]),
        ({"alpha": 1}, ["partition.within must be a mapping"]),
        (
            {"name": "dirichle"},
            ["partition.within.name must be one of", "Did you mean 'dirichlet'"],
        ),
        ({"name": "dirichlet"}, ["partition.within.alpha is missing"]),
        ({"name": "dirichlet", "alpha": "x"}, ["partition.within.alpha must be a number, got 'x'"]),
        (
            {"name": "iid", "clients": 3},
            ["partition.within.clients is not an option of 'iid'", "allowed are name."],
        ),
        (
            {"name": "public", "within": {"name": "dirichlet", "alph": 1}},
            ["partition.within.within.alph ", "partition.within.within.alpha is missing"],
        ),
    ],
)
def test_what_is_wrong_in_a_nested_section_is_told_with_its_key(
    within: Any, parts: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        complete(experiment(name="public", size=3, within=within))
    for part in parts:
        assert part in str(caught.value)


def test_what_a_nested_partition_refuses_is_told_with_its_key(folder: Path) -> None:
    inner = {"name": "dirichlet", "alpha": -1.0}
    with pytest.raises(InputError, match=r"^partition\.within\.alpha must be > 0"):
        divide(SAMPLES, "public", 4, size=3, within=inner)
    with pytest.raises(InputError, match=r"^partition\.within\.within\.alpha must be > 0"):
        divide(SAMPLES, "public", 4, size=3, within={"name": "domain", "within": inner})
    # clients is no option of the nested partition but of the section.
    inner = {"name": "dirichlet", "alpha": 1.0, "min_size": 30}
    with pytest.raises(InputError, match=r"^partition\.within\.min_size x partition\.clients must"):
        divide(SAMPLES, "public", 4, size=3, within=inner)
    around = configure(
        "partitions", "./mine.py:around", {"inside": {"name": "shards", "shards": 0}}, folder
    )
    with pytest.raises(InputError, match=r"^partition\.inside\.shards must be >= 1, got 0"):
        around["inside"](SAMPLES, 4, numpy_generator(0, "p"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("odd", {"clients_made": 3}, r"partition\.within\.name .* must make 4 clients, got 3"),
        ("odd", {"rows": 37}, r"partition\.within\.name .* must refer to samples below 37, got 37"),
        ("none", {}, r"partition\.within\.name .* must return a fedsim Assignment, got None"),
    ],
)
def test_a_nested_partition_that_breaks_the_contract(
    folder: Path, name: str, options: dict[str, int], message: str
) -> None:
    given = {"size": 3, "within": {"name": f"./mine.py:{name}", **options}}
    values = configure("partitions", "public", given, folder)
    from fedsim.data.partitions.public import public

    with pytest.raises(InputError, match=message):
        public(SAMPLES, 4, numpy_generator(0, "p"), **values)


def test_a_manifest_cannot_be_nested(tmp_path: Path) -> None:
    own = Assignment(np.arange(40), np.array([0, 10, 20, 30, 40]))
    build_manifest(own, 0, 0, numpy_generator(0, "h")).save(tmp_path / "m.npz")
    within = {"name": "file", "path": str(tmp_path / "m.npz")}
    with pytest.raises(InputError, match=r"partition\.within\.name 'file' makes a whole manifest"):
        divide(SAMPLES, "modality", 4, images=4, within=within)


def test_the_nested_partition_is_shown_as_a_file_writes_it() -> None:
    lines = show_component("partition", "public").splitlines()
    row = next(line for line in lines if line.startswith("within"))
    assert row.split() == ["within", "Partition", "{name:", "iid}"]
