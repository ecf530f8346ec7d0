"""Parameters of a model as one vector."""

from fedsim.params.flat_model import FlatModel
from fedsim.params.vector import Layout, Params, Rows, tensors_digest, zeros_like

__all__ = ["FlatModel", "Layout", "Params", "Rows", "tensors_digest", "zeros_like"]
