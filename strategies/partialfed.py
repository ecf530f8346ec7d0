"""PartialFed: each client loads some layers of the global model and keeps its own of the others
(Sun et al. 2021, NeurIPS, "PartialFed: Cross-Domain Personalized Federated Learning via Partial
Initialization").

    client k:  layer l of w <- global or own, as gate s_kl says;  local SGD;  send all of w
    server:    w <- sum_k n_k w_k / sum_k n_k

The gates are given by hand (Fix), or learned with the Gumbel-softmax trick (Adaptive).
"""

from __future__ import annotations

from strategies.fedavg import FedAvg


class PartialFed(FedAvg):
    """FedAvg; what a client makes of the global model is its own matter."""
