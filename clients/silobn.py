"""SiloBN's client: local SGD with BatchNorm statistics of its own (arXiv:2008.07424)."""

from fedsim.training.personal_sgd import PersonalSGD


class SiloBN(PersonalSGD):
    """Local SGD that keeps what the payload does not name: BatchNorm's statistics."""
