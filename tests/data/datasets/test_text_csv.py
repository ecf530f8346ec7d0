from pathlib import Path

import numpy as np
import pytest

from fedsim.data.datasets.text_csv import text_csv
from fedsim.errors import InputError

pytestmark = pytest.mark.usefixtures("no_files")

# The format of ag_news_csv: no header, everything quoted, quotes doubled, \ for a line break.
AG_TRAIN = """"3","Wall St. Bears","Short-sellers, Wall Street's dwindling\\band, are ""green""."
"1","Talks resume","Both sides met."
"4","Chips","A new
chip of two lines."
"""
AG_TEST = '"2","Cup final","Home side won."\n'

OWN = """review,stars,shop,country
good tea,5,north,UK
bad tea,10,south,FR
good cake,5,south,FR
"""


def write(folder: Path, **files: str | bytes) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        path = folder / f"{name}.csv"
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(folder)


def test_ag_news(tmp_path: Path) -> None:
    root = write(tmp_path / "data", train=AG_TRAIN, test=AG_TEST)
    dataset = text_csv(set="ag-news", root=root, length=4)
    assert dataset.name == "ag-news"
    assert dataset.card.classes == ("World", "Sports", "Business", "Sci/Tech")
    assert dataset.train.y.tolist() == [2, 0, 3]
    assert dataset.test.y.tolist() == [1]
    assert [text.decode() for text in dataset.train.extra["text"]] == [
        'Wall St. Bears Short-sellers, Wall Street\'s dwindling band, are "green".',
        "Talks resume Both sides met.",
        "Chips A new\nchip of two lines.",
    ]
    # Of the test text only "side" is not, and nothing else is, a word of the training texts.
    assert [dataset.vocabulary[t] for t in dataset.train.x[1]] == [
        "talks",
        "resume",
        "both",
        "sides",
    ]
    assert dataset.test.x.tolist() == [[1, 1, 1, 1]]
    assert dataset.card.input_shape == (4, len(dataset.vocabulary))
    assert isinstance(dataset.train.x, np.memmap)


def test_columns_by_name(tmp_path: Path) -> None:
    test = "country,shop,review,stars\nDE,west,tea,10\n"
    root = write(tmp_path / "data", train=OWN, test=test)
    dataset = text_csv(root=root, text=("review",), label="stars", owner="shop", domain="country")
    # As numbers 5 comes before 10.
    assert dataset.card.classes == ("5", "10")
    assert dataset.train.y.tolist() == [0, 1, 0]
    assert dataset.test.y.tolist() == [1]
    assert dataset.train.extra["owner"].tolist() == [0, 1, 1]
    assert dataset.test.extra["owner"].tolist() == [2]
    assert dataset.card.domains == ("DE", "FR", "UK")
    assert dataset.train.extra["domain"].tolist() == [2, 1, 1]
    assert dataset.test.extra["domain"].tolist() == [0]
    # good 2, tea 2, bad 1, cake 1
    assert dataset.vocabulary == ("", "<unk>", "good", "tea", "bad", "cake")
    assert dataset.train.x[:, :3].tolist() == [[2, 3, 0], [4, 3, 0], [2, 5, 0]]
    assert dataset.test.x[:, :2].tolist() == [[3, 0]]


def test_other_separators_encodings_and_no_header(tmp_path: Path) -> None:
    data = "thé;vert;oui\ncafé;noir;non\n".encode("latin-1")
    root = write(tmp_path / "data", train=data, test=data)
    options = {"text": ("2", "1"), "label": "3", "header": False, "delimiter": ";"}
    dataset = text_csv(root=root, encoding="latin-1", characters=6, **options)  # type: ignore[arg-type]
    assert dataset.card.classes == ("non", "oui")
    assert [text.decode() for text in dataset.train.extra["text"]] == ["vert t", "noir c"]
    with pytest.raises(InputError, match=r"train\.csv, line 1 is not utf-8 .* dataset\.encoding"):
        text_csv(root=root, **options)  # type: ignore[arg-type]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbftext,label\r\na,x\r\n\r\nb,y\r\n"
    dataset = text_csv(root=write(tmp_path / "data", train=data, test=data))
    assert dataset.train.extra["text"].tolist() == [b"a", b"b"]
    assert dataset.card.classes == ("x", "y")


def test_a_fifth_of_each_class_is_the_test_split(tmp_path: Path) -> None:
    rows = "".join(f"word{i},{'ab'[i % 3 > 0]},{i}\n" for i in range(30))
    root = write(tmp_path / "data", train=f"text,label,row\n{rows}")
    dataset = text_csv(root=root, test=None, owner="row")
    assert np.bincount(dataset.test.y).tolist() == [2, 4]
    assert np.bincount(dataset.train.y).tolist() == [8, 16]
    owners = [split.extra["owner"].tolist() for split in (dataset.train, dataset.test)]
    assert sorted(owners[0] + owners[1]) == list(range(30))
    for split in (dataset.train, dataset.test):
        # Owners are numbers, sorted as numbers: row 10 is 10.
        texts = [f"word{i}".encode() for i in split.extra["owner"]]
        assert split.extra["text"].tolist() == texts
    small = write(tmp_path / "small", train="text,label\na,x\nb,y\n")
    with pytest.raises(InputError, match=r"too few texts of each class"):
        text_csv(root=small, test=None)


def test_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        text_csv(set="ag-news")
    folder = tmp_path / "home/.fedsim/data/ag-news"
    assert f"AG News was not found in {folder}: get ag_news_csv" in str(caught.value)
    assert str(caught.value).endswith(f"(train.csv, test.csv) into {folder}")
    with pytest.raises(InputError, match=r"text-csv in .* is not complete: put test\.csv"):
        text_csv(root=write(tmp_path / "data", train=OWN))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (b'"1","a","b"\n"2","\xff","b"\n', r"train\.csv, line 2 is not utf-8 .*at byte 5"),
        ('"1","a","b"\n"5","a","b"\n', r"train\.csv, line 2 must be one of 1, 2, 3, 4, got '5'"),
        ('"1","a\nb","c"\n"0","a","b"\n', r"train\.csv, line 3 must be one of .* got '0'"),
        ('"1","a","b"\n"2","a"\n', r"line 2 must have 3 columns .* got 2"),
        ('"1","a","b"\n"2","a","b\n', r"from line 2 on, is not CSV"),
        ('"1","a","b"\n"2","a"x,"b"\n', r"from line 2 on, is not CSV"),
        ('"1","a","b"\n" ","a","b"\n', r"the column 1 in .*train\.csv, line 2 must be a name"),
        ('"1","a"\n', r"must have the columns 3, has 1, 2"),
        ("", r"must have at least one row"),
    ],
)
def test_damaged_files_are_named_with_the_line(
    tmp_path: Path, train: str | bytes, message: str
) -> None:
    root = write(tmp_path / "data", train=train, test=AG_TEST)
    with pytest.raises(InputError, match=message) as caught:
        text_csv(set="ag-news", root=root)
    assert str(tmp_path / "data" / "train.csv") in str(caught.value)


def test_wrong_columns_and_labels(tmp_path: Path) -> None:
    root = write(tmp_path / "data", train=OWN, test="review,stars\ntea,7\n")
    with pytest.raises(InputError, match=r"must have the columns text, label, has review, stars"):
        text_csv(root=root)
    named = r"test\.csv, line 2 must be one of 5, 10, the classes of the training file, got '7'"
    with pytest.raises(InputError, match=named):
        text_csv(root=root, text=("review",), label="stars")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"set": "ag news"}, r"dataset\.set must be one of ag-news or null"),
        ({"text": ()}, r"dataset\.text must name"),
        ({"delimiter": "::"}, r"dataset\.delimiter must be one character"),
        ({"encoding": "utf-16"}, r"dataset\.encoding must be"),
        ({"encoding": "klingon"}, r"dataset\.encoding must be"),
        ({"characters": 0}, r"dataset\.characters must be >= 1"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        text_csv(**options)  # type: ignore[arg-type]


def test_other_options_are_another_entry(tmp_path: Path) -> None:
    root = write(tmp_path / "data", train=OWN, test=OWN)
    by_stars = text_csv(root=root, text=("review",), label="stars")
    by_shop = text_csv(root=root, text=("review",), label="shop")
    assert (by_stars.card.classes, by_shop.card.classes) == (("5", "10"), ("north", "south"))
