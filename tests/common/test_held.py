"""Of several processes that need a file one makes it; the others wait, as long as that one lives."""

import subprocess
import sys
import threading
import time

import filelock
import pytest
from quick_run import REPOSITORY

from common import held as room
from common.held import held
from common.interruption import Interrupted

HOLD = """
import sys
from common.held import held
with held("label.pt", "a label"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Another process that holds tmp_path/label.pt."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(room, "SECONDS_BETWEEN_LOOKS", 0.05)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env={"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("end", ["close", "kill"])
def test_waits_for_the_other_however_that_ends(holder, tmp_path, capsys, end):
    threading.Timer(0.3, holder.kill if end == "kill" else holder.stdin.close).start()
    start = time.monotonic()
    with held(tmp_path / "label.pt", "a label"):
        assert time.monotonic() - start > 0.2
    assert capsys.readouterr().out == "Waiting for another process that makes a label\n"


def test_who_waits_can_be_interrupted(holder, tmp_path, monkeypatch):
    def interrupted():
        raise Interrupted(2)

    monkeypatch.setattr(room, "check_interruption", interrupted)
    with pytest.raises(Interrupted), held(tmp_path / "label.pt", "a label"):
        pytest.fail("got the lock that another process holds")


def test_folders_are_made_and_the_lock_ends_with_the_block(tmp_path):
    path = tmp_path / "a" / "b" / "label.pt"
    for _ in range(2):
        with held(path, "a label"), pytest.raises(filelock.Timeout):
            filelock.FileLock(path.with_name(".label.pt.lock"), timeout=0, is_singleton=False).acquire()


def test_without_locks_it_goes_on_and_says_so(tmp_path, monkeypatch, capsys):
    def refuse(self, *args, **kwargs):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with held(tmp_path / "label.pt", "a label"):
        assert "cannot be locked" in capsys.readouterr().out
