"""Components by name, and the check of their options."""

from __future__ import annotations

import pickle
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, Literal

import pytest

from fedsim.components import lookup
from fedsim.components.configure import complete, configure, default_client, instantiate
from fedsim.components.lookup import KINDS, names, resolve
from fedsim.components.option_types import type_name
from fedsim.components.options import options
from fedsim.config.reading import load_experiment, to_yaml
from fedsim.config.references import load_file
from fedsim.errors import InputError

FLOWER = "flwr.serverapp.strategy"
DP = f"{FLOWER}:DifferentialPrivacyServerSideFixedClipping"

MINE = '''\
"""Components of a user."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Annotated, Literal
from annotated_types import Gt
from flwr.clientapp import ClientApp
from fedsim.client import Client
from fedsim.config.ranges import Count, Positive
from fedsim.errors import check
from fedsim.strategy import Strategy

class Mine(Strategy):
    """A rule of my own."""
    @dataclass(frozen=True)
    class Config:
        beta: float = 0.9  # momentum, [0, 1)
        sizes: tuple[int, ...] = (1, 2)
        mode: bool | Literal["auto"] = "auto"
        eta: Annotated[float, Gt(0)] = 1.0
        mu: Positive | None = None
        drops: tuple[Count, ...] = ()
        def __post_init__(self):
            check(0 <= self.beta < 1, "mine.beta must be in [0, 1)", self.beta)

class MyClient(Client):
    @dataclass(frozen=True)
    class Config:
        lr: float
        epochs: int = 1
        def __post_init__(self):
            check(self.lr > 0, "lr must be above 0", self.lr)

class Plain:
    pass

app = ClientApp()

def data(*, root: str | None = None):
    """My data."""

def part(samples, clients, rng, *, alpha: float): ...
def net(input_shape, num_classes, *, hidden: int = 3): ...
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Entry points that the registry sees instead of the installed ones."""
    points: list[EntryPoint] = []

    def fake(find: Any, path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
        found = EntryPoints(points)
        return {kind: list(found.select(group=f"fedsim.{kind}")) for kind in lookup.SECTIONS}

    monkeypatch.setattr(lookup, "_installed", fake)
    return points


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        configure(*args, **kwargs)
    return str(caught.value)


def test_names_are_listed_with_a_line_each_and_without_importing_them() -> None:
    code = (
        "import sys; from fedsim.components.lookup import *\n"
        "print([(k, n, d) for k in KINDS for n, d in names(k).items()])\n"
        "print('torch' in sys.modules, any(m.startswith('strategies') for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    table, flags = done.stdout.splitlines()
    assert flags == "False False"
    assert "('strategies', 'fedavg', \"Weighted mean of the clients' models.\")" in table
    assert "('datasets', 'fashion-mnist', 'Fashion-MNIST, 28x28" in table
    assert "('clients', 'local-sgd'" in table


@pytest.mark.parametrize("kind", KINDS)
def test_every_built_in_component_loads_and_describes_itself(kind: str) -> None:
    for name, description in names(kind).items():
        assert "_" not in name
        assert description
        assert len(description) <= 100
        options(resolve(kind, name))


def test_built_in_component_is_the_object_of_its_module() -> None:
    from fedsim.data.datasets.fashion_mnist import fashion_mnist
    from strategies.fedavg import FedAvg

    assert resolve("strategies", "fedavg") is FedAvg
    assert resolve("datasets", "fashion-mnist") is fashion_mnist


def test_default_client_is_the_one_of_the_strategys_name_else_local_sgd(
    entry: list[EntryPoint],
) -> None:
    assert default_client("fedavg") == "local-sgd"
    assert default_client(f"{FLOWER}:FedYogi") == "local-sgd"
    entry.append(EntryPoint("fedavg", "os:getcwd", "fedsim.clients"))
    assert default_client("fedavg") == "fedavg"


def test_component_of_a_file_relative_to_the_experiment_else_to_the_working_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = resolve("strategies", "./mine.py:Mine", folder)
    assert (mine.__name__, mine.__doc__) == ("Mine", "A rule of my own.")
    monkeypatch.chdir(folder)
    assert resolve("strategies", "mine.py:Mine") is mine
    assert resolve("strategies", f"{folder}/mine.py:Mine", Path("/")) is mine


def test_module_of_a_file_is_found_by_pickle_and_follows_edits(folder: Path) -> None:
    config = configure("strategies", "./mine.py:Mine", {"beta": 0.5}, folder)
    assert pickle.loads(pickle.dumps(config)) == config
    module = load_file(folder / "mine.py")
    assert load_file(folder / "mine.py") is module
    (folder / "mine.py").write_text(MINE.replace("0.9", "0.8"))
    assert configure("strategies", "./mine.py:Mine", {}, folder).beta == 0.8


def test_options_and_their_types() -> None:
    from fedsim.components.options import REQUIRED

    found = options(resolve("strategies", f"{FLOWER}:QFedAvg"))
    assert found["client_learning_rate"] == (float, REQUIRED)
    assert found["q"] == (float, 0.1)
    assert "self" not in found


def test_configure_returns_a_config_keyword_arguments_or_the_mapping(folder: Path) -> None:
    config = configure("strategies", "./mine.py:Mine", {"sizes": [3, 4], "eta": 2}, folder)
    assert (config.beta, config.sizes, config.mode, config.eta) == (0.9, (3, 4), "auto", 2.0)
    assert type(config.eta) is float
    assert configure("partitions", "./mine.py:part", {"alpha": 1}, folder) == {"alpha": 1.0}
    assert configure("clients", "./mine.py:app", {"any": [1]}, folder) == {"any": [1]}
    assert configure("strategies", f"{FLOWER}:FedYogi", {"eta": 1}) == {"eta": 1.0}


BAD_OPTIONS: list[tuple[str, str, dict[str, Any], list[str]]] = [
    ("strategies", "Mine", {"bet": 1}, ["strategy.bet ", "got 1", "'beta'", "beta, sizes, mode"]),
    ("strategies", "Mine", {"beta": "1"}, ["strategy.beta must be a number, got '1'"]),
    ("strategies", "Mine", {"beta": True}, ["strategy.beta must be a number, got true"]),
    ("strategies", "Mine", {"beta": None}, ["strategy.beta must be a number, got null"]),
    ("strategies", "Mine", {"beta": 1.5}, ["strategy.beta must be in [0, 1), got 1.5"]),
    ("strategies", "Mine", {"sizes": 3}, ["strategy.sizes must be a list, each a whole number"]),
    ("strategies", "Mine", {"sizes": [1.5]}, ["strategy.sizes", "got [1.5]"]),
    ("strategies", "Mine", {"mode": "x"}, ["strategy.mode must be true or false or 'auto'", "'x'"]),
    ("strategies", "Mine", {"eta": 0}, ["strategy.eta must be a number, greater than 0, got 0"]),
    ("strategies", "Mine", {"mu": -1}, ["strategy.mu must be > 0 and finite, got -1"]),
    ("strategies", "Mine", {"mu": "x"}, ["strategy.mu must be a number or null, got 'x'"]),
    ("strategies", "Mine", {"mu": float("nan")}, ["strategy.mu must be > 0 and finite, got nan"]),
    ("strategies", "Mine", {"drops": [1, 0]}, ["strategy.drops must be a list, each >= 1, got"]),
    ("strategies", "Mine", {"drops": [2.5]}, ["strategy.drops must be a list, each a whole numb"]),
    ("clients", "MyClient", {"lrr": 1}, ["client.lrr ", "Did you mean 'lr'?", "client.lr is miss"]),
    ("clients", "MyClient", {"lr": -1}, ["client.lr must be above 0, got -1"]),
    ("partitions", "part", {"alph": 1}, ["partition.alph ", "clients, validation, test, alpha"]),
    ("partitions", "part", {"client": 1, "alpha": 1}, ["Did you mean 'clients'?"]),
    ("models", "net", {"hidden": 2.5}, ["model.hidden must be a whole number, got 2.5"]),
    # Objects of another kind.
    ("strategies", "MyClient", {}, ["strategy.name must be a strategy", "a client"]),
    ("strategies", "net", {}, ["strategy.name must be a strategy", "a function of (input_shape"]),
    ("strategies", "Plain", {}, ["strategy.name must be a strategy", "a class"]),
    ("strategies", "app", {}, ["strategy.name must be a strategy", "ClientApp"]),
    ("clients", "Mine", {}, ["client.name must be a client method", "a strategy"]),
    ("models", "Mine", {}, ["model.name must be a function of (input_shape, num_classes", "strat"]),
    ("models", "part", {}, ["model.name must be a function of (input_shape, num_classes"]),
    ("partitions", "net", {}, ["partition.name must be a function of (samples, clients, rng"]),
    ("datasets", "part", {}, ["dataset.name must be a function of (*, options...)"]),
    ("datasets", "Minee", {}, ["dataset.name", "no 'Minee'", "Did you mean 'Mine'?"]),
]


@pytest.mark.parametrize(("kind", "name", "given", "parts"), BAD_OPTIONS)
def test_bad_options_and_kinds_are_named(
    folder: Path, kind: str, name: str, given: dict[str, Any], parts: list[str]
) -> None:
    message = refused(kind, f"./mine.py:{name}", given, folder)
    for part in [*parts, f"./mine.py:{name}" if "name" in parts[0] else ""]:
        assert part in message


@pytest.mark.parametrize(
    ("kind", "name", "parts"),
    [
        ("strategies", "fedavgg", ["strategy.name", "'fedavgg'", "Did you mean 'fedavg'?"]),
        ("datasets", "fashion_mnist", ["one of ", "digits, ", "Did you mean 'fashion-mnist'?"]),
        ("models", "no.such:Net", ["model.name", "no module 'no'"]),
        ("models", "fedsim.no:Net", ["no module 'fedsim.no'"]),
        ("models", "fedsim.client:Clien", ["fedsim.client has no 'Clien'", "'Client'"]),
        ("models", "fedsim.client:", ["'package.module:Name' or './file.py:Name'"]),
        ("models", "./no.py:Net", ["no file", "no.py"]),
        ("strategies", f"{FLOWER}:Strategy", ["no abstract method"]),
        ("strategie", "fedavg", ["strategies, clients", "Did you mean 'strategies'?"]),
    ],
)
def test_unknown_names_are_refused(kind: str, name: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        resolve(kind, name)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "line", "what"),
    [
        ("import os\n\ndef f():\n    return 1 / 0\nf()\n", 4, "ZeroDivisionError: division by"),
        ("x = 1\ndef f(:\n", 2, "SyntaxError: "),
        ("import json\njson.loads('{')\n", 2, "JSONDecodeError: "),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
    ],
)
def test_a_broken_file_is_told_in_one_line(tmp_path: Path, code: str, line: int, what: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(code)
    message = refused("models", "broken.py:Net", {}, tmp_path)
    assert f"{path}:{line}: {what}" in message
    assert "\n" not in message
    assert not any(name.startswith("fedsim_file_broken") for name in sys.modules)


def test_a_broken_module_on_the_path_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fedsim_test_broken.py").write_text("import fedsim_test_absent\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    message = refused("models", "fedsim_test_broken:Net", {})
    assert "fedsim_test_broken.py:1: ModuleNotFoundError" in message


def test_entry_points_add_components(entry: list[EntryPoint], folder: Path) -> None:
    entry.append(EntryPoint("yogi", f"{FLOWER}:FedYogi", "fedsim.strategies"))
    assert names("strategies")["yogi"].startswith(f"{FLOWER}:FedYogi")
    assert resolve("strategies", "yogi").__name__ == "FedYogi"
    entry.append(EntryPoint("gone", "no.such:Thing", "fedsim.strategies"))
    assert "no.such:Thing" in refused("strategies", "gone", {})


@pytest.mark.parametrize(
    ("first", "second", "parts"),
    [
        (None, ("fedavg", "x:A"), ["the built-in strategies.fedavg", "x:A"]),
        (("mine", "x:A"), ("mine", "y:B"), ["x:A", "y:B", "'mine'"]),
    ],
)
def test_a_clash_of_names_is_an_error_that_names_both(
    entry: list[EntryPoint],
    first: tuple[str, str] | None,
    second: tuple[str, str],
    parts: list[str],
) -> None:
    entry += [EntryPoint(*pair, "fedsim.strategies") for pair in (first, second) if pair]
    for call in (lambda: names("strategies"), lambda: resolve("strategies", second[0])):
        with pytest.raises(InputError) as caught:
            call()
        for part in parts:
            assert part in str(caught.value)


def test_one_entry_point_seen_twice_is_no_clash(entry: list[EntryPoint]) -> None:
    entry += [EntryPoint("yogi", f"{FLOWER}:FedYogi", "fedsim.strategies")] * 2
    assert resolve("strategies", "yogi").__name__ == "FedYogi"


def test_a_wrapper_takes_a_strategy_as_an_option() -> None:
    from flwr.serverapp.strategy import FedAvg

    given = {"noise_multiplier": 0, "clipping_norm": 2.0, "num_sampled_clients": 3}
    inner = {"name": f"{FLOWER}:FedAvg", "fraction_train": 0.5}
    wrapper = instantiate(
        resolve("strategies", DP),
        configure("strategies", DP, {"strategy": inner, **given}),
        "strategy",
    )
    assert isinstance(wrapper.strategy, FedAvg)
    assert wrapper.strategy.fraction_train == 0.5

    message = refused("strategies", DP, {"strategy": {**inner, "fraction_trai": 1}, **given})
    assert "strategy.strategy.fraction_trai " in message
    assert "Did you mean 'fraction_train'?" in message
    message = refused("strategies", DP, {"strategy": {"name": "fedavgg"}, **given})
    assert "strategy.strategy.name must be one of" in message
    assert "got 'fedavg'" in refused("strategies", DP, {"strategy": "fedavg", **given})


def test_a_foreign_constructor_that_refuses_is_bad_input() -> None:
    given = {
        "strategy": {"name": "fedavg"},
        "noise_multiplier": -1.0,
        "clipping_norm": 2.0,
        "num_sampled_clients": 3,
    }
    with pytest.raises(
        InputError, match=r"refuses its options \{noise_multiplier: -1.*\}: .*noise"
    ):
        instantiate(resolve("strategies", DP), configure("strategies", DP, given), "strategy")


def test_a_function_option_is_given_by_reference(folder: Path) -> None:
    name = f"{FLOWER}:FedAvg"
    found = configure("strategies", name, {"train_metrics_aggr_fn": "mine.py:part"}, folder)
    assert found["train_metrics_aggr_fn"].__name__ == "part"
    assert "strategy.train_metrics_aggr_fn must be" in refused(
        "strategies", name, {"train_metrics_aggr_fn": "part"}
    )


def experiment(**changes: Any) -> dict[str, Any]:
    source = {
        "name": "x",
        "rounds": 1,
        "dataset": {"name": "digits"},
        "partition": {"name": "./mine.py:part", "clients": 3, "alpha": 1},
        "model": {"name": "./mine.py:net"},
        "strategy": {"name": "./mine.py:Mine", "sizes": [5]},
        "client": {"name": "./mine.py:MyClient", "lr": 1},
        "participation": 1.0,
    }
    return {**source, **changes}


def test_complete_writes_everything_out_and_means_the_same_elsewhere(folder: Path) -> None:
    done = complete(load_experiment(experiment()), folder)
    assert done.strategy.model_dump() == {
        "name": f"{folder}/mine.py:Mine",
        "beta": 0.9,
        "sizes": [5],
        "mode": "auto",
        "eta": 1.0,
        "mu": None,
        "drops": [],
    }
    assert done.client.model_dump() == {
        "name": f"{folder}/mine.py:MyClient",
        "lr": 1.0,
        "epochs": 1,
    }
    assert done.partition.model_dump() == {
        "name": f"{folder}/mine.py:part",
        "clients": 3,
        "validation": 0.1,
        "test": 0.1,
        "alpha": 1.0,
    }
    assert complete(done) == done
    (folder / "done.yaml").write_text(to_yaml(done))
    assert load_experiment(folder / "done.yaml") == done


def test_complete_of_a_wrapped_foreign_strategy(folder: Path) -> None:
    strategy = {
        "name": DP,
        "strategy": {"name": "./mine.py:Mine"},
        "noise_multiplier": 1,
        "clipping_norm": 2,
        "num_sampled_clients": 3,
    }
    done = complete(load_experiment(experiment(strategy=strategy)), folder)
    assert done.strategy.options["strategy"]["name"] == f"{folder}/mine.py:Mine"
    assert done.strategy.options["strategy"]["beta"] == 0.9
    assert done.strategy.options["noise_multiplier"] == 1.0
    assert complete(done) == done


def test_complete_tells_the_problems_of_all_sections_at_once(folder: Path) -> None:
    source = experiment(dataset={"name": "digit"}, client={"name": "./mine.py:MyClient", "lrr": 1})
    with pytest.raises(InputError) as caught:
        complete(load_experiment(source), folder, "exp.yaml")
    lines = str(caught.value).splitlines()
    assert lines[0] == "exp.yaml has 3 problems:"
    assert [line.split()[0] for line in lines[1:]] == ["client.lrr", "client.lr", "dataset.name"]


LISTS = """
from fedsim.models.blocks.nested import Model
from fedsim.models.cnn import cnn

TWO = Model("cnn", cnn, {"hidden": 2}), Model("cnn", cnn, {"hidden": 4})

def many(shape, classes, *, both: tuple[Model, ...] = TWO, none: list[Model] = (),
         other: Model | str = "x"):
    return both, none, other

def model(shape, classes, *, first: Model | None = None, others: tuple[Model, ...] = (),
          named: dict[str, Model] | None = None, either: Model | tuple[Model, ...] = ()):
    return first, others, named, either
"""


def test_options_name_one_list_several_or_map_names_to_components(tmp_path: Path) -> None:
    (tmp_path / "lists.py").write_text(LISTS)
    cnn = {"name": "cnn", "hidden": 3}
    given = {"first": None, "others": [{"name": "mlp"}, cnn], "named": {"a": cnn}, "either": cnn}
    found = configure("models", "./lists.py:model", given, tmp_path)
    assert found["first"] is None
    assert [(m.name, m.option) for m in found["others"]] == [
        ("mlp", "others.0"),
        ("cnn", "others.1"),
    ]
    assert (found["named"]["a"].option, found["either"].option) == ("named.a", "either")
    assert [m.options for m in (found["others"][1], found["either"])] == [{"hidden": 3}] * 2
    both = configure("models", "./lists.py:model", {"first": cnn, "either": [cnn, cnn]}, tmp_path)
    assert both["first"].option == "first"
    assert [m.option for m in both["either"]] == ["either.0", "either.1"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"others": [{"name": "cnm"}]}, r"model\.others\.0\.name must be one of .*'cnn'"),
        ({"either": [{"name": "cnn"}, 3]}, r"model\.either\.1 must be a mapping .* got 3"),
        ({"either": None}, r"model\.either must be a mapping with the name and options of a model"),
        ({"named": [{"name": "cnn"}]}, r"model\.named must map names to a model each"),
        ({"first": [{"name": "cnn"}]}, r"model\.first must be a mapping with the name"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_list_of_components(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "lists.py").write_text(LISTS)
    with pytest.raises(InputError, match=message):
        configure("models", "./lists.py:model", given, tmp_path)


def test_lists_of_components_are_written_out_and_read_again(tmp_path: Path) -> None:
    (tmp_path / "lists.py").write_text(LISTS)
    whole = {"client": {"name": "local-sgd"}, "partition": {"name": "iid", "clients": 2}}
    tree = experiment(**whole, strategy={"name": "fedavg"}, model={"name": "./lists.py:many"})
    done = complete(load_experiment(tree), tmp_path)
    options = done.model.options
    assert [(m["name"], m["hidden"]) for m in options["both"]] == [("cnn", 2), ("cnn", 4)]
    assert (options["none"], options["other"]) == ([], "x")
    assert complete(done, tmp_path).model.options == options
    named = {**tree, "model": {"name": "./lists.py:many", "other": {"name": "mlp"},
                               "none": [{"name": "cnn"}]}}  # fmt: skip
    found = complete(load_experiment(named), tmp_path).model.options
    assert (found["other"]["name"], [m["name"] for m in found["none"]]) == ("mlp", ["cnn"])


def test_types_are_shown_without_modules_and_words_as_they_are() -> None:
    shown = type_name(Literal["a.b", "v1.5"]), type_name(float | Path | None)
    assert shown == ("Literal['a.b', 'v1.5']", "float | Path | None")
