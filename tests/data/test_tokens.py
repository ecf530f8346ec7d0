import numpy as np
import pytest

from fedsim.data.tokens import build_vocabulary, encode, to_bytes, words
from fedsim.errors import InputError


def test_words_and_signs_in_lower_case() -> None:
    assert words("It's 9 o’clock!") == ["it's", "9", "o’clock", "!"]
    assert words("Grüße, 世界") == ["grüße", ",", "世界"]
    assert words(" \n\t") == []


def test_a_vocabulary_is_ranked_by_count_then_name() -> None:
    texts = ["b a b", "c a d", "b"]  # b 3, a 2, c 1, d 1
    assert build_vocabulary(texts) == ("", "<unk>", "b", "a", "c", "d")
    assert build_vocabulary(texts, size=4) == ("", "<unk>", "b", "a")
    assert build_vocabulary(texts, min_count=2) == ("", "<unk>", "b", "a")
    for bad in ({"size": 2}, {"min_count": 0}):
        with pytest.raises(InputError, match="must"):
            build_vocabulary(texts, **bad)


def test_texts_become_rows_of_equal_length() -> None:
    vocabulary = ("", "<unk>", "b", "a")
    rows = encode(["a b", "A x b a", ""], vocabulary, 3)
    assert rows.dtype == np.int32
    assert rows.tolist() == [[3, 2, 0], [3, 1, 2], [1, 0, 0]]
    with pytest.raises(InputError, match="length"):
        encode(["a"], vocabulary, 0)


def test_texts_are_kept_as_bytes() -> None:
    kept = to_bytes(["é", "abc", ""])
    assert kept.tolist() == ["é".encode(), b"abc", b""]
    with pytest.raises(InputError, match="NUL"):
        to_bytes(["a\0"])
