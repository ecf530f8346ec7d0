import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedsim.errors import InputError
from fedsim.models.cnn import cnn
from fedsim.models.mlp import mlp
from fedsim.models.resnet import resnet
from fedsim.models.text import text

VECTORS = torch.tensor([[100.0, 100.0], [1.0, -2.0], [3.0, 4.0], [-5.0, 0.0]])


def pooled(pool: str, tokens: list[list[int]]) -> list[list[float]]:
    """What is made of word vectors 1: (1, -2), 2: (3, 4), 3: (-5, 0) and a spoilt row 0."""
    module = text((4, 4), 3, width=2, pool=pool)
    layer = module.body[0]
    with torch.no_grad():
        layer.embedding.weight.copy_(VECTORS)
    values: list[list[float]] = layer(torch.tensor(tokens)).tolist()
    return values


def test_mean_of_the_words_before_the_end() -> None:
    # ((1 + 3) / 2, (-2 + 4) / 2); one word; (1 + 3 - 5 - 5) / 4, (-2 + 4) / 4; no word
    tokens = [[1, 2, 0, 0], [3, 0, 0, 0], [1, 2, 3, 3], [0, 0, 0, 0]]
    assert pooled("mean", tokens) == [[2.0, 1.0], [-5.0, 0.0], [-1.5, 0.5], [0.0, 0.0]]


def test_maximum_of_the_words_before_the_end() -> None:
    tokens = [[1, 2, 0, 0], [3, 0, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0]]
    assert pooled("max", tokens) == [[3.0, 4.0], [-5.0, 0.0], [1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_further_ends_change_nothing(pool: str) -> None:
    torch.manual_seed(0)
    module = text((6, 50), 3, pool=pool)
    nn.init.normal_(module.body[0].embedding.weight)  # row 0 too, as after noise
    tokens = torch.randint(1, 50, (5, 6))
    tokens[1, 2:] = 0
    longer = torch.cat([tokens, torch.zeros(5, 30, dtype=torch.int64)], 1)
    assert torch.equal(module(tokens), module(longer))
    torch.testing.assert_close(module(tokens)[1], module(tokens[1:2, :2])[0])


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_gradients_reach_all_parameters_and_not_the_end(pool: str) -> None:
    torch.manual_seed(0)
    module = text((3, 6), 4, width=5, hidden=7, pool=pool)
    # V x width + width x hidden + hidden + hidden x classes + classes
    assert sum(p.numel() for p in module.parameters()) == 6 * 5 + 5 * 7 + 7 + 7 * 4 + 4
    # A word alone is the maximum everywhere.
    tokens = torch.tensor([[1, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0], [5, 5, 5]])
    F.cross_entropy(module(tokens), torch.tensor([0, 1, 3, 2, 0])).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0, name
    words = module.body[0].embedding.weight.grad
    assert words.abs().sum(1).ne(0).tolist() == [False, True, True, True, True, True]


def test_body_and_head() -> None:
    module = text((3, 6), 4, hidden=7)
    features = module.body(torch.tensor([[1, 2, 0]]))
    assert features.shape == (1, 7)
    assert torch.equal(module.head(features), module(torch.tensor([[1, 2, 0]])))


def test_it_learns_which_word_a_text_holds() -> None:
    torch.manual_seed(0)
    module = text((8, 20), 2, width=8, hidden=8)
    tokens = torch.randint(4, 20, (64, 8))
    y = torch.arange(64) % 2
    tokens[torch.arange(64), torch.randint(0, 8, (64,))] = 2 + y
    optimiser = torch.optim.SGD(module.parameters(), 0.5)
    for _ in range(200):
        optimiser.zero_grad()
        F.cross_entropy(module(tokens), y).backward()
        optimiser.step()
    assert (module(tokens).argmax(1) == y).all()


@pytest.mark.parametrize("options", [{"width": 0}, {"hidden": 0}, {"pool": "sum"}])
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))} must be"):
        text((3, 6), 4, **options)  # type: ignore[arg-type]


def test_images_and_texts_need_models_of_their_own() -> None:
    with pytest.raises(InputError, match=r"'text' needs a data set of texts.*got \(3, 32, 32\)"):
        text((3, 32, 32), 10)  # type: ignore[arg-type]
    for model in (cnn, mlp, resnet):
        named = rf"'{model.__name__}' needs a data set of images.*'text'.*got \(128, 9000\)"
        with pytest.raises(InputError, match=named):
            model((128, 9000), 10)
