"""One process holds a lock; others wait or fail, and the operating system frees the lock of a dead process."""

import os
import threading

import pytest
from other_process import lock_elsewhere, owner_seen_elsewhere

from common import interruption
from common.interruption import Interrupted
from common.locks import InUse, file_lock, run_owner


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "folder" / ".lock"


def test_file_lock_may_be_entered_again_and_frees_the_file(lock):
    with file_lock(lock, "works"):
        with file_lock(lock, "works"):
            pass
        assert owner_seen_elsewhere(lock.parent).startswith(f"process {os.getpid()} on ")
    assert owner_seen_elsewhere(lock.parent) == "None" and run_owner(lock.parent) is None


def test_file_lock_names_the_process_that_holds_it(lock):
    lock.parent.mkdir()
    with lock_elsewhere(lock) as other:
        with pytest.raises(InUse, match=f"in use by process {other.pid} on host "), file_lock(lock, "works", 0):
            pytest.fail("two processes hold the lock")
        assert run_owner(lock.parent).startswith(f"process {other.pid} on ")
    with file_lock(lock, "works", 0):  # the other process was killed
        pass


def test_file_lock_waits_for_the_other_process(lock, capsys):
    lock.parent.mkdir()
    with lock_elsewhere(lock) as other:
        threading.Timer(0.5, other.stdin.close).start()
        with file_lock(lock, "learns a label"):
            assert f"Waiting for process {other.pid}" in capsys.readouterr().out


def test_file_lock_is_interrupted_while_it_waits(lock, monkeypatch):
    lock.parent.mkdir()
    monkeypatch.setattr(interruption, "_received", 2)
    with lock_elsewhere(lock), pytest.raises(Interrupted), file_lock(lock, "works"):
        pytest.fail("two processes hold the lock")


def test_file_lock_without_lock_support_warns_and_continues(lock, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with file_lock(lock, "works"):
        assert "Operation not supported" in capsys.readouterr().out


def test_train_in_the_folder_of_a_running_process_is_an_error(train, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with lock_elsewhere(tmp_path / "run/.lock") as other:
        assert train("ZeroshotCLIP", "red") == 1
    assert f"run: in use by process {other.pid} on host " in capsys.readouterr().err
