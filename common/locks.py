"""Locks between processes, by filelock: the operating system releases a lock when its process ends.

The lock file also holds the process and host that own it, for messages. It stays after the lock is released.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path

from filelock import FileLock, Timeout

from common.errors import UserError
from common.interruption import check_interruption, interruption

RUN_LOCK = ".lock"  # in the folder of a run, locked by its process


class InUse(UserError):
    """Another process holds the lock; the message names the process and its host."""


@contextlib.contextmanager
def file_lock(path: str | PathLike, task: str, seconds: float | None = None) -> Iterator[None]:
    """Hold a lock while the block runs; the process that holds it may enter again.

    Args:
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
            try:
                lock.acquire(timeout=seconds or 0)
            except Timeout:
                if seconds is not None:
                    raise InUse(f"{path.parent}: in use by {_owner(path)}. Wait, or name another folder.") from None
                print(f"Waiting for {_owner(path)}, which {task}", flush=True)
                with contextlib.suppress(Timeout):
                    lock.acquire(poll_interval=0.2, cancel_check=lambda: interruption() is not None)
                check_interruption()
            stack.callback(lock.release)
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
            path.write_text(json.dumps(owner), encoding="utf-8")
        except (OSError, NotImplementedError) as error:  # a file system without locks, or a full one
            print(f"Note: cannot lock {path} ({error}). Make sure that no other process {task}.")
        yield


def creation_lock(path: str | PathLike, task: str, wait: bool = True) -> AbstractContextManager[None]:
    """The lock on a file that one process creates; with `wait` False it raises InUse if another process holds it."""
    path = Path(path)
    return file_lock(path.with_name(f".{path.name}.lock"), task, None if wait else 0)


def run_lock(folder: str | PathLike) -> AbstractContextManager[None]:
    return file_lock(Path(folder) / RUN_LOCK, "uses this folder", seconds=2)


def run_owner(folder: str | PathLike) -> str | None:
    """The process that runs in an output folder, "process 12 on host a since ..."; None: no process does."""
    path = Path(folder).absolute() / RUN_LOCK
    try:
        if path.is_file():
            with FileLock(path, fallback_to_soft=False).acquire(timeout=0):
                pass
    except Timeout:
        return _owner(path)
    except (OSError, NotImplementedError):
        pass
    return None


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on host {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
