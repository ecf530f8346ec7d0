"""Centralised: SGD on the training samples of all clients together; the upper end of a comparison.

    each round:  w <- local SGD from w on the union of the clients' training samples

Held-out samples stay held out, and the model is evaluated like any other.
"""

from __future__ import annotations

from fedsim.strategy import Pooled
from strategies.fedavg import FedAvg


class Centralised(Pooled, FedAvg):
    """One learner with everybody's training samples."""
