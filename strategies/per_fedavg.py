"""Per-FedAvg: a point from which one step on a client's own data does well (Fallah et al. 2020,
arXiv:2002.07948, Algorithm 1).

    client k, each step with fresh batches D, D', D'':
        w~ <- w - alpha grad f(w; D),   g <- grad f(w~; D')
        first order (FO):    w <- w - beta g
        Hessian-free (HF):   w <- w - beta (g - alpha d),
                             d = (grad f(w + delta g; D'') - grad f(w - delta g; D'')) / (2 delta)
    server: w <- sum_k n_k w_k / sum_k n_k
"""

from __future__ import annotations

from strategies.fedavg import FedAvg


class PerFedAvg(FedAvg):
    """FedAvg over clients that take meta-gradient steps."""
