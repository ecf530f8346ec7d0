"""Metrics as values: their names, both ways, and their units."""

from __future__ import annotations

import pytest

from fedsim.evaluate.classification import CLASSIFICATION
from fedsim.evaluate.metric_names import (
    BYTES,
    COUNT,
    LOSS,
    PLAIN,
    SECONDS,
    SHARE,
    Metric,
    Unit,
    named_scores,
    on_validation,
    shifted,
)
from fedsim.evaluate.retrieval import Retrieval

NAMES = {
    "generic/accuracy": Metric("accuracy", "generic"),
    "validation/generic/accuracy_few": Metric("accuracy_few", "generic", "validation"),
    "clients/personal/loss": Metric("loss", "personal", clients=True),
    "validation/clients/personal/loss": Metric("loss", "personal", "validation", clients=True),
    "clients/generic-before/accuracy": Metric("accuracy", "generic-before", clients=True),
    "generic/mAP50/fog": Metric("mAP50", "generic", domain="fog"),
    "generic/mAP50_shifted": Metric("mAP50_shifted", "generic"),
    "clients/personal/accuracy_on/quick draw": Metric(
        "accuracy", "personal", clients=True, tested_on="quick draw"
    ),
    "clients/personal/mAP/fog_on/night": Metric(
        "mAP", "personal", domain="fog", clients=True, tested_on="night"
    ),
    "generic/recall@1/i2t": Metric("recall@1/i2t", "generic"),
    "generic/recall@10/t2i/folds": Metric("recall@10/t2i/folds", "generic"),
    "clients/accuracy": Metric("accuracy", clients=True),  # of a ClientApp
    "accuracy": Metric("accuracy"),
    "train/train_loss": Metric("train_loss", split="train"),
    "train/clients": Metric("clients", split="train"),
    "train/pseudo/precision": Metric("pseudo/precision", split="train"),
    "features/generic/head_norm/3": Metric("generic/head_norm/3", split="features"),
}


@pytest.mark.parametrize("text", NAMES)
def test_a_name_is_read_as_it_is_written(text: str) -> None:
    assert Metric.parse(text) == NAMES[text]
    assert str(NAMES[text]) == text
    assert Metric.of(NAMES[text].key, NAMES[text].split) == NAMES[text]


@pytest.mark.parametrize(
    "text", ["", "/", "a/", "/a", "a//b", "clients", "clients/", "clients//a", "_on/a", "a_on/",
             "clients/_on/a", "a/b/", "a/b/c/d", "test", "train/", "a/i2t/", "a_on/b_on/c"],
)  # fmt: skip
def test_names_that_users_make_up_stay_as_they_are(text: str) -> None:
    assert str(Metric.parse(text)) == text


def test_names_without_a_split_are_of_test_samples() -> None:
    assert Metric.parse("test/generic/loss") == Metric.parse("generic/loss")
    assert Metric.of("generic/loss").split == "test"


def test_a_part_says_that_a_reported_value_is_of_validation_samples() -> None:
    """As the round loop names them: the mean over clients of what each calls validation/..."""
    metric = Metric.of("clients/validation/personal/loss")
    assert (metric.split, metric.key) == ("validation", "clients/personal/loss")
    assert Metric.of("validation/x", "train") == Metric("x", split="validation")
    assert Metric.of("cross-validation/x", "train").key == "cross-validation/x"
    assert Metric.parse("train/validation/x") == Metric("validation/x", split="train")
    assert on_validation({"personal/loss": 1.0}) == {"validation/personal/loss": 1.0}


def test_groups_of_classes_belong_to_a_metric_of_all() -> None:
    few = Metric.parse("generic/accuracy_few")
    assert (few.shots, str(few.over_all_classes)) == ("few", "generic/accuracy")
    whole = Metric.parse("generic/accuracy_balanced")
    assert (whole.shots, whole.over_all_classes) == ("", whole)


def test_scores_of_a_model_and_of_domains() -> None:
    scores = {"mAP50": 0.5, "mAP50/fog": 0.2, "mAP50/snow": 0.5, "mAP50/clear": 0.9}
    assert named_scores("generic", scores)["generic/mAP50/fog"] == 0.2
    assert shifted(scores, ["fog", "snow", "night"]) == {"mAP50_shifted": pytest.approx(0.35)}
    assert shifted({"recall@1/i2t": 1.0}, ["i2t"]) == {}  # a direction, whatever domains there are


@pytest.mark.parametrize(
    ("unit", "names"),
    [
        (SHARE, ["accuracy", "generic/accuracy_few", "personal/mAP50/fog", "top1-recall",
                 "train/label_precision", "train/macro-f1"]),
        (LOSS, ["clients/generic/loss", "train/train_loss", "generic/loss_few", "x/mean-error",
                "generic/loss_on/fog", "RMSE", "train/clients_loss"]),
        (SECONDS, ["train/virtual_seconds"]),
        (BYTES, ["train/bytes_up"]),
        (COUNT, ["train/clients", "features/samples/3"]),
        (PLAIN, ["order", "glossy", "mapping", "generic/share"]),
    ],
)  # fmt: skip
def test_words_tell_the_unit_of_metrics_that_no_scorer_declares(
    unit: Unit, names: list[str]
) -> None:
    assert {name: Metric.parse(name).unit() for name in names} == dict.fromkeys(names, unit)


def test_directions() -> None:
    assert all(u.higher_is_better for u in (SHARE, COUNT, PLAIN))
    assert not any(u.higher_is_better for u in (LOSS, SECONDS, BYTES))


def test_a_scorer_declares_the_units_of_its_metrics_and_of_what_is_derived() -> None:
    declared = {"share": SHARE, "recall@1": PLAIN, "miss": Unit("share", higher_is_better=False)}
    for name in ("generic/share", "clients/personal/share_few", "generic/share/fog"):
        assert Metric.parse(name).unit(declared) == SHARE
    assert Metric.parse("generic/recall@1/t2i/folds").unit(declared) == PLAIN
    assert Metric.parse("generic/miss_on/fog").unit(declared).higher_is_better is False
    assert Metric.parse("train/miss").unit(declared) == PLAIN  # not of the scorer
    units = Retrieval().units
    for name in ("recall_sum", "recall@5/i2t", "recall@10/t2i/folds"):
        assert Metric(name).unit(units) == SHARE


def test_a_run_records_the_units_that_words_do_not_tell() -> None:
    assert CLASSIFICATION.units_to_record() == {}
    assert Retrieval().units_to_record() == {}
