from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.data.cache import verify
from fedsim.data.dataset import SPLITS, Dataset, Split
from fedsim.data.datasets.emoji_scenes import emoji_scenes
from fedsim.data.synthetic import emoji_pool, photographs
from fedsim.errors import InputError
from tests.support.emoji_stand_in import use_stand_in

PACKAGED = emoji_pool.load_rgba
WEATHERS = ("clear", "fog", "rain", "night", "overcast", "snow")


@pytest.fixture(autouse=True)
def surroundings(no_files: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    use_stand_in(monkeypatch)


def tiny(**options: Any) -> Dataset:
    return emoji_scenes(**{"train": 6, "test": 3, **options})


def boxes_of(split: Split, i: int) -> list[tuple[int, list[int]]]:
    """The label and corners of each box of image i."""
    labels = split.extra["box_labels"][i]
    there = labels >= 0
    corners = split.extra["boxes"][i][there].astype(int).tolist()
    return list(zip(labels[there].tolist(), corners, strict=True))


def test_shapes_domains_and_classes() -> None:
    dataset = tiny()
    assert dataset.train.x.shape == (36, 128, 128, 3)
    assert dataset.test.x.shape == (18, 128, 128, 3)
    assert isinstance(dataset.train.x, np.memmap)
    assert dataset.train.extra["boxes"].shape == (36, 4, 4)
    assert dataset.train.extra["domain"].tolist() == [d for d in range(6) for _ in range(6)]
    assert dataset.card.domains == WEATHERS
    assert dataset.card.classes == ("smileys", "animals", "food", "travel")
    assert (dataset.card.kind, dataset.card.input_shape) == ("detection", (3, 128, 128))
    assert "Generated" in dataset.card.description


def test_every_scene_has_boxes_inside_it_and_the_largest_gives_its_label() -> None:
    for split in (tiny().train, tiny().test):
        counts = set()
        for i in range(len(split)):
            found = boxes_of(split, i)
            counts.add(len(found))
            labels = split.extra["box_labels"][i]
            assert (labels[len(found) :] == -1).all()
            assert (split.extra["boxes"][i][len(found) :] == 0).all()
            areas = []
            for _, (x1, y1, x2, y2) in found:
                assert 0 <= x1 < x2 <= 128
                assert 0 <= y1 < y2 <= 128
                assert max(x2 - x1, y2 - y1) <= 48
                areas.append((x2 - x1) * (y2 - y1))
            assert split.y[i] == found[int(np.argmax(areas))][0]
        assert counts <= {1, 2, 3, 4}
        assert len(counts) >= 3


def test_boxes_fit_the_discs_that_were_pasted() -> None:
    """A lone disc of pure colour: its box holds all its pixels and touches them on each side."""
    dataset = tiny(train=40, objects=1, domains=["clear"])
    for i in range(40):
        ((_, (x1, y1, x2, y2)),) = boxes_of(dataset.train, i)
        image = dataset.train.x[i].astype(int)
        middle = image[(y1 + y2) // 2, (x1 + x2) // 2]
        same = (np.abs(image - middle).max(2) <= 2)[y1:y2, x1:x2]
        assert same[:, [1, -2]].any()
        assert same[[1, -2]].any()
        # A disc covers 78.5 % of the square around it; its rim is blended with the ground.
        assert 0.55 < same.mean() < 0.8
        # The disc is 28 of the picture's 32 pixels: 17.5 to 42 of 20 to 48, rounded.
        assert 16 <= x2 - x1 <= 43
        assert abs((x2 - x1) - (y2 - y1)) <= 1


def test_the_packaged_emoji(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji_pool, "load_rgba", PACKAGED)
    pool = emoji_pool.emoji_pool(None, None)
    assert pool.vendors == ("noto", "twemoji", "openmoji", "fluent")
    assert len(pool.classes) == 8
    bases = {
        split: {
            int(base) for rows in pool.rows[split] for base in emoji_pool.load_rgba()["base"][rows]
        }
        for split in SPLITS
    }
    assert not bases["train"] & bases["test"]
    assert min(len(rows) for split in pool.rows.values() for rows in split) >= 60


def test_test_scenes_show_other_emoji_on_other_photographs() -> None:
    dataset = tiny(train=40, test=20, objects=1, domains=["clear"])
    # The stand-in's test emoji have an odd value of green in a channel that is 0 or 200.
    for split, odd in ((dataset.train, 0), (dataset.test, 1)):
        for i in range(len(split)):
            ((_, (x1, y1, x2, y2)),) = boxes_of(split, i)
            assert split.x[i, (y1 + y2) // 2, (x1 + x2) // 2, 1] % 2 == odd
    train, test = (photographs.photograph_files(split) for split in SPLITS)
    assert len({path.name for path in train} | {path.name for path in test}) == 11
    assert not set(train) & set(test)


def test_vendors_and_groups_can_be_chosen() -> None:
    chosen = {"groups": ["people", "animals"], "vendors": ["two"], "domains": ["clear"]}
    dataset = tiny(train=20, objects=1, **chosen)
    assert dataset.card.classes == ("people", "animals")
    for i in range(20):
        ((_, (x1, y1, x2, y2)),) = boxes_of(dataset.train, i)
        # Vendor two has one more of red, which is 0 or 220.
        assert dataset.train.x[i, (y1 + y2) // 2, (x1 + x2) // 2, 0] % 2 == 1


def test_scenes_stay_the_same_when_more_are_asked_for() -> None:
    few, many = tiny(domains=["fog", "snow"]), tiny(train=9, test=4, domains=["clear", "snow"])
    assert (few.train.x[6:] == many.train.x[9:15]).all()
    assert (few.test.x[3:] == many.test.x[4:7]).all()
    assert (few.train.extra["boxes"][6:] == many.train.extra["boxes"][9:15]).all()


def test_the_seed_and_the_weather_matter_and_nothing_else() -> None:
    one, two = tiny(domains=["rain"], seed=1), tiny(domains=["rain"], seed=2)
    assert not (one.train.x == two.train.x).all((1, 2, 3)).any()
    mild = tiny(domains=["rain"], seed=1, strength=0.2)
    assert (mild.train.extra["boxes"] == one.train.extra["boxes"]).all()
    assert not (mild.train.x == one.train.x).all((1, 2, 3)).any()


def test_strength_by_domain() -> None:
    calm = tiny(strength={"fog": 0, "night": 1}, domains=["clear", "fog", "night"])
    plain = tiny(strength=0, domains=["fog"])
    assert (calm.train.x[6:12] == plain.train.x).all()
    assert calm.train.x[12:].mean() < 0.5 * calm.train.x[:12].mean()


def test_mean_and_std_are_those_of_the_training_images() -> None:
    dataset = tiny()
    x = dataset.train.x / 255
    assert np.allclose(dataset.card.mean, x.mean((0, 1, 2)))
    assert np.allclose(dataset.card.std, x.std((0, 1, 2)))


@pytest.mark.parametrize("size", [64, 256])
def test_sizes(size: int) -> None:
    dataset = tiny(size=size, domains=["rain", "snow"])
    assert dataset.train.x.shape == (12, size, size, 3)
    boxes = dataset.train.extra["boxes"]
    assert 0.85 * 24 / 64 * size < (boxes[..., 2] - boxes[..., 0]).max() * 1.3 <= size


def test_made_once_with_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny()
    (entry,) = (tmp_path / "cache").glob("emoji-scenes-*")
    assert verify(entry) == []
    monkeypatch.setattr("fedsim.data.synthetic.weather_scenes.render", None)
    tiny()
    with pytest.raises(TypeError):
        tiny(seed=5)
    assert [path.name for path in (tmp_path / "cache").glob("emoji-scenes-*")] == [entry.name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 0}, r"dataset\.train must be >= 1, got 0"),
        ({"test": 0}, r"dataset\.test must be >= 1, got 0"),
        ({"objects": 9}, r"dataset\.objects must be in 1\.\.8, got 9"),
        ({"size": 100}, r"dataset\.size must be a multiple of 8 in 64\.\.256, got 100"),
        ({"size": 264}, r"dataset\.size must be"),
        ({"domains": []}, r"dataset\.domains must name at least one of clear, fog"),
        ({"domains": ["rainy"]}, r"must be of clear, fog.*Did you mean 'rain'\?, got 'rainy'"),
        ({"domains": ["fog", "fog"]}, r"dataset\.domains must name each once"),
        ({"groups": ["flags"]}, r"dataset\.groups must be of smileys, people.*got 'flags'"),
        ({"vendors": ["apple"]}, r"dataset\.vendors must be of one, two, got 'apple'"),
        ({"strength": 1.5}, r"dataset\.strength must be in \[0, 1\], got 1\.5"),
        ({"strength": {"fog": -1.0}}, r"dataset\.strength must be in \[0, 1\], got -1\.0"),
        ({"strength": {"fog": 0.5}}, r"must give every domain's; missing, got \['rain', 'night'"),
        ({"strength": {"fog": 0.5}, "domains": ["snow"]}, r"dataset\.strength must be of snow"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(**options)


def test_a_group_without_test_emoji(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.emoji_stand_in import emoji

    made = emoji()
    made["is_test"] &= made["group"] != 2
    monkeypatch.setattr("fedsim.data.synthetic.emoji_pool.load_rgba", lambda: made)
    with pytest.raises(InputError, match="groups with test emoji by one, two, got 'animals'"):
        tiny()


def test_scikit_image_is_named_when_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    find = photographs.importlib.util.find_spec  # type: ignore[attr-defined]
    monkeypatch.setattr(
        photographs.importlib.util,  # type: ignore[attr-defined]
        "find_spec",
        lambda name: None if name == "skimage" else find(name),
    )
    with pytest.raises(InputError, match=r"need the package skimage: pip install 'fedsim\[data\]'"):
        tiny()


def test_a_photograph_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(photographs._FILES, "test", (("sklearn", "datasets/images/moon.jpg"),))
    with pytest.raises(InputError, match=r"sklearn lacks the photograph .*moon\.jpg"):
        tiny()
