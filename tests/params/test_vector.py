"""Flat parameters: names, memory order and vector-space arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedsim.params import FlatModel, Params, zeros_like


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def test_a_flat_model_keeps_names_and_values() -> None:
    module = network()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    params = FlatModel(module).params()
    assert set(params) == set(before)
    assert all(torch.equal(params[name], before[name]) for name in before)
    # conv 108 + 4, norm 4 + 4 + 4 + 4, linear 32 + 2
    assert params.flat.numel() == 162
    assert params.layout.parameter_size == 154
    assert params.layout.integers == ("1.num_batches_tracked",)


def test_flat_model_computes_what_the_module_computes() -> None:
    plain, flat = network(), FlatModel(network())
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(plain(x), flat.module(x), atol=1e-6)
    assert torch.allclose(plain[1].running_mean, flat.params()["1.running_mean"], atol=1e-7)
    assert flat.params().integers["1.num_batches_tracked"].item() == 1


def test_load_restores_parameters_and_buffers() -> None:
    flat = FlatModel(network())
    start = flat.params()
    flat.module(torch.randn(5, 3, 4, 4))
    with torch.no_grad():
        flat.flat.add_(1.0)
    flat.load(start)
    again = flat.params()
    assert torch.equal(again.flat, start.flat)
    assert again.integers["1.num_batches_tracked"].item() == 0


def test_params_are_a_vector_space() -> None:
    a = FlatModel(network()).params()
    b = (a * 3.0 - a) / 2.0
    assert torch.allclose(b.flat, a.flat)
    assert (a - a).norm() == 0.0
    assert (-a)["3.bias"].tolist() == [-v for v in a["3.bias"].tolist()]
    assert torch.equal((a + zeros_like(a)).flat, a.flat)
    with pytest.raises(ValueError, match="layouts"):
        a + FlatModel(nn.Linear(2, 2)).params()


def test_select_and_merged_copy() -> None:
    a = FlatModel(network()).params()
    head = a.select(lambda name: name.startswith("3."))
    assert set(head) == {"3.weight", "3.bias"}
    head["3.bias"].fill_(7.0)
    assert a["3.bias"].tolist() != [7.0, 7.0]
    merged = a.merged(head)
    assert isinstance(merged, Params)
    assert merged["3.bias"].tolist() == [7.0, 7.0]
    with pytest.raises(KeyError):
        a.merged({"nonsense": torch.zeros(1)})


def test_norm_by_hand() -> None:
    linear = nn.Linear(1, 1)
    with torch.no_grad():
        linear.weight.fill_(3.0)
        linear.bias.fill_(-4.0)
    assert FlatModel(linear).params().norm() == 5.0


def test_a_part_keeps_its_names_values_and_integers() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    model = FlatModel(module)
    whole = model.params()
    part = whole.only(lambda name: name.startswith(("0.", "1.running", "1.num")))
    assert list(part) == ["0.weight", "0.bias", "1.running_mean", "1.running_var",
                          "1.num_batches_tracked"]  # fmt: skip
    assert part.layout.num_parameters == 2
    assert part.layout.size == 3 * 2 * 2 * 2 + 3 + 3 + 3
    assert all(torch.equal(part[name], whole[name]) for name in part)
    part.flat.zero_()
    assert whole["0.weight"].abs().sum() > 0
    assert whole.only(lambda name: False).flat.shape == (0,)


def test_loading_a_part_leaves_the_rest() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model = FlatModel(module)
    before = model.params()
    part = (before * 0.0).only(lambda name: name in ("0.bias", "1.num_batches_tracked"))
    part.flat.fill_(7.0)
    part.integers["1.num_batches_tracked"] += 5
    model.load(part)
    after = model.params()
    assert after["0.bias"].tolist() == [7.0, 7.0]
    assert int(after["1.num_batches_tracked"]) == 5
    assert torch.equal(after["0.weight"], before["0.weight"])
    other = FlatModel(nn.Linear(2, 2)).params()
    with pytest.raises(KeyError, match="weight"):
        model.load(other)


def test_a_vector_of_another_length_is_refused() -> None:
    params = FlatModel(nn.Linear(2, 3)).params()
    for flat in (params.flat[:-1], params.flat[None], torch.zeros(())):
        with pytest.raises(ValueError, match="is a vector of 9 elements, got the shape"):
            params.replace(flat)


def test_what_lies_under_a_layer_by_its_own_names() -> None:
    params = FlatModel(nn.ModuleDict({"a": network(), "ab": network()})).params()
    part = params.inside("a")
    assert set(part) == set(network().state_dict())
    assert part.layout.integers == ("1.num_batches_tracked",)
    assert part["0.weight"].equal(params["a.0.weight"])
    part["0.weight"].zero_()
    assert bool(params["a.0.weight"].any())
    moved = part.put_under("ab")
    assert set(moved) == {name for name in params if name.startswith("ab.")}
    merged = params.merged(moved)
    assert not bool(merged["ab.0.weight"].any())
    assert merged["a.0.weight"].equal(params["a.0.weight"])
    assert part.layout == params.inside("ab").layout
