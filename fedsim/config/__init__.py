"""The experiment file."""

from fedsim.config.experiment import Experiment
from fedsim.config.reading import load_experiment, to_yaml

__all__ = ["Experiment", "load_experiment", "to_yaml"]
