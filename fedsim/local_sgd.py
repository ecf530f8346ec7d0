"""Import path of `Fit` and `LocalSGD` in users' files; see `fedsim.training.local_sgd`."""

from fedsim.training.local_sgd import Fit, LocalSGD

__all__ = ["Fit", "LocalSGD"]
