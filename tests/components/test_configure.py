"""Options of components: checked, and written out with their defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from fedsim.components.configure import complete, configure, instantiate
from fedsim.components.lookup import resolve
from fedsim.components.option_types import type_name
from fedsim.components.options import options
from fedsim.config.reading import load_experiment, to_yaml
from fedsim.errors import InputError

FLOWER = "flwr.serverapp.strategy"


DP = f"{FLOWER}:DifferentialPrivacyServerSideFixedClipping"


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        configure(*args, **kwargs)
    return str(caught.value)


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
         other: Model | str = "x", named: dict[str, Model] = {"a": TWO[0]}):
    return both, none, other, named

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
    assert (options["named"]["a"]["name"], options["named"]["a"]["hidden"]) == ("cnn", 2)
    assert complete(done, tmp_path).model.options == options
    named = {**tree, "model": {"name": "./lists.py:many", "other": {"name": "mlp"},
                               "none": [{"name": "cnn"}]}}  # fmt: skip
    found = complete(load_experiment(named), tmp_path).model.options
    assert (found["other"]["name"], [m["name"] for m in found["none"]]) == ("mlp", ["cnn"])


def test_types_are_shown_without_modules_and_words_as_they_are() -> None:
    shown = type_name(Literal["a.b", "v1.5"]), type_name(float | Path | None)
    assert shown == ("Literal['a.b', 'v1.5']", "float | Path | None")


TEXT = """
from fedsim.config.nested import FromText

class Place(FromText):
    words = "a place's name"
    def __init__(self, text):
        self.text = text

def net(shape, classes, *, first: Place, other: Place | None = None): ...
"""


def test_an_option_is_made_from_a_string(tmp_path: Path) -> None:
    (tmp_path / "text.py").write_text(TEXT)
    chosen = configure("models", "./text.py:net", {"first": "a", "other": None}, tmp_path)
    assert (chosen["first"].text, chosen["other"]) == ("a", None)
    message = refused("models", "./text.py:net", {"first": 3}, tmp_path)
    assert message == "model.first must be a place's name, got 3"
    assert "needs it to be a place's name" in refused("models", "./text.py:net", {}, tmp_path)
