import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedsim.data.datasets.emoji import emoji
from fedsim.data.datasets.mnist5k import mnist5k
from fedsim.data.synthetic import sheets
from fedsim.data.synthetic.packaged_emoji import load_emoji, load_rgba
from fedsim.data.tokens import words
from fedsim.errors import InputError

GROUP_SIZES = {
    "people": 342, "objects": 262, "symbols": 223, "travel": 218, "smileys": 168, "animals": 158,
    "food": 130, "activities": 85,
}  # fmt: skip


def test_the_packaged_emoji_are_those_all_vendors_draw() -> None:
    found = load_emoji()
    assert len(found) == 1586
    assert Counter(e.group for e in found) == GROUP_SIZES
    assert len({e.subgroup for e in found}) == 94
    cat = next(e for e in found if e.hexcode == "1F408")
    assert (cat.label, cat.group, cat.subgroup) == ("cat", "animals", "animal-mammal")
    assert "pet" in cat.tags


def test_drawings_stand_where_their_columns_say() -> None:
    found = load_rgba()
    assert found["rgba"].shape == (4 * 1586, 32, 32, 4)
    names = [e.label for e in found["emoji"]]
    tomato = names.index("tomato")
    for vendor in range(4):
        row = vendor * 1586 + tomato
        assert (found["vendor"][row], found["base"][row]) == (vendor, tomato)
        picture = found["rgba"][row].astype(int)
        solid = picture[picture[..., 3] == 255]
        red, green, blue = solid[:, :3].mean(0)
        assert red > green + 60
        assert red > blue + 60
        assert picture[0, 0, 3] == 0  # a round thing leaves its corners free
    # Every drawing shows something.
    assert (found["rgba"][..., 3].max((1, 2)) > 100).all()


def test_no_emoji_is_in_both_splits_and_every_group_is_cut_alike() -> None:
    data = emoji()
    assert not set(data.train.extra["group"]) & set(data.test.extra["group"])
    tested = np.bincount(data.test.y) / 4
    by_name = dict(zip(data.card.classes, tested, strict=True))
    assert by_name == {name: round(size / 5) for name, size in GROUP_SIZES.items()}
    assert len(data.train) + len(data.test) == 4 * 1586
    for split in (data.train, data.test):
        assert len(set(np.bincount(split.extra["domain"]))) == 1
    assert data.card.domains == ("noto", "twemoji", "openmoji", "fluent")


def test_parts_of_the_emoji_have_none_in_common() -> None:
    whole = emoji()
    one, other = emoji(part=(0.0, 0.6), vendors=("noto", "fluent")), emoji(part=(0.6, 1.0))
    for split in ("train", "test"):
        bases = [set(getattr(d, split).extra["group"].tolist()) for d in (whole, one, other)]
        assert not bases[1] & bases[2]
        assert bases[1] | bases[2] == bases[0]
    # Three fifths of every group, but for rounding.
    counted = np.bincount(one.train.y) / 2
    expected = 0.6 * np.bincount(whole.train.y) / 4
    assert np.abs(counted - expected).max() <= 0.5
    assert np.bincount(other.train.extra["domain"]).tolist() == [508] * 4
    assert other.vocabulary == whole.vocabulary


@pytest.mark.parametrize("part", [(0.5, 0.5), (-0.1, 1.0), (0.2, 1.1), (0.5, 0.5000001)])
def test_a_part_is_a_range_with_emoji(part: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=r"dataset.part must"):
        emoji(part=part)


def test_pictures_lie_on_white_and_texts_fit_them() -> None:
    data, found = emoji(vendors=("openmoji",)), load_rgba()
    assert data.card.domains == ("openmoji",)
    row = 3
    base = int(data.train.extra["group"][row])
    rgba = found["rgba"][2 * 1586 + base].astype(float)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(data.train.x[row] - expected).max() <= 0.5 + 1e-9
    one = found["emoji"][base]
    assert data.train.extra["text"][row].decode() == ", ".join([one.label, *one.tags])
    first = words(one.label)[0]
    token = data.train.extra["tokens"][row, 0]
    assert data.vocabulary[token] in (first, "<unk>")
    mean = (data.train.x / 255).mean((0, 1, 2))
    assert np.allclose(mean, data.card.mean, atol=1e-6)


def test_subgroups_with_twenty_emoji_are_classes() -> None:
    data = emoji(labels="subgroup")
    assert data.num_classes == 29
    sizes = Counter(e.subgroup for e in load_emoji())
    assert sorted(data.card.classes) == sorted(n for n, size in sizes.items() if size >= 20)
    counted = np.bincount(data.train.y) + np.bincount(data.test.y, minlength=29)
    assert counted.tolist() == [4 * sizes[name] for name in data.card.classes]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vendors": ("nota",)}, "of noto, twemoji, openmoji, fluent.*Did you mean 'noto'"),
        ({"vendors": ()}, "at least one"),
        ({"vendors": ("noto", "noto")}, "each once"),
        ({"size": 4}, r"8\.\.256"),
        ({"labels": "vendor"}, "'group' or 'subgroup'"),
        ({"size": 64, "root": "/nowhere"}, r"missing in /nowhere; .*npm pack @iconify-json/noto"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        emoji(**options)  # type: ignore[arg-type]


def test_a_damaged_tarball_is_named(tmp_path: Path) -> None:
    from fedsim.data.synthetic.emoji_source import PACKAGES, Drawings, package_files

    with pytest.raises(InputError, match="npm pack"):
        package_files(tmp_path)
    for name in ("noto-1.2.9", "twemoji-1.2.5", "openmoji-1.2.29", "fluent-emoji-flat-1.2.6"):
        (tmp_path / f"iconify-json-{name}.tgz").write_bytes(b"cut")
    (tmp_path / "emojibase-data-17.0.0.tgz").write_bytes(b"cut")
    assert len(package_files(tmp_path)) == len(PACKAGES)
    with pytest.raises(InputError, match=r"noto-1\.2\.9\.tgz is no whole package"):
        Drawings(tmp_path)


def test_a_changed_file_of_the_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "packaged"
    shutil.copytree(sheets.FOLDER, copy)
    monkeypatch.setattr(sheets, "FOLDER", copy)
    sheets.check_file("emoji.json")
    text = (copy / "emoji.json").read_text()
    (copy / "emoji.json").write_text(text.replace("cat face", "dog face"))
    with pytest.raises(InputError, match=r"emoji\.json is not the file .*install fedsim again"):
        sheets.read_json("emoji.json")
    (copy / "mnist5k.png").unlink()
    with pytest.raises(InputError, match=r"mnist5k\.png cannot be read"):
        sheets.read_sheet("mnist5k.png", 5000, 28)
    assert set(json.loads((copy / "checksums.json").read_text())) == {
        p.relative_to(copy).as_posix()
        for p in copy.rglob("*")
        if p.suffix in (".png", ".json", ".safetensors")
    } - {"checksums.json"} | {"mnist5k.png"}


def test_sheets_come_back_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "FOLDER", tmp_path)
    pictures = np.random.default_rng(0).integers(0, 256, (53, 6, 6, 4), dtype=np.uint8)
    sheets.write_sheet(pictures, tmp_path / "a.png")
    sheets.write_sheet(pictures[..., :1], tmp_path / "b.png")
    sheets.write_checksums(tmp_path)
    assert np.array_equal(sheets.read_sheet("a.png", 53, 6), pictures)
    assert np.array_equal(sheets.read_sheet("b.png", 53, 6), pictures[..., :1])


def test_mnist_is_mnist() -> None:
    data = mnist5k()
    assert np.bincount(data.train.y).tolist() == [400] * 10
    assert np.bincount(data.test.y).tolist() == [100] * 10
    x = data.train.x / 255
    assert x.mean() == pytest.approx(data.card.mean[0], abs=1e-4)
    assert x.std() == pytest.approx(data.card.std[0], abs=1e-4)
    # Ones have the least ink, and a nearest class mean reads most of the test digits.
    ink = [x[data.train.y == c].mean() for c in range(10)]
    assert int(np.argmin(ink)) == 1
    means = np.stack([x[data.train.y == c].mean(0).ravel() for c in range(10)])
    distances = ((data.test.x.reshape(1000, 1, -1) / 255 - means) ** 2).sum(2)
    assert (distances.argmin(1) == data.test.y).mean() > 0.75
