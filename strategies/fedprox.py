"""FedProx: local training is pulled to the global model (Li et al. 2020, arXiv:1812.06127,
Algorithm 2).

    client k: w_k ~ argmin_w f_k(w) + mu/2 |w - w_t|^2, by local SGD from w_t
    server:   w_{t+1} <- sum_k n_k w_k / sum_k n_k
"""

from __future__ import annotations

from strategies.fedavg import FedAvg


class FedProx(FedAvg):
    """FedAvg over clients that stay near the global model."""
