"""LG-FedAvg's client: local SGD on all layers, the lower ones stay (arXiv:2001.01523)."""

from fedsim.training.personal_sgd import PersonalSGD


class LGFedAvg(PersonalSGD):
    """Local SGD that keeps what the payload does not name: the representation."""
