"""APFL: a personal model between a local and the global one (Deng et al. 2020, arXiv:2003.13461,
Algorithm 1).

    client k, each step:  w <- w - eta grad f_k(w)
                          v_k <- v_k - eta alpha_k grad f_k(u),   u = alpha_k v_k + (1 - alpha_k) w
                          alpha_k <- alpha_k - eta <v_k - w, grad f_k(u)>, in [0, 1]      (Eq. 10)
    server:               w <- sum_k n_k w_k / sum_k n_k

The global model is FedAvg's: only w travels.
"""

from __future__ import annotations

from strategies.fedavg import FedAvg


class APFL(FedAvg):
    """FedAvg; the personal models are the clients' matter."""
