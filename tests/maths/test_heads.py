"""Realignment of row norms, by hand."""

import pytest
import torch
from torch import nn

from fedsim.maths.heads import (
    BIAS,
    WEIGHT,
    check_head,
    realign_rows,
    realign_to,
    realigned,
    row_norms,
)

PSI = torch.tensor([[3.0, 4.0], [0.0, -2.0], [0.6, 0.8]])  # norms 5, 2, 1
PHI = torch.tensor([[0.0, 2.0], [3.0, 0.0], [-6.0, 8.0]])  # norms 2, 3, 10


def test_rows_get_one_norm_and_keep_their_direction() -> None:
    found = realign_rows(PSI, 1.7)
    torch.testing.assert_close(found, torch.tensor([[1.02, 1.36], [0, -1.7], [1.02, 1.36]]))
    torch.testing.assert_close(row_norms(found), torch.full((3,), 1.7))
    cosines = (found * PSI).sum(1) / (row_norms(found) * row_norms(PSI))
    torch.testing.assert_close(cosines, torch.ones(3))


def test_a_row_of_zeros_stays_one() -> None:
    assert realign_rows(torch.zeros(2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_without_a_bias_the_scale_changes_no_prediction() -> None:
    generator = torch.Generator().manual_seed(0)
    z, psi = torch.randn(50, 8, generator=generator), torch.randn(5, 8, generator=generator)
    one, other = (z @ realign_rows(psi, scale).T for scale in (1.0, 1.7))
    assert torch.equal(one.argmax(1), other.argmax(1))
    assert not torch.equal((z @ psi.T).argmax(1), one.argmax(1))


def test_norms_are_multiplied() -> None:
    found = realign_to(PSI, PHI)
    torch.testing.assert_close(found, torch.tensor([[6.0, 8.0], [0.0, -6.0], [6.0, 8.0]]))
    torch.testing.assert_close(row_norms(found), torch.tensor([10.0, 6.0, 10.0]))
    ones = torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.6, 0.8]])
    torch.testing.assert_close(realign_to(PSI, ones), PSI)


@pytest.mark.parametrize("bias", ["keep", "drop"])
def test_nothing_is_changed_in_place(bias: str) -> None:
    model = {"body.0.weight": torch.ones(2, 2), WEIGHT: PSI.clone(), BIAS: torch.ones(3)}
    before = {name: tensor.clone() for name, tensor in model.items()}
    head = realigned(model, 1.0, bias)  # type: ignore[arg-type]
    assert head[BIAS].tolist() == ([1, 1, 1] if bias == "keep" else [0, 0, 0])
    head[WEIGHT].zero_()
    head[BIAS].zero_()
    realign_to(model[WEIGHT], PHI).zero_()
    assert all(torch.equal(model[name], before[name]) for name in model)


def test_a_model_without_a_head_is_refused() -> None:
    check_head({WEIGHT: PSI, BIAS: torch.zeros(3)}, 3, "m")
    plain = nn.Sequential(nn.Linear(2, 3)).state_dict()
    with pytest.raises(ValueError, match=r"strategy 'm' needs a model with a linear layer named"):
        check_head(plain, 3, "m")
    with pytest.raises(ValueError, match="of 4 rows"):
        check_head({WEIGHT: PSI, BIAS: torch.zeros(3)}, 4, "m")
