"""Errors of users and the machine become messages; bugs become tracebacks."""

import errno

import pytest
import torch

from common.errors import explain

CAUGHT = "Caught an error in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "run/log.txt"), "disk is full (run/log.txt)"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk is full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "disk is full"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "TEST.MEMORY_MB"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "BATCH_SIZE"),
        (MemoryError(), "Out of memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "NUM_WORKERS"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is"), "/dev/shm"),
        (RuntimeError(f"{CAUGHT}RuntimeError: unable to allocate shared memory(shm): No space"), "No space"),
        (OSError(f"{CAUGHT}OSError: AF_UNIX path too long"), "A loader worker failed: OSError: AF_UNIX path too long."),
        (PermissionError(errno.EACCES, "Permission denied", "run"), "Permission denied: run"),
    ],
)
def test_failures_outside_the_program_are_explained(train, monkeypatch, capsys, error, says):
    assert says in explain(error)
    from trainers.zsclip import ZeroshotCLIP

    def fail(self, split=None):
        raise error

    monkeypatch.setattr(ZeroshotCLIP, "test", fail)
    assert train("ZeroshotCLIP", "red") == 1
    assert says in capsys.readouterr().err


def test_other_errors_keep_their_traceback(train, monkeypatch):
    from trainers.zsclip import ZeroshotCLIP

    assert explain(RuntimeError("a mistake of ours")) is None
    assert explain(RuntimeError(f"{CAUGHT}RuntimeError: a mistake of ours")) is None
    monkeypatch.setattr(ZeroshotCLIP, "test", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train("ZeroshotCLIP", "red")
