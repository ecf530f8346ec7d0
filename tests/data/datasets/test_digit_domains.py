import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedsim.data.dataset import Dataset
from fedsim.data.datasets.digit_domains import DOMAINS, digit_domains
from fedsim.data.datasets.emoji import emoji
from fedsim.data.datasets.mnist5k import mnist5k
from fedsim.data.views import View
from fedsim.evaluate.scoring import score


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digit_domains()


def test_each_source_is_cut_in_four_fifths_and_a_fifth(data: Dataset) -> None:
    assert np.bincount(data.train.extra["domain"]).tolist() == [4000, 1438, 4000, 4000, 4000]
    assert np.bincount(data.test.extra["domain"]).tolist() == [1000, 359, 1000, 1000, 1000]
    for split, each in ((data.train, 400), (data.test, 100)):
        for domain in (0, 2, 3, 4):
            labels = split.y[split.extra["domain"] == domain]
            assert np.bincount(labels).tolist() == [each] * 10


def test_the_first_source_is_mnist_and_the_third_lies_over_it(data: Dataset) -> None:
    plain = mnist5k()
    first = data.train.x[data.train.extra["domain"] == 0]
    assert np.array_equal(first, np.repeat(plain.train.x, 3, axis=3))
    over = data.train.x[data.train.extra["domain"] == 2]
    # |photograph - 0| is the photograph; where the digit is white it is the photograph's negative.
    ink = plain.train.x[..., 0] == 255
    paper = plain.train.x[..., 0] == 0
    assert over[paper].std() > 30
    assert abs(float(over[ink].mean()) - (255 - float(over[paper].mean()))) < 25


def test_the_grey_sources_are_grey_and_the_others_are_not(data: Dataset) -> None:
    for domain, name in enumerate(DOMAINS):
        x = data.train.x[data.train.extra["domain"] == domain].astype(int)
        spread = (x.max(3) - x.min(3)).max()
        assert (spread == 0) == (name in ("mnist", "optical", "printed"))


def trained(data: Dataset, domain: int, steps: int, width: int) -> torch.nn.Module:
    """A small CNN with BatchNorm, trained with Adam on one domain."""
    torch.manual_seed(domain)
    blocks: list[torch.nn.Module] = []
    channels = data.card.input_shape[0]
    for out in (width, 2 * width, 4 * width):
        blocks += [torch.nn.Conv2d(channels, out, 3, padding=1), torch.nn.BatchNorm2d(out)]
        blocks += [torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
        channels = out
    head = [torch.nn.Flatten(), torch.nn.LazyLinear(data.num_classes)]
    module = torch.nn.Sequential(*blocks, *head)
    rows = np.flatnonzero(data.train.extra["domain"] == domain)
    view = View(data.train, rows, data.card)
    module(view.inputs([0, 1]))
    optimiser = torch.optim.Adam(module.parameters(), 2e-3)
    rng = torch.Generator().manual_seed(domain)
    for x, y in view.batches(64, rng, steps=steps):
        optimiser.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimiser.step()
    return module


def difficulty(data: Dataset, steps: int, width: int) -> np.ndarray:
    """Accuracy of the model of each domain (rows) on each domain's test images (columns)."""
    domains = range(len(data.card.domains))
    tests = [
        View(data.test, np.flatnonzero(data.test.extra["domain"] == d), data.card) for d in domains
    ]
    table = []
    for domain in domains:
        module = trained(data, domain, steps, width)
        table.append([score(module, view)["accuracy"] for view in tests])
    return np.array(table)


@pytest.mark.slow
def test_digits_are_easy_within_a_domain_and_hard_across(data: Dataset) -> None:
    table = difficulty(data, steps=250, width=16)
    within = np.diag(table).mean()
    across = table[~np.eye(5, dtype=bool)].mean()
    assert within > 0.93, table.round(2)
    assert 0.3 < across < 0.6, table.round(2)


@pytest.mark.slow
def test_emoji_are_learnable_within_a_vendor_and_shift_across() -> None:
    table = difficulty(emoji(), steps=300, width=24)
    within = np.diag(table).mean()
    across = table[~np.eye(4, dtype=bool)].mean()
    # Of the training emoji 22 % are of the largest group.
    assert 0.5 < within < 0.72, table.round(2)
    assert 0.28 < across < 0.5, table.round(2)
    assert within - across > 0.1, table.round(2)
