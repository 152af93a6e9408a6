"""Files that are whole or not there; sizes for people."""

import pytest

from common.files import atomic_write, is_writable, size_text


def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path):
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


def test_writable_is_what_the_nearest_folder_that_is_there_allows(tmp_path):
    assert is_writable(tmp_path / "a" / "b")
    tmp_path.chmod(0o555)
    assert not is_writable(tmp_path / "a" / "b")  # for root as well, who is not kept from it
    tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (999_499, "999 kB"), (174_000_000, "174 MB"), (5_600_000_000, "5.6 GB")],
)
def test_sizes_for_people(n_bytes, text):
    assert size_text(n_bytes) == text
