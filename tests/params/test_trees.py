"""Trees of tensors: norms, means and structure, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fedsim.params import Layout, Params, trees


def params(values: list[float], count: int = 0) -> Params:
    layout = Layout(names=("a", "b"), shapes=((2,), (1,)), num_parameters=2, integers=("n",))
    return Params(layout, torch.tensor(values), {"n": torch.tensor(count)})


def test_weighted_mean_by_hand() -> None:
    first = {"model": params([1.0, 2.0, 3.0], 4), "z": {"t": torch.tensor([10.0])}, "c": 1.0}
    second = {"model": params([5.0, 6.0, 7.0], 9), "z": {"t": torch.tensor([20.0])}, "c": 3.0}
    mean = trees.weighted_mean([(first, 1), (second, 3)])
    assert mean["model"].flat.tolist() == [4.0, 5.0, 6.0]
    assert mean["model"].flat.dtype == torch.float32
    assert mean["model"].integers["n"].item() == 9
    assert mean["z"]["t"].item() == 17.5
    assert mean["c"] == 2.5


def test_weighted_mean_leaves_its_inputs_alone() -> None:
    one = {"model": params([1.0, 2.0, 3.0], 1)}
    trees.weighted_mean([(one, 2), ({"model": params([9.0, 9.0, 9.0], 5)}, 1)])
    assert one["model"].flat.tolist() == [1.0, 2.0, 3.0]
    assert one["model"].integers["n"].item() == 1


def test_fp64_sums_survive_what_fp32_loses() -> None:
    # 2**24 + 1 is not a float32: summed in fp32 the small client would vanish.
    big, small = {"w": torch.tensor([2.0**24])}, {"w": torch.tensor([1.0])}
    total = trees.WeightedMean()
    total.add(big, 1)
    total.add(small, 1)
    assert total.mean()["w"].item() == (2.0**24 + 1) / 2


def test_merging_single_clients_gives_the_bits_of_the_block() -> None:
    generator = torch.Generator().manual_seed(0)
    clients = [({"w": torch.randn(1000, generator=generator)}, n) for n in (3, 17, 1, 250)]
    block = trees.WeightedMean()
    for tree, weight in clients:
        block.add(tree, weight)
    merged = trees.WeightedMean()
    for tree, weight in clients:
        single = trees.WeightedMean()
        single.add(tree, weight)
        merged.merge(single)
    assert torch.equal(block.mean()["w"], merged.mean()["w"])
    assert merged.weight == 271


def test_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        trees.WeightedMean().mean()


def test_norm_by_hand_and_with_nan() -> None:
    assert trees.norm({"a": torch.tensor([3.0]), "b": {"c": torch.tensor([4.0])}}) == 5.0
    assert math.isnan(trees.norm({"a": torch.tensor([1.0, float("nan")])}))
    assert math.isinf(trees.norm({"a": torch.tensor([1.0, float("inf")])}))
    # finite elements whose squares overflow float32
    assert trees.norm({"a": torch.tensor([3e30, 4e30])}) == pytest.approx(5e30, rel=1e-6)


def test_num_bytes_by_hand() -> None:
    # 3 floats and one int64 in the model, 2 doubles, one number, a two-letter string
    doubles = torch.zeros(2, dtype=torch.float64)
    tree = {"model": params([1.0, 2.0, 3.0]), "t": doubles, "n": 1, "s": "ab"}
    assert trees.num_bytes(tree) == 12 + 8 + 16 + 8 + 2


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ({"t": torch.zeros(2)}, "missing keys ['u']"),
        ({"t": torch.zeros(2), "u": 1, "v": 1}, "unexpected keys ['v']"),
        ({"t": torch.zeros(3), "u": 1}, "wrong shape of 't': (3,), expected (2,)"),
        ({"t": torch.zeros(2), "u": 1}, None),
    ],
)
def test_difference_names_what_departs(first: trees.Tree, said: str | None) -> None:
    assert trees.difference(first, {"t": torch.zeros(2), "u": 2}) == said


def test_move_towards_is_the_point_on_the_line() -> None:
    start, end = {"model": params([0.0, 0.0, 0.0])}, {"model": params([2.0, 4.0, 8.0])}
    assert trees.move_towards(start, end, 0.25)["model"].flat.tolist() == [0.5, 1.0, 2.0]
