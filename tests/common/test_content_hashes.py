"""Hashes of files: by contents alone, and each file is read once."""

import hashlib
import os
import time

import pytest

from common import content_hashes as module
from common.content_hashes import content_hashes


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Paths of 3 files, old enough for the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "MIN_AGE_NS", -(10**12))
    (tmp_path / "photo/cat").mkdir(parents=True)
    paths = [tmp_path / "photo/cat" / f"{i}.png" for i in range(3)]
    for path in paths:
        path.write_text(f"image {path.name}")
    return paths


@pytest.fixture
def hashed(monkeypatch):
    """Paths of the files that are read, in order."""
    found, hash_file = [], module._hash_file
    monkeypatch.setattr(module, "_hash_file", lambda path: found.append(path) or hash_file(path))
    return found


def plain(paths):
    return [hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() for path in paths]


def test_content_hashes_read_each_file_once(images, hashed):
    for _ in range(2):
        assert content_hashes(images) == plain(images)
    assert content_hashes([*images[::-1], images[0]]) == plain([*images[::-1], images[0]])
    assert len(hashed) == 3


def test_content_hashes_of_a_file_changed_in_place_are_new(images, hashed):
    content_hashes(images)
    status, deadline = images[0].stat(), time.time() + 60
    while images[0].stat().st_ctime_ns == status.st_ctime_ns and time.time() < deadline:  # the clock's next tick
        images[0].write_text("IMAGE 0.png")
        os.utime(images[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert images[0].stat().st_mtime_ns == status.st_mtime_ns and images[0].stat().st_size == status.st_size
    assert content_hashes(images) == plain(images)
    assert len(hashed) == 4


def test_content_hashes_of_a_file_changed_just_now_are_not_cached(images, hashed, monkeypatch):
    monkeypatch.setattr(module, "MIN_AGE_NS", 10**12)
    content_hashes(images)
    content_hashes(images)
    assert len(hashed) == 6


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_content_hashes_ignore_a_damaged_cache(images, hashed, damage, tmp_path):
    content_hashes(images)
    (cache,) = (tmp_path / "cache/spg-dg/image_hashes").iterdir()
    content = bytearray(cache.read_bytes())
    content[content.index(b"{'descr") + 150] ^= 1  # a key
    cache.write_bytes(content[:-5] if damage == "cut" else content)
    assert content_hashes(images) == plain(images)
    assert len(hashed) == 6


def test_content_hashes_without_a_writable_cache_or_a_file(images, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert content_hashes(images) == plain(images)
    images[1].unlink()
    with pytest.raises(FileNotFoundError, match=str(images[1])):
        content_hashes(images)
