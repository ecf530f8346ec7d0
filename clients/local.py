"""Local training: the client keeps all of its model."""

from fedsim.training.personal_sgd import PersonalSGD


class Local(PersonalSGD):
    """Local SGD that goes on from the client's own model each round and sends nothing."""
