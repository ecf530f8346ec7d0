"""Ditto: a personal model for each client, pulled to a global one (Li et al. 2021,
arXiv:2012.04221, Algorithm 1).

    client k: w_k <- local SGD from w_t                                      (sent)
              v_k <- v_k - eta (grad f_k(v_k) + lam (v_k - w_t)), some epochs   (kept)
    server:   w_{t+1} <- sum_k n_k w_k / sum_k n_k
"""

from __future__ import annotations

from strategies.fedavg import FedAvg


class Ditto(FedAvg):
    """FedAvg; the personal models never travel."""
