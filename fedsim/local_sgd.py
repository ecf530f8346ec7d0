"""The import path of `Fit` and `LocalSGD` in users' files; they live in `fedsim.training`."""

from fedsim.training.local_sgd import Fit, LocalSGD

__all__ = ["Fit", "LocalSGD"]
