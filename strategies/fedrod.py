"""FedROD: a generic head for balanced classes and a personal one for the client's own (Chen and
Chao 2022, arXiv:2107.00778, Algorithm 1, linear variant).

    client k: (theta, psi)_k <- local SGD on balanced_softmax(psi f_theta(x), y)        (sent)
              phi_k <- local SGD on cross_entropy((psi + phi_k) sg(f_theta(x)), y)      (kept)
    server:   (theta, psi) <- sum_k n_k (theta, psi)_k / sum_k n_k

The stop-gradient sg keeps the personal loss out of theta, and out of psi.
"""

from __future__ import annotations

from strategies.fedavg import FedAvg


class FedROD(FedAvg):
    """Weighted mean of body and generic head; personal heads stay with the clients."""
