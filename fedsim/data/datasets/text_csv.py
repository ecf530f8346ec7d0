"""Labelled texts from the user's own CSV files, AG News among them."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fedsim.data.arrays import dataset_of, names_of, pack_names
from fedsim.data.cache import Arrays, cached_arrays
from fedsim.data.dataset import Card, Dataset
from fedsim.data.loaders.holdout import mark_fifth
from fedsim.data.loaders.texts import Texts, check_text_options, text_arrays
from fedsim.data.sources import data_folders, digest, find_files, fingerprint, track
from fedsim.errors import InputError, check

_AG_NEWS = Card(
    title="AG News",
    source=(
        "X. Zhang, J. Zhao, Y. LeCun 2015, arXiv:1509.01626, from A. Gulli's corpus of news "
        "articles; train.csv and test.csv of ag_news_csv"
    ),
    licence="none stated; the corpus is for non-commercial use",
    classes=("World", "Sports", "Business", "Sci/Tech"),
    input_shape=(128, 20_000),
    description="120,000 training and 7,600 test articles, as many of each class; title and lead.",
    kind="text",
)

SETS = {"ag-news": _AG_NEWS}

_OWN = Card(
    title="Texts of the user's own",
    source="CSV files of the user",
    licence="the user's",
    classes=(),
    kind="text",
)


@dataclass(frozen=True)
class _Format:
    """Format of the files. Columns of files without a header are called 1, 2, 3 ..."""

    text: tuple[str, ...]
    label: str
    owner: str | None
    domain: str | None
    header: bool
    delimiter: str
    encoding: str
    characters: int
    is_ag_news: bool

    @property
    def roles(self) -> dict[str, str]:
        """Role of a column -> its name, without roles that no column has."""
        columns = {"label": self.label, "owner": self.owner, "domain": self.domain}
        return {role: column for role, column in columns.items() if column is not None}


def text_csv(
    *,
    set: Literal["ag-news"] | None = None,
    root: str | None = None,
    train: str = "train.csv",
    test: str | None = "test.csv",
    text: tuple[str, ...] = ("text",),
    label: str = "label",
    owner: str | None = None,
    domain: str | None = None,
    header: bool = True,
    delimiter: str = ",",
    encoding: str = "utf-8",
    length: int = 128,
    vocabulary: int = 20_000,
    characters: int = 2000,
) -> Dataset:
    """Labelled texts from CSV files of the user: AG News, or any columns by name.

    `root` is the folder of the files `train` and `test`; without it, the usual folders are
    searched. A text is the values of the columns `text`, joined by spaces, cut at so many
    `characters` and at `length` tokens of the `vocabulary` most frequent words of the training
    texts. Classes are the values of the column `label` in the training file, sorted, numerically
    if all are numbers. The columns `owner` and `domain`, if named, become natural clients and
    domains. Without a `header` columns are called 1, 2, 3 and so on. With ``test: null`` a fixed
    fifth of each class is the test split.

    ``set: ag-news`` is the format of that set: no header, class 1-4, title, description; the
    options `text` to `encoding` are then ignored. Columns of the result: `text`, `owner`.

    Raises:
        InputError: files or columns that are missing, damaged, not of the `encoding`, or empty; a
            label that is out of range or only in the test file; a bad option.
    """
    check(set in (None, *SETS), f"dataset.set must be one of {', '.join(SETS)} or null", set)
    check_text_options(length, vocabulary, characters)
    form = _Format(text, label, owner, domain, header, delimiter, encoding, characters, False)
    if set == "ag-news":
        form = _Format(("2", "3"), "1", None, None, False, ",", "utf-8", characters, True)
    _check(form)
    name = set or "text-csv"
    names = {"train": (train,)} if test is None else {"train": (train,), "test": (test,)}
    title, advice = "The data set text-csv", "put your files"
    if set is not None:
        title = SETS[set].title
        advice = "get ag_news_csv, linked from arXiv:1509.01626, and put its two files"
    files = find_files(title, data_folders(name, root), names, advice)
    identity = f"{form}{sorted(files)}{length}-{vocabulary}-{fingerprint(files.values())}"
    key = f"text-csv-1-{digest(identity)}"
    arrays = cached_arrays(key, lambda: _build(files, form, length, vocabulary))
    if set is not None:
        return dataset_of(name, arrays, SETS[set])
    number = f"{len(arrays['train-y'])} training and {len(arrays['test-y'])} test texts"
    card = replace(
        _OWN,
        classes=names_of(arrays["classes"]),
        domains=names_of(arrays["domains"]) if domain is not None else (),
        description=f"{number} of {', '.join(str(path) for path in files.values())}.",
    )
    return dataset_of(name, arrays, card)


def _check(form: _Format) -> None:
    check(len(form.text) >= 1, "dataset.text must name at least one column", form.text)
    single = len(form.delimiter) == 1 and form.delimiter not in '"\r\n'
    check(single, "dataset.delimiter must be one character, not a quote", form.delimiter)
    try:
        codecs.lookup(form.encoding)
        # Lines are split before they are decoded.
        by_lines = "\n".encode(form.encoding) == b"\n"
    except (LookupError, TypeError, ValueError):
        by_lines = False
    check(
        by_lines,
        "dataset.encoding must be one that Python knows and in which a line break is one byte, "
        "such as utf-8 or latin-1",
        form.encoding,
    )


@dataclass(eq=False)
class _Table:
    """The rows of one file: texts, values by role, and the line on which each row begins."""

    path: Path
    texts: list[str]
    values: dict[str, list[str]]
    lines: list[int]


def _build(files: Mapping[str, Path], form: _Format, length: int, vocabulary: int) -> Arrays:
    tables = {split: _read(path, form) for split, path in files.items()}
    names = {
        role: _sorted([value for table in tables.values() for value in table.values[role]])
        for role in form.roles
    }
    names["label"] = list("1234") if form.is_ag_news else _sorted(tables["train"].values["label"])
    splits = {}
    for split, table in tables.items():
        _check_labels(table, names["label"], form)
        columns = {role: _numbers(table.values[role], names[role]) for role in form.roles}
        splits[split] = Texts(table.texts, columns.pop("label"), columns)
    if "test" not in splits:
        splits = _divide(splits["train"], tables["train"].path)
    arrays = {**text_arrays(splits, length, vocabulary), "classes": pack_names(names["label"])}
    return {**arrays, "domains": pack_names(names["domain"])} if "domain" in names else arrays


def _divide(whole: Texts, path: Path) -> dict[str, Texts]:
    is_test = mark_fifth(whole.y, key=1509)
    check(
        bool(is_test.any()),
        f"{path} has too few texts of each class to take a fifth of them for testing (3 are "
        "needed of one class); name a file as dataset.test",
        len(is_test),
    )
    return whole.divide(is_test)


def _check_labels(table: _Table, classes: list[str], form: _Format) -> None:
    known = set(classes)
    for line, label in zip(table.lines, table.values["label"], strict=True):
        if label not in known:
            allowed = ", ".join(classes[:20]) + (" ..." if len(classes) > 20 else "")
            why = "" if form.is_ag_news else ", the classes of the training file"
            raise InputError(
                f"the label in {table.path}, line {line} must be one of {allowed}{why}, got "
                f"{label!r}; correct or remove the row"
            )


def _numbers(values: list[str], names: list[str]) -> np.ndarray:
    numbers = {name: i for i, name in enumerate(names)}
    return np.array([numbers[value] for value in values], np.int64)


def _sorted(values: list[str]) -> list[str]:
    """Return the distinct values, sorted, numerically if all are numbers."""
    distinct = sorted(set(values))
    try:
        return sorted(distinct, key=int)
    except ValueError:
        return distinct


def _read(path: Path, form: _Format) -> _Table:
    """Read one file.

    Raises:
        InputError: what `text_csv` lists for files.
    """
    table = _Table(path, [], {role: [] for role in form.roles}, [])
    rows = csv.reader(
        track(_lines(path, form.encoding), path.name), delimiter=form.delimiter, strict=True
    )
    places: dict[str, int] = {}
    end = 0  # the line on which the last row ended
    try:
        for row in rows:
            line, end = end + 1, rows.line_num
            if not places:
                names = row if form.header else [str(i + 1) for i in range(len(row))]
                places, width = _places(path, names, form), len(row)
                if form.header:
                    continue
            if not row:  # an empty line
                continue
            if len(row) != width:
                raise InputError(
                    f"{path}, line {line} must have {width} columns as the first line has, got "
                    f"{len(row)}; correct or remove the row"
                )
            table.texts.append(_text([row[places[column]] for column in form.text], form))
            for role, column in form.roles.items():
                value = row[places[column]]
                is_name = role != "owner"  # which may be anything
                table.values[role].append(_name(value, column, path, line) if is_name else value)
            table.lines.append(line)
    except csv.Error as error:
        raise InputError(
            f"{path}, from line {end + 1} on, is not CSV with quotes doubled ({error}); correct it"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    check(len(table.texts) >= 1, f"{path} must have at least one row of text", 0)
    return table


def _lines(path: Path, encoding: str) -> Iterator[str]:
    """Yield the lines with their ends, decoded one by one so that a wrong one can be named."""
    with open(path, "rb") as file:
        for number, data in enumerate(file, 1):
            if number == 1 and codecs.lookup(encoding).name == "utf-8":
                data = data.removeprefix(codecs.BOM_UTF8)
            try:
                yield data.decode(encoding)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, line {number} is not {encoding} ({error.reason} at byte "
                    f"{error.start} of the line); save the file as {encoding}, or name its own "
                    "encoding as dataset.encoding"
                ) from error


def _places(path: Path, names: list[str], form: _Format) -> dict[str, int]:
    columns = (*form.text, *form.roles.values())
    missing = [name for name in columns if name not in names]
    if missing:
        raise InputError(
            f"{path} must have the columns {', '.join(missing)}, has {', '.join(names)[:400]}; "
            "name its columns as dataset.text, label, owner and domain"
        )
    return {name: names.index(name) for name in columns}


def _name(value: str, column: str, path: Path, line: int) -> str:
    if not value.strip() or "\n" in value:
        raise InputError(
            f"the column {column} in {path}, line {line} must be a name of one line, got "
            f"{value[:80]!r}; correct or remove the row"
        )
    return value.strip()


def _text(values: list[str], form: _Format) -> str:
    text = " ".join(values)
    if form.is_ag_news:
        text = text.replace("\\", " ")  # remains of its line breaks
    # NUL would be cut off at the end of a column of bytes.
    return text.replace("\0", " ")[: form.characters]
