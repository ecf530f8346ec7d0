from pathlib import Path

import pytest

from fedsim.data.loaders.json_files import entries, read_json
from fedsim.errors import InputError


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": [1', r"cannot be read as JSON \(.*put an undamaged copy there"),
        (b"", r"cannot be read as JSON"),
        (b"[1]", r"must hold a JSON object, got list"),
        (b'{"a": "\xff"}', r"is not UTF-8"),
        (None, r"cannot be read as JSON \(.*No such file"),
    ],
)
def test_files_that_are_no_objects(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "file.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_entries_have_their_fields(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text('{"a": [{"id": 1, "b": "x"}, {"id": 2, "b": "y"}], "c": 3}')
    data = read_json(path)
    assert [e["b"] for e in entries(data, "a", {"id": int, "b": str}, path)] == ["x", "y"]
    with pytest.raises(InputError, match=r"a\[0\] of .*file\.json must have 'b' of type int"):
        entries(data, "a", {"b": int}, path)
    with pytest.raises(InputError, match=r"a\[0\] of .* 'd' of type str, got None"):
        entries(data, "a", {"d": str}, path)
    for key in ("c", "d"):
        with pytest.raises(InputError, match=rf"must have a list '{key}'"):
            entries(data, key, {}, path)
    with pytest.raises(InputError, match=r"x\[0\] of f must have 'id'"):
        entries({"x": [5]}, "x", {"id": int}, "f")
    with pytest.raises(
        InputError, match=r"x\[0\] of f must have 'id' of type int or str, got True"
    ):
        entries({"x": [{"id": True}]}, "x", {"id": (int, str)}, "f")
