"""Atomic writes, JSON with a checksum, writable folders."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.files import atomic_write, read_json, write_json

JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
)


def test_atomic_write_replaces_the_file_or_leaves_it_unchanged(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path, "w") as handle:
        handle.write("é")
        assert not path.exists()
    assert path.read_bytes() == "é".encode()
    with pytest.raises(ZeroDivisionError), atomic_write(path) as handle:
        handle.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == "é".encode()
    assert list(path.parent.iterdir()) == [path]


@settings(max_examples=60)
@given(record=st.dictionaries(st.text().filter(lambda key: key != "checksum"), JSON, max_size=5))
def test_read_json_returns_the_written_values(tmp_path_factory, record):
    path = tmp_path_factory.mktemp("record") / "r.json"
    write_json(path, record)
    assert read_json(path) == json.loads(json.dumps(record))


@pytest.mark.parametrize("number", [float("nan"), -float("inf")])
def test_json_with_a_number_that_is_not_finite_is_neither_written_nor_read(tmp_path, number):
    path = tmp_path / "r.json"
    with pytest.raises(UserError, match="a number is not finite"):
        write_json(path, {"a": [number]})
    assert not path.exists()
    path.write_text(json.dumps({"a": [number]}))
    with pytest.raises(ValueError, match="not JSON compliant"):
        read_json(path)


def test_read_json_of_an_edited_file_raises(tmp_path):
    path = tmp_path / "r.json"
    write_json(path, {"accuracy": 50.5, "epochs": {10: 1, 9: (2,)}})
    assert read_json(path) == {"accuracy": 50.5, "epochs": {"10": 1, "9": [2]}}
    path.write_text(path.read_text().replace("50.5", "60.5"))
    with pytest.raises(ValueError, match="was edited"):
        read_json(path)
