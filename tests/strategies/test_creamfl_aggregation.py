"""CreamFL's aggregation: weights by hand, what they depend on, and what they take at scale."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.client import Update
from strategies.creamfl import CreamFL, disagreement
from tests.support.pairs import DIM, unit
from tests.support.runs import environment

NOTHING = torch.empty(0, DIM)


def update(client: int, images: Tensor | None, texts: Tensor | None = None) -> Update:
    given = {"local_img": images, "local_txt": texts}
    tensors: dict[str, Any] = {k: NOTHING if t is None else t for k, t in given.items()}
    return Update(tensors, 1.0, client=client)


def mean_of(updates: list[Update], same: Tensor, other: Tensor, **options: Any) -> Tensor:
    mean = CreamFL(CreamFL.Config(**options)).ensemble("img", updates, same, other).mean
    assert mean is not None
    return mean


def weights_of(updates: list[Update], same: Tensor, other: Tensor, **options: Any) -> list[float]:
    """Return each client's mean weight."""
    metrics = CreamFL(CreamFL.Config(**options)).ensemble("img", updates, same, other).metrics
    return [metrics[f"weight_img/{u.client}"] for u in updates]


def by_hand(local: list[Tensor], other: Tensor, tau: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the weights (C, N) and the mean by the definition, in fp64."""
    scores = []
    for rep in local:
        logits = rep.double() @ other.double().T / tau
        scores.append(logits.diagonal() - logits.exp().sum(1).log())
    parts = torch.stack(scores).exp()
    weights = parts / parts.sum(0)
    return weights, (weights.unsqueeze(2) * torch.stack(local).double()).sum(0)


@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_the_mean_is_that_of_the_definition(tau: float) -> None:
    local = [unit(30, DIM, seed) for seed in range(3)]
    same, other = unit(30, DIM, 10), unit(30, DIM, 11)
    updates = [update(c, rep) for c, rep in enumerate(local)]
    weights, expected = by_hand(local, other, tau)
    assert float((weights.sum(0) - 1).abs().max()) < 1e-12
    assert bool((weights > 0).all())
    found = mean_of(updates, same, other, gca_tau=tau)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    assert weights_of(updates, same, other, gca_tau=tau) == pytest.approx(weights.mean(1).tolist())
    assert bool((found.norm(dim=1) <= 1 + 1e-6).all())


def test_one_client_is_the_target_itself() -> None:
    local, other = unit(9, DIM, 0), unit(9, DIM, 1)
    assert mean_of([update(0, local)], other, other).equal(local)


@pytest.mark.parametrize("shape", [(8, DIM), (9, DIM - 1)])
def test_representations_of_other_pairs_are_refused(shape: tuple[int, int]) -> None:
    updates = [update(0, unit(9, DIM, 0)), update(7, unit(*shape, 1))]
    text = rf"client 7 sent local_img of the shape \({shape[0]}, {shape[1]}\), .* are \(9, {DIM}\)"
    with pytest.raises(ValueError, match=text):
        mean_of(updates, unit(9, DIM, 2), unit(9, DIM, 3))


def test_identical_clients_weigh_the_same() -> None:
    local, other = unit(9, DIM, 0), unit(9, DIM, 1)
    updates = [update(c, local.clone()) for c in range(4)]
    assert weights_of(updates, other, other) == pytest.approx([0.25] * 4)


def test_the_order_of_clients_and_of_samples_does_not_matter() -> None:
    local = [unit(20, DIM, seed) for seed in range(3)]
    same, other = unit(20, DIM, 10), unit(20, DIM, 11)
    updates = [update(c, rep) for c, rep in enumerate(local)]
    mean = mean_of(updates, same, other)
    torch.testing.assert_close(mean_of(updates[::-1], same, other), mean, rtol=0, atol=1e-6)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    moved = [update(c, rep[order]) for c, rep in enumerate(local)]
    found = mean_of(moved, same[order], other[order])
    torch.testing.assert_close(found, mean[order], rtol=0, atol=1e-6)


def test_a_better_match_weighs_more() -> None:
    """Only row 4 of client 0 changes, and only its weight there rises."""
    other = torch.eye(DIM)
    local = [unit(DIM, DIM, seed) for seed in range(2)]
    before, _ = by_hand(local, other)
    local[0][4] = F.normalize(local[0][4] + 2 * other[4], dim=0)
    updates = [update(c, rep) for c, rep in enumerate(local)]
    after, _ = by_hand(local, other)
    assert float(after[0, 4]) > float(before[0, 4])
    found = mean_of(updates, other, other)
    expected = after[0, 4] * local[0][4] + after[1, 4] * local[1][4]
    torch.testing.assert_close(found[4].double(), expected.double(), rtol=0, atol=1e-6)


def test_weights_are_mild_without_a_temperature_and_sharp_with_one() -> None:
    """A client near its targets (cosine about .95) against a random one, N = 500, d = 64."""
    other = unit(500, 64, 0)
    near = F.normalize(other + 0.04 * torch.randn(500, 64), dim=1)
    updates = [update(0, near), update(1, unit(500, 64, 2))]
    assert weights_of(updates, other, other)[0] == pytest.approx(0.72, abs=0.02)
    assert weights_of(updates, other, other, gca_tau=0.1)[0] == pytest.approx(0.998, abs=0.002)


def test_leaving_oneself_out_changes_little() -> None:
    other = unit(500, 64, 0)
    updates = [update(c, unit(500, 64, c + 1)) for c in range(2)]
    one, two = (
        weights_of(updates, other, other, gca_exclude_self=exclude) for exclude in (False, True)
    )
    assert one == pytest.approx(two, abs=1e-3)
    assert one != two


def test_images_are_weighed_by_texts_alone() -> None:
    local = [unit(20, DIM, seed) for seed in range(2)]
    updates = [update(c, rep) for c, rep in enumerate(local)]
    g_img, g_txt, another = (unit(20, DIM, seed) for seed in (10, 11, 12))
    mean = mean_of(updates, g_img, g_txt)
    assert mean_of(updates, another, g_txt).equal(mean)
    assert not mean_of(updates, g_img, another).equal(mean)


def test_a_corrupted_client_is_weighed_down() -> None:
    """Claim 3 of the method: its mean weight falls below 1/C and the target stays nearer to G."""
    same, other = unit(300, 32, 0), unit(300, 32, 1)
    other = F.normalize(same + 0.2 * other, dim=1)
    honest = [F.normalize(same + 0.2 * unit(300, 32, 10 + c), dim=1) for c in range(3)]
    updates = [update(c, rep) for c, rep in enumerate([*honest, unit(300, 32, 99)])]
    weights = weights_of(updates, same, other)
    assert weights[3] < 0.2 < 0.25 < min(weights[:3])

    def near(aggregation: str) -> float:
        mean = mean_of(updates, same, other, aggregation=aggregation)
        return float(F.cosine_similarity(mean, same, dim=1).mean())

    assert near("gca") > near("mean")


def test_other_rules_by_hand() -> None:
    other = torch.eye(3)
    local = [torch.eye(3), torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])]
    updates = [update(c, rep) for c, rep in enumerate(local)]
    plain = mean_of(updates, other, other, aggregation="mean")
    assert plain.tolist() == [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]
    # The variance of (1, 0, 0) over its entries is that of any other unit vector of the axes.
    assert weights_of(updates, other, other, aggregation="confidence") == pytest.approx([0.5, 0.5])
    faint = [update(0, torch.eye(3)), update(1, 0.5 * torch.eye(3))]
    found = weights_of(faint, other, other, aggregation="confidence")
    assert found == pytest.approx([0.8, 0.2])  # variances as 1 to 1/4
    # The server retrieves its rows 0 and 1 rightly, and row 2 not.
    same = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.9, 0.1], [0.7, 0.0, 0.3]])
    chosen = mean_of(updates, same, other, aggregation="selective")
    assert chosen[:2].equal(same[:2])
    assert chosen[2].equal(plain[2])


def test_what_is_told_of_clients_and_of_their_mean() -> None:
    """Client 0 has pairs, client 1 pictures alone; it takes the first two for each other.

    The server takes the third picture for the first.
    """
    same, other = torch.eye(3)[[0, 1, 0]], torch.eye(3)
    updates = [update(0, torch.eye(3), torch.eye(3)), update(1, torch.eye(3)[[1, 0, 2]])]
    config = CreamFL.Config(aggregation="mean", diversity=0.3, kd_weight=0.6)
    found = CreamFL(config).ensemble("img", updates, same, other)
    assert found.metrics["alignment_img"] == pytest.approx((2 / 3 + 0) / 2)
    # Halfway between two axes the cosine is the root of a half.
    assert found.metrics["target_alignment_img"] == pytest.approx(2 * 0.5**0.5 / 3)
    assert found.metrics["single_recall@1/img"] == pytest.approx(1 / 3)
    assert [target.weight for target in found.targets] == [0.6, 0.3]


def test_disagreement_is_the_mean_of_those_who_retrieve_another_pair() -> None:
    other = torch.eye(3)
    local = [torch.eye(3), torch.eye(3), torch.eye(3)[[1, 0, 2]]]
    mean = sum(local[1:], local[0]) / 3
    target = disagreement(local, torch.full((3, 3), 1 / 3), mean, other, 0.4)
    assert target.weight == 0.4
    assert target.rows is not None
    assert target.rows.tolist() == [True, True, False]
    assert target.rep[:2].tolist() == local[2][:2].tolist()


AT_SCALE = """
import resource, sys, time, torch
from fedsim.client import Update
from strategies.creamfl import CreamFL
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
def unit():
    x = torch.randn(int(sys.argv[1]), 256, generator=generator)
    return x.div_(x.norm(dim=1, keepdim=True))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
same, other = unit(), unit()
updates = [Update({"local_img": unit(), "local_txt": unit()}, 1.0, client=c) for c in range(10)]
before, started = peak(), time.perf_counter()
found = CreamFL().ensemble("img", updates, same, other)
assert torch.isfinite(found.mean).all()
print(peak(), peak() - before, time.perf_counter() - started)
"""


def at_scale(pairs: int) -> list[float]:
    """Return GiB at the highest, GiB above what the uploads take, and seconds, of one modality."""
    done = subprocess.run(
        [sys.executable, "-c", AT_SCALE, str(pairs)],
        check=True,
        capture_output=True,
        text=True,
        env=environment(),
    )
    return [float(number) for number in done.stdout.split()]


@pytest.mark.slow
def test_aggregation_makes_no_matrix_of_all_pairs() -> None:
    """10,000 pairs, 256 dimensions, ten clients: similarities of all with all are 0.37 GiB."""
    _, more, _ = at_scale(10_000)
    assert more < 0.25


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not os.environ.get("FEDSIM_PAPER_SCALE"), reason="takes minutes; ask for it")
def test_aggregation_at_the_papers_scale_stays_under_two_gib() -> None:
    """50,000 pairs, 256 dimensions, ten clients with both modalities: all that a process holds."""
    gib, _, seconds = at_scale(50_000)
    assert gib < 2.0
    print(f"{gib:.2f} GiB, {seconds:.0f} s")
