"""The index of large domains: used while it holds, made anew when it does not."""

import json
import os
import time

import pytest
from dataset_trees import read_only, write_images

from datasets import listing
from datasets.listing import class_folders, list_images


@pytest.fixture
def domain(tmp_path, monkeypatch):
    """A domain of two classes with two images each, two minutes old, and an index from the first image on."""
    monkeypatch.setattr(listing, "INDEX_MIN_IMAGES", 1)
    monkeypatch.setattr(listing, "INDEX_MIN_AGE_NS", 30 * 10**9)  # longer than a busy machine holds a test up
    for name in ("cat", "dog"):
        write_images(tmp_path / "photo" / name, ["a.jpg", "b.jpg"])
        age(tmp_path / "photo" / name)
    return tmp_path / "photo"


def age(folder, seconds=120):
    then = time.time_ns() - seconds * 10**9
    os.utime(folder, ns=(then, then))


def index_of(domain):
    return domain.parent / "splits" / "p_index.json"


def listed(domain):
    return list_images(domain, class_folders(domain, ("",), str), index_of(domain))


def names(domain):
    """Image names by class, listed with the index."""
    return {folder.classname: images for folder, images in listed(domain).images.items()}


def remove_unnoticed(path):
    """Remove a file so that its folder keeps its modification time: only an index still has it then."""
    stat = path.parent.stat()
    path.unlink()
    os.utime(path.parent, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_folders_that_did_not_change_are_not_listed_again(domain):
    expected = names(domain)
    assert expected == {"cat": ["a.jpg", "b.jpg"], "dog": ["a.jpg", "b.jpg"]}
    remove_unnoticed(domain / "dog/b.jpg")
    assert names(domain) == expected


def test_a_folder_that_changed_is_listed_again(domain):
    names(domain)
    write_images(domain / "dog", ["c.jpg"])
    assert names(domain)["dog"] == ["a.jpg", "b.jpg", "c.jpg"]
    age(domain / "dog", 60)
    assert names(domain)["dog"] == ["a.jpg", "b.jpg", "c.jpg"]
    (domain / "dog/a.jpg").unlink()
    assert names(domain)["dog"] == ["b.jpg", "c.jpg"]


def test_new_and_removed_folders(domain):
    names(domain)
    write_images(domain / "owl", ["a.jpg"])
    for file in (domain / "cat").iterdir():
        file.unlink()
    (domain / "cat").rmdir()
    assert names(domain) == {"dog": ["a.jpg", "b.jpg"], "owl": ["a.jpg"]}
    assert "cat" not in json.loads(index_of(domain).read_text())["folders"]


def test_a_folder_that_changed_just_now_is_not_trusted(domain):
    write_images(domain / "dog", ["c.jpg"])
    names(domain)
    assert set(json.loads(index_of(domain).read_text())["folders"]) == {"cat"}
    remove_unnoticed(domain / "dog/c.jpg")
    assert names(domain)["dog"] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"{}",
        b'{"version": 2, "folders": []}',
        b'{"version": 2, "folders": {"dog": 5}}',
        b'{"version": 2, "folders": {"dog": [1, [], []]}}',
        b'{"version": 2, "folders": {"dog": ["x", [], [], {}]}}',
        b'{"version": 2, "folders": {"dog": [1, [2], [], {}]}}',
        b'{"version": 2, "folders": {"dog": [1, "b.jpg", [], {}]}}',
        b'{"version": 2, "folders": {"dog": [1, [], [3], {}]}}',
        b'{"version": 2, "folders": {"dog": [1, [], [], []]}}',
        b'{"version": 2, "folders": {"dog": [1, [], [], {"hidden": 1}]}}',
        b'{"version": 1, "folders": {"dog": [1, ["b.jpg"]]}}',
        b"[" * 100_000,
    ],
    ids=lambda content: content[:40].decode("latin1"),
)
def test_a_damaged_index_is_made_anew(content, domain):
    expected = names(domain)
    sound = index_of(domain).read_bytes()
    index_of(domain).write_bytes(content)
    assert names(domain) == expected
    assert index_of(domain).read_bytes() == sound


def test_small_domains_have_no_index(domain, monkeypatch):
    monkeypatch.setattr(listing, "INDEX_MIN_IMAGES", 5)
    names(domain)
    assert not index_of(domain).exists()


def test_an_index_is_not_rewritten_without_need(domain):
    names(domain)
    before = index_of(domain).stat().st_ino
    names(domain)
    assert index_of(domain).stat().st_ino == before


def test_read_only_index_is_read_and_none_is_written(domain):
    with read_only(domain.parent):
        names(domain)
        assert not index_of(domain).parent.exists()
    names(domain)
    remove_unnoticed(domain / "dog/b.jpg")
    with read_only(domain.parent):
        assert names(domain)["dog"] == ["a.jpg", "b.jpg"]


def test_an_index_that_cannot_be_written_is_done_without(domain, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(listing, "atomic_write", full)
    assert names(domain)["dog"] == ["a.jpg", "b.jpg"]


def test_folders_below_a_class_are_in_the_index_each_by_its_own_time(domain):
    write_images(domain / "dog/more/still more", ["c.jpg", "notes.txt"])
    for folder in (domain / "dog", domain / "dog/more", domain / "dog/more/still more"):
        age(folder)
    for _ in range(2):
        assert names(domain)["dog"] == ["a.jpg", "b.jpg", "more/still more/c.jpg"]
        assert listed(domain).unused == {"with other extensions": ["dog/more/still more/notes.txt"]}
    write_images(domain / "dog/more/still more", ["d.jpg"])
    assert names(domain)["dog"] == ["a.jpg", "b.jpg", "more/still more/c.jpg", "more/still more/d.jpg"]
    remove_unnoticed(domain / "dog/more/still more/notes.txt")
    age(domain / "dog/more/still more")
    assert names(domain)["dog"][-1] == "more/still more/d.jpg"


def test_a_link_that_came_to_lead_somewhere_is_seen(domain):
    (domain / "dog/linked.jpg").symlink_to(domain.parent / "later.jpg")
    age(domain / "dog")
    assert listed(domain).unused == {"links that lead nowhere": ["dog/linked.jpg"]}
    write_images(domain.parent, ["later.jpg"])
    assert names(domain)["dog"] == ["a.jpg", "b.jpg", "linked.jpg"]
