"""Errors of users and the machine become messages; bugs become tracebacks."""

import errno

import pytest
import torch

from common.errors import explain

CAUGHT = "Caught an error in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"


@pytest.fixture
def fails_in_test(monkeypatch):
    """Raise an error in the test of zero-shot runs."""
    from trainers.zsclip import ZeroshotCLIP

    def raise_it(error):
        def fail(self, split=None):
            raise error

        monkeypatch.setattr(ZeroshotCLIP, "test", fail)

    return raise_it


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
        (RuntimeError("a mistake of ours"), None),
        (RuntimeError(f"{CAUGHT}RuntimeError: a mistake of ours"), None),
    ],
)
def test_explain_names_failures_outside_the_program_alone(error, says):
    found = explain(error)
    assert found is None if says is None else says in found


def test_train_with_a_failing_machine_prints_one_message(expect_error, fails_in_test):
    fails_in_test(MemoryError())
    assert "Out of memory" in expect_error("ZeroshotCLIP", "red")


def test_train_with_a_bug_keeps_its_traceback(train, fails_in_test):
    fails_in_test(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        train("ZeroshotCLIP", "red")
