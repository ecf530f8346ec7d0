"""FedRep: the head is trained first, then the shared body (Collins et al. 2021, arXiv:2102.07078,
Algorithm 1).

    client k: h_k <- some epochs on the head, body fixed;  phi_k <- then on the body, head fixed
              keep h_k, send phi_k
    server:   phi <- sum_k n_k phi_k / sum_k n_k
"""

from __future__ import annotations

from strategies.fedper import FedPer


class FedRep(FedPer):
    """Weighted mean of the clients' bodies; heads stay with the clients."""
