"""FedPer's client: local SGD on body and head, the head stays (arXiv:1912.00818, Algorithm 1)."""

from fedsim.training.personal_sgd import PersonalSGD


class FedPer(PersonalSGD):
    """Local SGD that keeps what the payload does not name: the head."""
