"""Towers of images and texts: what they are made of, what they make, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fedsim.api import prepare
from fedsim.components import build
from fedsim.errors import InputError
from fedsim.models.image_text import in_encoder, retrieval_loss
from fedsim.models.resnet_imagenet import resnet_imagenet
from fedsim.models.text_gru import text_gru
from fedsim.models.vit import vit as model_vit
from fedsim.params import FlatModel
from tests.support.resnets import torchvision_state
from tests.support.runs import prepared, tiny

EMOJI = {"name": "emoji", "vendors": ["noto"]}
SMALL = {
    "name": "image-text",
    "dim": 5,
    "server_image": {"name": "resnet", "width": 4},
    "image": {"name": "cnn", "channels": [3], "hidden": 7},
    "text": {"name": "text", "width": 3, "hidden": 4},
}
NET = {"name": "resnet-imagenet", "stem": "large", "weights": "/nowhere/net.pth"}


def built(**options: Any) -> Any:
    experiment = prepared(dataset=EMOJI, model={**SMALL, **options})
    return build.build_model(experiment, build.build_dataset(experiment).card)


def test_each_part_has_towers_of_its_own_architecture() -> None:
    module = built()
    assert [name for name, _ in module.named_children()] == ["server", "image", "text", "pairs"]
    assert module.server.image.project.in_features == 16  # 4 x 4 channels of a residual network
    assert module.image.image.project.in_features == 7
    assert module.text.text.project.in_features == 4
    assert (module.image.text, module.text.image, module.server.head) == (None, None, None)
    assert module.image.head.out_features == module.text.head.out_features == 8
    assert module.scorer.headline == "recall_sum"


CNNS = [{"name": "cnn", "channels": [c], "hidden": h} for c, h in ((3, 7), (2, 6), (4, 9))]
BAGS = [{"name": "text", "width": w, "hidden": 4} for w in (3, 5)]


def test_clients_of_a_kind_take_its_architectures_in_turn() -> None:
    module = built(image=CNNS, pairs_image=CNNS[:2], pairs_text=BAGS)
    names = [name for name, _ in module.named_children()]
    assert names == ["server", "image", "image2", "image3", "text", "pairs", "pairs2"]
    widths = [module.get_submodule(name).image.project.in_features for name in names[1:4]]
    assert widths == [7, 6, 9]
    assert [module.part_of("image", c) for c in range(4)] == [*names[1:4], "image"]
    assert [module.part_of("text", c) for c in range(2)] == ["text", "text"]
    assert [module.part_of("all", c) for c in (4, 5, 6)] == ["pairs", "pairs2", "pairs"]
    second = module.pairs2
    assert second.image.project.in_features == 6
    assert second.text.body[0].embedding.weight.shape[1] == 5
    assert (module.image3.head.out_features, second.head) == (8, None)


def test_one_of_a_pairs_towers_may_be_the_same_for_all() -> None:
    module = built(pairs_image=CNNS, pairs_text=BAGS[0])
    texts = [module.get_submodule(name).text for name in module.kinds["pairs"]]
    assert len(texts) == 3
    sizes = [{n: p.shape for n, p in tower.named_parameters()} for tower in texts]
    assert sizes[0] == sizes[1] == sizes[2]
    assert not texts[0].project.weight.equal(texts[1].project.weight)


def test_what_lists_of_architectures_must_be() -> None:
    with pytest.raises(InputError, match="pairs_text must list as many models as pairs_image, or "
                       "one, got 2"):  # fmt: skip
        built(pairs_image=CNNS, pairs_text=BAGS)
    with pytest.raises(InputError, match=r"model\.image must name at least one model, got \[\]"):
        built(image=[])
    with pytest.raises(InputError, match=r"model\.image\.1\.chanels is not an option of 'cnn'"):
        built(image=[CNNS[0], {"name": "cnn", "chanels": [2]}])
    with pytest.raises(InputError, match=r"model\.image\.1 must be a mapping with the name"):
        built(image=[CNNS[0], "cnn"])
    with pytest.raises(InputError, match=r"model\.text\.1: model 'cnn' needs a data set of images"):
        built(text=[BAGS[0], CNNS[0]])
    with pytest.raises(InputError, match=r"model\.server_image must be a mapping"):
        built(server_image=CNNS)


def test_vectors_are_of_norm_one_and_features_are_not() -> None:
    module = built().eval()
    x, tokens = torch.randn(3, 3, 32, 32), torch.randint(0, 50, (3, 24))
    for part in (module.server, module.pairs):
        for made in (part.images(x), part.texts(tokens)):
            assert made.shape == (3, 5)
            torch.testing.assert_close(made.norm(dim=1), torch.ones(3))
    features = module.image.features(x)
    torch.testing.assert_close(F.normalize(features, dim=1), module.image.images(x))
    assert module.images(x).equal(module.server.images(x))
    assert module(x).equal(module.server.images(x))


def test_parts_and_encoders_by_name() -> None:
    params = FlatModel(built()).params()
    encoder = set(params.only(in_encoder("image")))
    assert encoder == {
        n for n in params if n.startswith("image.") and not n.startswith("image.head")
    }
    scalars = {n for n in params if n.startswith("pairs.")} - set(params.only(in_encoder("pairs")))
    assert scalars == {"pairs.scale", "pairs.shift", "pairs.log_temperature"}


def test_loss_scalars_begin_as_in_the_paper_and_learn() -> None:
    part = built().server
    assert (part.scale.item(), part.shift.item()) == (15.0, 15.0)
    x, y = (F.normalize(torch.randn(4, 5), dim=1) for _ in range(2))
    scalars = [part.scale, part.shift, part.log_temperature]
    found = torch.autograd.grad(
        retrieval_loss(part, x, y, "pcme", None), scalars, allow_unused=True
    )
    assert [g is not None for g in found] == [True, True, False]
    learnt = retrieval_loss(part, x, y, "infonce", None)
    assert float(learnt) == pytest.approx(float(retrieval_loss(part, x, y, "infonce", 0.07)))
    found = torch.autograd.grad(learnt, scalars, allow_unused=True)
    assert [g is not None for g in found] == [False, False, True]


def test_frozen_backbones_stay_frozen_in_a_tower() -> None:
    size = {"width": 16, "heads": 2, "layers": 2, "patch": 8}
    vit = {"name": "vit", **size, "prompts": 2, "frozen": True}
    module = built(server_image=vit)
    assert module.frozen
    assert all(name.startswith("server.image.body") for name in module.frozen)
    assert not any(n.startswith("server.image.body.backbone") for n in FlatModel(module).params())


def test_towers_bring_images_to_what_their_weights_expect(tmp_path: Path) -> None:
    """From pixels, as ImageNet's statistics make them, through the same tower without a card."""
    file = tmp_path / "net.pth"
    torch.save(torchvision_state(50), file)
    net = {"name": "resnet-imagenet", "depth": 50, "stem": "large", "weights": str(file)}
    vit = {"name": "vit", "weights": "emoji-vit", "prompts": 0, "normalise": "imagenet"}
    experiment = prepared(dataset=EMOJI, model={**SMALL, "server_image": net, "image": vit})
    card = build.build_dataset(experiment).card
    module: Any = build.build_model(experiment, card).eval()
    assert module.server.image.project.in_features == 2048
    pixels = torch.rand(2, 3, 32, 32)

    def normed(mean: Any, std: Any) -> torch.Tensor:
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    given = normed(card.mean, card.std)
    wanted = normed((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for tower, options in ((module.server.image, net), (module.image.image, vit)):
        name = options.pop("name")
        make = resnet_imagenet if name == "resnet-imagenet" else model_vit
        plain: Any = make((3, 32, 32), 8, **options)
        plain.load_state_dict(tower.state_dict(), strict=False)
        torch.testing.assert_close(
            tower.body(given), plain.eval().body(wanted), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dim": 0}, "dim must be >= 1"),
        ({"fold": 0}, "fold must be >= 1"),
        ({"image": {"name": "cnn", "channels": []}}, "model.image: channels must name"),
        ({"image": {"name": "cnn", "chanels": [3]}}, "model.image.chanels is not an option"),
        ({"image": {"name": "text"}}, "model.image: model 'text' needs a data set of texts"),
        ({"pairs_text": {"name": "cnn"}}, "model.pairs_text: model 'cnn' needs a data set of imag"),
        ({"image": {**NET, "stem": "small"}}, "model.image: stem must be 'large' with weights"),
        ({"pairs_image": NET}, "model.pairs_image: weights must be a file or folder"),
        ({"server_text": {"name": "nothing"}}, "model.server_text.name must be one of"),
    ],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        built(**options)


def test_it_needs_pairs(tmp_path: Path) -> None:
    experiment = prepare(tiny(model={"name": "image-text"}))
    with pytest.raises(InputError, match="needs a data set of image-text pairs"):
        build.build_model(experiment, build.build_dataset(experiment).card)


def test_defaults_of_towers_are_written_out() -> None:
    filled = prepared(dataset=EMOJI, model={"name": "image-text"}).model.model_dump()
    assert filled["server_text"] == {
        "name": "text-gru", "width": 64, "hidden": 64, "pool": "mean", "vectors": None,
    }  # fmt: skip
    assert filled["image"]["name"] == "cnn"
    assert filled["image"]["channels"] == [16, 32]


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_what_stands_after_the_end_changes_nothing(pool: Any) -> None:
    torch.manual_seed(0)
    module = text_gru((6, 20), 3, width=4, hidden=5, pool=pool)
    tokens = torch.tensor([[3, 4, 0, 0, 0, 0], [5, 6, 7, 8, 9, 2], [0, 0, 0, 0, 0, 0]])
    made = module.body(tokens)
    assert made.shape == (3, 10)
    assert bool(torch.isfinite(made).all())
    torch.testing.assert_close(made[:1], module.body(tokens[:1, :2]))
    torch.testing.assert_close(made[1:2], module.body(tokens[1:2]))


def test_the_recurrent_body_is_torchs_on_each_text() -> None:
    torch.manual_seed(0)
    module: Any = text_gru((4, 20), 3, width=4, hidden=5)
    body = module.body
    states, _ = body.gru(body.embedding(torch.tensor([[3, 4, 5]])))
    torch.testing.assert_close(module.body(torch.tensor([[3, 4, 5, 0]]))[0], states[0].mean(0))


@pytest.mark.parametrize("options", [{"width": 0}, {"hidden": 0}, {"pool": "max"}])
def test_bad_recurrent_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        text_gru((4, 20), 3, **options)
