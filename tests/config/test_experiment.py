"""The experiment file: what is accepted, and what is said about what is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.config.reading import base_folder, digest, load_experiment, to_yaml
from fedsim.config.yaml import dump_yaml, parse_yaml
from fedsim.errors import InputError

GOOD = """\
name: small
rounds: 3
dataset: {name: digits}
partition: {name: dirichlet, clients: 20, alpha: 5e-1}
model: {name: cnn, channels: [16, 32]}
strategy: {name: fedavg}
client: {lr: 1e-3, epochs: 2}
participation: 0.3
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(GOOD)
    return path


def test_reads_values_options_and_defaults(good: Path) -> None:
    e = load_experiment(good)
    assert (e.name, e.seed, e.rounds, e.participation) == ("small", 0, 3, 0.3)
    assert e.partition.options == {"alpha": 0.5}
    assert (e.partition.clients, e.partition.validation, e.partition.test) == (20, 0.1, 0.1)
    assert e.model.options == {"channels": [16, 32]}
    assert e.client.name is None
    assert e.client.options == {"lr": 0.001, "epochs": 2}
    assert e.evaluation.model_dump() == {
        "every": 1,
        "personal": True,
        "clients": 1000,
        "batch_size": 512,
        "shots": "auto",
        "on": "test",
        "features": False,
        "across_domains": False,
        "metrics": [],
    }
    assert (e.engine.name, e.engine.workers, e.engine.max_restarts) == ("ray", None, 20)
    assert (e.screening.policy, e.screening.max_norm, e.screening.min_survivors) == ("drop", 1e6, 1)
    assert (e.checkpoint.every, e.checkpoint.min_seconds) == (1, 2.0)


def test_yaml_has_every_default_in_the_files_order_and_reads_back(good: Path) -> None:
    e = load_experiment(good, ["engine.timeout=1e-3", "strategy.note='1e-3'", "dataset.when=on"])
    text = to_yaml(e)
    order = (
        "name: seed: rounds: dataset: partition: model: strategy: client: participation: "
        "evaluation: engine: screening: checkpoint:"
    )
    assert " ".join(line.split()[0] for line in text.splitlines() if line[0] != " ") == order
    assert "partition: {name: dirichlet, clients: 20, validation: 0.1, test: 0.1, alpha: 0.5}" in (
        text.splitlines()
    )
    good.write_text(text)
    again = load_experiment(good)
    assert again == e
    assert again.strategy.options == {"note": "1e-3"}  # still a string
    assert again.dataset.options == {"when": "on"}  # not a boolean


def test_digest_tells_experiments_apart_and_not_the_order_of_keys(good: Path) -> None:
    first = digest(good)
    good.write_text(GOOD.replace("1e-3", "2e-3"))
    assert digest(good) != first
    good.write_text(dump_yaml(dict(reversed(parse_yaml(GOOD, "good").items()))))
    assert digest(good) == first


STORED = """\
name: small
seed: 0
rounds: 3
dataset: {name: digits, share: 1.0, imbalance: 1.0, profile: exponential, largest: null,
  step_share: 0.5, augment: {crop: 2, flip: false, jitter: 0.0, grayscale: 0.0, cutout: 0,
  scale: 0.0, blur: 0.0}}
partition: {name: public, clients: 4, validation: 0.1, test: 0.1, size: 100, share: null,
  domain: null, within: {name: iid}}
model: {name: cnn, channels: [16, 32], kernel: 5, hidden: 64, padding: 0, pool: each, dropout:
  0.0, norm: none}
strategy: {name: fraug, bn_mode: stats_local, generator_bn: shared, z_dim: null, gamma: 0.01,
  warm_up: exponential}
client: {name: fraug, lr: 1.0e-05, clip_norm: 3.0, epochs: 1, steps: null, batch_size: 32,
  lr_decay: 1.0, momentum: 0.0, weight_decay: 0.0, loss: cross-entropy, tau: 1.0, focal_gamma:
  2.0, vectorise: auto, adapt_epochs: 0, augment: both, use_rtnet: true, interpolate: false,
  noise: uniform, generator_lr: 0.05, rtnet_lr: 0.05, lam_g: 1.0, lam_r: 1.0, dist_g: mmd,
  dist_r: mmd, prototype_momentum: 0.3, generator_clip: null}
participation: 0.5
evaluation: {every: 1, personal: true, clients: 1000, batch_size: 512, shots: auto, 'on': test,
  features: false, across_domains: false}
engine: {name: ray, workers: null, cpus: 1.0, gpus: 0.0, address: null, timeout: null,
  max_restarts: 20}
screening: {policy: drop, max_norm: 1000000.0, min_survivors: 1}
checkpoint: {every: 1, min_seconds: 2.0}
"""
"""The config.yaml of a run whose checkpoints hold the digest that the test below expects."""


def test_digest_of_a_stored_run_is_the_one_in_its_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(STORED)
    assert digest(path) == "379a42a32a3afa709728e3b1b1fd5f07de23aaba2d595f13a6c799c5157b2d62"
    assert load_experiment(path).client.options["lr"] == 1e-5


def test_overrides_win_over_the_file_and_later_ones_over_earlier(good: Path) -> None:
    e = load_experiment(
        good, ["client.lr=0.5", "seed=4", "client.lr=0.25", "engine.address=null", "model.a.b=[1]"]
    )
    assert (e.seed, e.client.options["lr"], e.engine.address) == (4, 0.25, None)
    assert e.model.options == {"channels": [16, 32], "a": {"b": [1]}}
    e = load_experiment(good, {"strategy": {"name": "fedprox"}, "client.note": "3"})
    assert e.strategy.model_dump() == {"name": "fedprox"}
    assert e.client.options["note"] == "3"  # values given from Python are not parsed


def test_source_mapping_is_not_changed_by_overrides() -> None:
    source = parse_yaml(GOOD, "good")
    load_experiment(source, {"client.lr": 9.0, "engine.workers": 2})
    assert source == parse_yaml(GOOD, "good")


@pytest.mark.parametrize(
    ("participation", "clients", "expected"),
    [
        (0.3, 20, 6),
        (0.3, 5, 2),  # 1.5 rounds up
        (0.29, 50, 15),  # 14.5, which is 14.499999999999998 in binary
        (0.01, 20, 1),
        (1.0, 7, 7),
        (1, 7, 1),
        (7, 7, 7),
    ],
)
def test_cohort_size(good: Path, participation: float, clients: int, expected: int) -> None:
    e = load_experiment(good, {"participation": participation, "partition.clients": clients})
    assert e.cohort_size == expected


def test_whole_numbers_are_numbers_and_sequences_may_be_tuples(good: Path) -> None:
    e = load_experiment(
        good, {"engine.cpus": 2, "screening.max_norm": float("inf"), "model.channels": (8, 8)}
    )
    assert e.engine.cpus == 2.0
    assert e.model.options["channels"] == [8, 8]
    assert load_experiment(good, {"evaluation.clients": "all"}).evaluation.clients == "all"


BAD_VALUES = [
    ("participation=0", "participation", "0", "(0, 1]"),
    ("participation=0.0", "participation", "0.0", "(0, 1]"),
    ("participation=1.5", "participation", "1.5", "(0, 1]"),
    ("participation=-1", "participation", "-1", "at least 1"),
    ("participation=true", "participation", "true", "fraction"),
    ("participation=.nan", "participation", "nan", "(0, 1]"),
    ("participation=30", "participation", "30", "partition.clients 20"),
    ("rounds=0", "rounds", "0", "a whole number of at least 1"),
    ("rounds='3'", "rounds", "'3'", "a whole number"),
    ("rounds=3.0", "rounds", "3.0", "a whole number"),
    ("rounds=true", "rounds", "true", "a whole number"),
    ("seed=-1", "seed", "-1", "at least 0"),
    ("partition.clients=0", "partition.clients", "0", "at least 1"),
    ("partition.test=1", "partition.test", "1", "[0, 1)"),
    ("partition.test=0.95", "partition.validation + partition.test", "0.1 + 0.95", "below 1"),
    ("engine.workers=0", "engine.workers", "0", "at least 1"),
    ("engine.timeout=0", "engine.timeout", "0", "above 0"),
    ("engine.timeout=-2.5", "engine.timeout", "-2.5", "above 0"),
    ("engine.timeout=.inf", "engine.timeout", "inf", "above 0"),
    ("engine.cpus=true", "engine.cpus", "true", "above 0"),
    ("engine.name=rey", "engine.name", "'rey'", "'serial' or 'ray'"),
    ("evaluation.clients=each", "evaluation.clients", "'each'", "'all'"),
    ("evaluation.personal=yes", "evaluation.personal", "'yes'", "true or false"),
    ("screening.policy=skip", "screening.policy", "'skip'", "'drop', 'clip' or 'abort'"),
    ("screening.min_survivors=7", "screening.min_survivors", "7", "(6)"),
    ("name=a/b", "name", "'a/b'", "folder name"),
    ("name=..", "name", "'..'", "folder name"),
    ("name=7", "name", "7", "folder name"),
    ("dataset=digits", "dataset", "'digits'", "{name: digits}"),
    ("client=null", "client", "null", "a mapping"),
    ("dataset.name=3", "dataset.name", "3", "the name of a component"),
    # Unknown keys: what is allowed, and the nearest.
    ("round=3", "round ", "3", "Did you mean 'rounds'?"),
    ("engine.worker=2", "engine.worker ", "2", "Did you mean 'workers'?"),
    ("evaluation.evry=2", "evaluation.evry", "2", "every, personal, clients, batch_size"),
    # A misspelt key of a section that takes options.
    ("partition={name: iid, client: 4}", "partition.clients is missing", "'client'", "at least 1"),
    # Overrides that are none.
    ("client.lr", "KEY=VALUE", "'client.lr'", ""),
    ("a..b=1", "override", "'a..b'", "client.lr"),
    ("=1", "override", "''", "client.lr"),
    ("name.x=3", "name.x", "'small'", "not a mapping"),
    ("engine=[1", "override engine", "line 1, column", ""),
]


@pytest.mark.parametrize(("override", "key", "value", "allowed"), BAD_VALUES)
def test_bad_values_are_refused_in_one_sentence(
    good: Path, override: str, key: str, value: str, allowed: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_experiment(good, [override])
    message = str(caught.value)
    assert message.startswith(f"{good}: ")
    assert "\n" not in message
    for part in (key, value, allowed):
        assert part in message


BAD_FILES: list[tuple[bytes, list[str]]] = [
    (b"", ["is empty"]),
    (b"# only a comment\n", ["is empty"]),
    (b"- a\n- b\n", ["a mapping", "a list"]),
    (b"just text", ["a mapping", "'just text'"]),
    (b"name: \xff\xfe", ["UTF-8", "0xff", "position 6"]),
    (b"name: x\nrounds: [1,\nseed: }", ["line 3, column 7"]),
    (b"name: x\n\trounds: 3", ["line 2, column 1"]),
    (b"name: x\nrounds: 1\nname: y\n", ["line 3, column 1", "'name' is given twice"]),
    (b"name: x\nclient: {lr: 1, lr: 2}\n", ["line 2, column 17", "'lr' is given twice"]),
    (b"name: x\nfoo: \x01", ["line 2, column 6", "0x1"]),
    (b"name: !!python/object:os.system {}", ["line 1, column 7", "python/object"]),
    (b"a: 1\n---\nb: 1", ["line 2, column 1"]),
    (b"a: &a [*a]", ["nested"]),
    (b"3: x", ["keys", "3"]),
]


@pytest.mark.parametrize(("content", "parts"), BAD_FILES)
def test_bad_files_are_refused_with_their_place(
    tmp_path: Path, content: bytes, parts: list[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_experiment(path)
    for part in [str(path), *parts]:
        assert part in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(good: Path) -> None:
    with pytest.raises(InputError, match=r"no experiment file .*smal\.yaml.*small\.yaml'\?"):
        load_experiment(good.with_name("smal.yaml"))
    with pytest.raises(InputError, match="is a folder"):
        load_experiment(good.parent)


def test_several_problems_are_told_at_once_a_line_each() -> None:
    source: dict[str, Any] = {"name": "x", "participaton": 3, "engine": {"worker": 1, "cpus": -1}}
    with pytest.raises(InputError) as caught:
        load_experiment(source)
    head, *lines = str(caught.value).splitlines()
    assert head == "experiment has 9 problems:"
    assert " ".join(sorted(line.split()[0] for line in lines)) == (
        "dataset engine.cpus engine.worker model participation participaton partition rounds "
        "strategy"
    )
    assert any("Did you mean 'participation'?" in line for line in lines)


def test_values_a_file_cannot_hold_are_refused(good: Path) -> None:
    with pytest.raises(InputError, match=r"client\.loss must be a number, string"):
        load_experiment(good, {"client.loss": print})


def test_an_experiment_cannot_be_changed(good: Path) -> None:
    e = load_experiment(good)
    with pytest.raises(ValueError, match="frozen"):
        e.seed = 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("1_000_000", 1_000_000),
        (".inf", float("inf")),
        ("010", "010"),
        ("1:30", "1:30"),
        ("no", "no"),
        ("2026-01-31", "2026-01-31"),
        ("true", True),
        ("~", None),
        ("", None),
        ("0x1f", 31),
        ("e3", "e3"),
    ],
)
def test_yaml_scalars(text: str, value: object) -> None:
    parsed = parse_yaml(text, "text")
    assert parsed == value
    assert type(parsed) is type(value)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(scalars, lambda t: st.lists(t) | st.dictionaries(st.text(), t), max_leaves=8)


@given(st.dictionaries(st.text(min_size=1), trees))
def test_yaml_round_trip(tree: dict[str, Any]) -> None:
    assert parse_yaml(dump_yaml(tree), "text") == tree


def test_base_folder(good: Path) -> None:
    assert base_folder(good) == good.parent.resolve()
    assert base_folder({}) is None


def test_imports_without_torch() -> None:
    code = (
        "import sys, fedsim.config.experiment; print('torch' in sys.modules, 'flwr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


ROOT = Path(__file__).parents[2]


SHIPPED = sorted(ROOT.glob("experiments/**/*.yaml"))
SWEEPS = [path for path in SHIPPED if "\nbase:" in path.read_text()]


@pytest.mark.parametrize("path", sorted({*SHIPPED} - {*SWEEPS}), ids=lambda p: p.stem)
def test_shipped_experiments_are_valid_and_name_their_command(path: Path) -> None:
    load_experiment(path)
    relative = path.relative_to(ROOT)
    assert f"fedsim run {relative.as_posix()}" in path.read_text() or "bench" in relative.parts
