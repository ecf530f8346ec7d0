"""pFedHN's client: local SGD from the weights it is given (arXiv:2103.04628, Algorithm 1)."""

from fedsim.training.personal_sgd import PersonalSGD


class PFedHN(PersonalSGD):
    """Local SGD; its personal model is the generated one, with what the payload does not name."""
