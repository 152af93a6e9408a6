"""Locks between processes, by filelock: the operating system releases a lock when its process ends.

The lock file also holds the process and host that own it, for messages. It stays after the lock is released.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from filelock import FileLock, Timeout

from common.errors import UserError
from common.interruption import check_interruption

RUN_LOCK = ".lock"  # in the folder of a run: its process holds it
SECONDS_BETWEEN_TRIES = 0.2


class InUse(UserError):
    """Another process holds the lock; the message names the process and its host."""


@contextlib.contextmanager
def file_lock(path: str | PathLike, task: str, seconds: float | None = None) -> Iterator[None]:
    """Hold a lock while the block runs; the process that holds it may enter again.

    Args:
        path: the lock file.
        task: the work under the lock, "learns the prompt label of art", for messages.
        seconds: how long to wait for another process; None: until it is done.

    Raises:
        InUse: another process still holds the lock.
        Interrupted: the process was asked to end while it waited.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            lock = FileLock(path, is_singleton=True, fallback_to_soft=False)
            _acquire(lock, path, task, seconds)
            stack.callback(lock.release)
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
            path.write_text(json.dumps(owner), encoding="utf-8")
        except (OSError, NotImplementedError) as error:  # a file system without locks, or a full one
            print(f"Note: cannot lock {path} ({error}). Make sure that no other process {task}.")
        yield


def _acquire(lock, path, task, seconds):
    end, is_first = None if seconds is None else time.monotonic() + seconds, True
    while True:
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=SECONDS_BETWEEN_TRIES)
            return
        if end is not None and time.monotonic() >= end:
            raise InUse(f"{path.parent} is in use by {_owner(path)}.")
        if end is None and is_first:
            print(f"Waiting for {_owner(path)}, which {task}", flush=True)
            is_first = False
        check_interruption()


def creation_lock(path: str | PathLike, task: str, wait: bool = True) -> contextlib.AbstractContextManager[None]:
    """The lock on a file that one process creates; with `wait` False it raises InUse if another process holds it."""
    path = Path(path)
    return file_lock(path.with_name(f".{path.name}.lock"), task, None if wait else 0)


def run_lock(folder: str | PathLike) -> contextlib.AbstractContextManager[None]:
    """The lock on the output folder of a run."""
    return file_lock(Path(folder) / RUN_LOCK, "uses this folder", seconds=2)


def run_owner(folder: str | PathLike) -> str | None:
    """The process that runs in an output folder; None: no process does."""
    return lock_owner(Path(folder) / RUN_LOCK)


def lock_owner(path: str | PathLike) -> str | None:
    """The process that holds a lock, "process 12 on host a since ..."; None: no process does."""
    path = Path(path).absolute()
    if not path.is_file():
        return None
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return _owner(path)
    except (OSError, NotImplementedError):
        return None
    lock.release()
    return None


def _owner(path):
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
