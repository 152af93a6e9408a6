"""Of several processes that need a file one makes it; the others wait, as long as that one lives."""

import os

import pytest
from elsewhere import held_elsewhere, owner_seen_elsewhere

from common import held as room
from common import locks
from common.held import held
from common.interruption import Interrupted
from common.locks import owner_of


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Another process that holds tmp_path/label.pt."""
    monkeypatch.setattr(room, "SECONDS_BETWEEN_LOOKS", 0.05)
    with held_elsewhere(tmp_path / ".label.pt.lock") as process:
        yield process


@pytest.mark.parametrize("end", ["close", "kill"])
def test_waits_for_the_other_however_that_ends(holder, tmp_path, monkeypatch, capsys, end):
    looks = []

    def let_go():
        looks.append(end)
        if len(looks) == 2:
            (holder.kill if end == "kill" else holder.stdin.close)()

    monkeypatch.setattr(room, "check_interruption", let_go)
    with held(tmp_path / "label.pt", "a label"):
        assert len(looks) >= 2
    assert capsys.readouterr().out == "Waiting for another process that makes a label\n"


def test_who_waits_can_be_interrupted(holder, tmp_path, monkeypatch):
    def interrupted():
        raise Interrupted(2)

    monkeypatch.setattr(room, "check_interruption", interrupted)
    with pytest.raises(Interrupted), held(tmp_path / "label.pt", "a label"):
        pytest.fail("got the lock that another process holds")


def test_folders_are_made_and_the_lock_ends_with_the_block(tmp_path):
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        with held(folder / "label.pt", "a label"):
            assert owner_seen_elsewhere(folder / ".label.pt.lock").startswith(f"process {os.getpid()} on ")
        assert owner_seen_elsewhere(folder / ".label.pt.lock") == "None"


def test_who_holds_it_goes_on(tmp_path, capsys):
    path, lock = tmp_path / "label.pt", tmp_path / ".label.pt.lock"
    with held(path, "a label"):
        with held(path, "a label"):
            pass
        assert owner_seen_elsewhere(lock) != "None"
    assert owner_seen_elsewhere(lock) == "None" and not capsys.readouterr().out


def test_the_lock_of_a_killed_process_is_free(holder, tmp_path):
    assert owner_of(tmp_path / ".label.pt.lock").startswith(f"process {holder.pid} on ")
    holder.kill()
    holder.wait()
    assert (tmp_path / ".label.pt.lock").read_text()  # what it said of itself
    assert owner_of(tmp_path / ".label.pt.lock") is None


def test_without_locks_it_goes_on_and_says_so(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    for _ in range(2):  # none is left behind that would be waited for
        with held(tmp_path / "label.pt", "a label"):
            assert "label.pt cannot be locked (Operation not supported)" in capsys.readouterr().out


def test_a_lock_whose_file_cannot_be_opened_does_not_stand_in_the_way(tmp_path, capsys):
    (tmp_path / ".label.pt.lock").mkdir()
    with held(tmp_path / "label.pt", "a label"):
        assert "label.pt cannot be locked (Is a directory)" in capsys.readouterr().out
