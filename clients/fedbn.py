"""FedBN's client: local SGD with BatchNorm of its own (arXiv:2102.07623)."""

from fedsim.training.personal_sgd import PersonalSGD


class FedBN(PersonalSGD):
    """Local SGD that keeps what the payload does not name: BatchNorm."""
