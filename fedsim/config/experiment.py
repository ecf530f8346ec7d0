"""Schema of the experiment file, as frozen pydantic models.

`load_experiment` reads YAML or a mapping, applies overrides and checks every key of the
platform. Further keys of a section are the *options* of its component (data set, strategy, ...):
kept as written here, and checked by `fedsim.components.options` against the component itself.

Every field's description completes the sentence "<key> must be ...", the one a user is told.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from fedsim.config.ranges import (
    Count,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveFraction,
    ProperFraction,
)

_COUNT = "a whole number of at least 1"
_FRACTION = "a number in [0, 1)"

Text = Annotated[str, StringConstraints(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Section(_Model):
    """A component by name; keys that the platform does not know are its options."""

    model_config = ConfigDict(extra="allow")

    name: Text = Field(description="the name of a component")

    @property
    def options(self) -> dict[str, Any]:
        """The keys that the platform does not know, as written in the file."""
        return dict(self.model_extra or {})


class Augment(_Model):
    """Random changes of training images, drawn for each batch from the client's generator."""

    crop: NonNegativeInt = Field(default=0, description="a whole number of pixels of at least 0")
    flip: bool = Field(default=False, description="true or false")
    jitter: ProperFraction = Field(default=0.0, description=_FRACTION)
    grayscale: Fraction = Field(default=0.0, description="a probability in [0, 1]")
    cutout: NonNegativeInt = Field(default=0, description="a whole number of pixels of at least 0")
    scale: ProperFraction = Field(default=0.0, description=_FRACTION)
    blur: Fraction = Field(default=0.0, description="a probability in [0, 1]")


class DatasetSection(Section):
    """The data set, and how much of its training split is divided among the clients."""

    share: PositiveFraction = Field(default=1.0, description="a fraction in (0, 1]")
    imbalance: float = Field(
        default=1.0, ge=1, allow_inf_nan=False, description="a number of at least 1"
    )
    profile: Literal["exponential", "pareto", "step"] = Field(
        default="exponential", description="'exponential', 'pareto' or 'step'"
    )
    largest: Count | None = Field(default=None, description=f"{_COUNT}, or null")
    step_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="a fraction in (0, 1), the share of large classes of a step"
    )
    augment: Augment | None = Field(
        default=None, description="a mapping, such as {crop: 4, flip: true}, or null"
    )


class PartitionSection(Section):
    """How samples are divided among clients, and each client's samples among its splits."""

    clients: Count = Field(description=_COUNT)
    validation: ProperFraction = Field(default=0.1, description=_FRACTION)
    test: ProperFraction | Literal["matched", "domain", "classes"] = Field(
        default=0.1, description=f"{_FRACTION}, 'matched', 'domain' or 'classes'"
    )

    @model_validator(mode="after")
    def _leaves_training_samples(self) -> PartitionSection:
        if not isinstance(self.test, str) and self.validation + self.test >= 1:
            raise PydanticCustomError(
                "rule",
                "partition.validation + partition.test must be below 1, got {validation} + {test}",
                {"validation": self.validation, "test": self.test},
            )
        return self


class ClientSection(Section):
    """The client method; without a name, the one that the strategy comes with."""

    # A narrower parent type would make every other section's name optional as well.
    name: Text | None = Field(default=None, description="the name of a client method, or null")  # type: ignore[assignment]


class Evaluation(_Model):
    """When models are evaluated and on which clients; always after the last round.

    With `on: validation` no test sample is read: models are scored on all clients' validation
    samples, for choosing options; `both` scores both, for choosing a round. `features` records
    statistics of the generic model's features, `across_domains` scores each client's model on
    every domain's test samples. `metrics` are recorded besides those that the model's scorer always
    makes, such as ``macro-f1`` for classifiers.
    """

    every: Count = Field(default=1, description="a whole number of rounds, at least 1")
    personal: bool = Field(default=True, description="true or false")
    clients: NonNegativeInt | Literal["all"] = Field(
        default=1000, description="a whole number of clients of at least 0, or 'all'"
    )
    batch_size: Count = Field(default=512, description=_COUNT)
    shots: Literal["auto", "cumulative", "count"] | None = Field(
        default="auto", description="'auto', 'cumulative', 'count' or null"
    )
    on: Literal["test", "validation", "both"] = Field(
        default="test", description="'test', 'validation' or 'both'"
    )

    features: bool = Field(default=False, description="true or false")
    across_domains: bool = Field(default=False, description="true or false")
    metrics: list[Text] = Field(default=[], description="a list of names of metrics")

    @property
    def split(self) -> Literal["test", "validation"]:
        """The split that a metric without a split in its name is of."""
        return "validation" if self.on == "validation" else "test"


class Engine(_Model):
    """The backend that runs the clients; ``cpus`` and ``gpus`` are those of one worker."""

    name: Literal["serial", "ray"] = Field(default="ray", description="'serial' or 'ray'")
    workers: Count | None = Field(default=None, description=f"{_COUNT}, or null")
    cpus: Positive = Field(default=1.0, description="a number above 0")
    gpus: NonNegative = Field(default=0.0, description="a number of at least 0")
    address: Text | None = Field(default=None, description="the address of a Ray cluster, or null")
    timeout: Positive | None = Field(
        default=None, description="a number of seconds above 0, or null"
    )
    max_restarts: NonNegativeInt = Field(default=20, description="a whole number of at least 0")


class Screening(_Model):
    """Handling of updates that are unfit to be aggregated."""

    policy: Literal["drop", "clip", "abort"] = Field(
        default="drop", description="'drop', 'clip' or 'abort'"
    )
    max_norm: float = Field(default=1e6, gt=0, description="a number above 0")
    min_survivors: Count | PositiveFraction = Field(
        default=1, description="a count of at least 1 or a fraction of the cohort in (0, 1]"
    )


class Checkpoint(_Model):
    """How often the state is saved; always after the last round."""

    every: Count = Field(default=1, description="a whole number of rounds, at least 1")
    min_seconds: NonNegative = Field(default=2.0, description="a number of seconds of at least 0")


class Experiment(_Model):
    """One experiment with one seed: everything that determines a run's results."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._,=+-]{0,99}$")] = (
        Field(
            description="a folder name: letters, digits and . _ - + = , beginning with a letter "
            "or digit, at most 100 characters"
        )
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="a whole number of at least 0, below 2**63"
    )
    rounds: Count = Field(description=_COUNT)
    dataset: DatasetSection = Field(description="a mapping with a name, such as {name: digits}")
    partition: PartitionSection = Field(
        description="a mapping with a name and clients, such as {name: iid, clients: 20}"
    )
    model: Section = Field(description="a mapping with a name, such as {name: cnn}")
    strategy: Section = Field(description="a mapping with a name, such as {name: fedavg}")
    client: ClientSection = Field(
        default=ClientSection(), description="a mapping of options, such as {epochs: 1, lr: 0.1}"
    )
    participation: Count | PositiveFraction = Field(
        description="a fraction in (0, 1] or a whole number of clients of at least 1"
    )
    evaluation: Evaluation = Field(
        default=Evaluation(), description="a mapping, such as {every: 10}"
    )
    engine: Engine = Field(
        default=Engine(), description="a mapping, such as {name: ray, workers: 2}"
    )
    screening: Screening = Field(
        default=Screening(), description="a mapping, such as {policy: drop}"
    )
    checkpoint: Checkpoint = Field(
        default=Checkpoint(), description="a mapping, such as {every: 1}"
    )

    @model_validator(mode="after")
    def _cohort_fits(self) -> Experiment:
        clients = self.partition.clients
        if isinstance(self.participation, int) and self.participation > clients:
            raise PydanticCustomError(
                "rule",
                "participation must be at most the number of clients when it is a count, "
                "got {participation} with partition.clients {clients}",
                {"participation": self.participation, "clients": clients},
            )
        survivors = self.screening.min_survivors
        if isinstance(survivors, int) and survivors > self.cohort_size:
            raise PydanticCustomError(
                "rule",
                "screening.min_survivors must be at most the number of clients in a round "
                "({cohort}) when it is a count, got {survivors}",
                {"survivors": survivors, "cohort": self.cohort_size},
            )
        return self

    @property
    def cohort_size(self) -> int:
        """Number of clients sampled per round: the count, or the fraction rounded half up."""
        if isinstance(self.participation, int):
            return self.participation
        # Decimal, since 0.29 * 50 is 14.499999999999998 in binary.
        exact = Decimal(str(self.participation)) * self.partition.clients
        return max(1, int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP)))
