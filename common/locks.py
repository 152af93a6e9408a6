"""Locks on files, the operating system's: a lock ends with its process, however that ends.

They hold between machines where the file system passes them on, see RELIABILITY.md. That a file is there is never a
lock: that of a process which was killed, maybe on another machine, would be waited for for ever.
"""

import contextlib
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a name that may be either has no other way to say so


class InUse(Exception):
    """Another process has a lock; its text says which."""


@contextlib.contextmanager
def locked(path: Path, what: str, second: str) -> Iterator[None]:
    """Hold the lock on a file while the block runs; the file says whose it is, for messages.

    Where there are no such locks (Windows, some network file systems), nothing is locked; a file system's lack is said.
    A process that holds a lock must not open its file in any other way: closing that would end the lock.

    Args:
        path: the file, which is made, and stays.
        what: what is locked, for that message.
        second: what no second process is to do then.

    Raises:
        InUse: another process has it.
    """
    if fcntl is None:
        yield
        return
    with open(path, "a+b", buffering=0) as handle:
        try:
            # Not flock: loader workers inherit such locks, and live on for seconds after a killed process.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise InUse(_owner(handle)) from error
        except OSError as error:
            print(f"Note: {what} cannot be locked ({error.strerror}); take care that no second process {second}.")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
        with contextlib.suppress(OSError):  # of a full disk
            handle.truncate(0)
            handle.write(json.dumps(owner).encode())
        yield


def owner_of(path: Path) -> str | None:
    """Which process has the lock on a file, as it said itself; None: none has, or there are no such locks here.

    Nothing is locked meanwhile, so that no process finds it in use that had it free.
    """
    if fcntl is None:
        return None
    try:
        with open(path, "rb") as handle:
            return _owner(handle) if _is_locked(handle) else None
    except OSError:
        return None


def _is_locked(handle: IO[bytes]) -> bool:
    """Whether another process holds a POSIX lock on a file."""
    # The C library's struct flock, which Python has no type for: macOS begins it by the place, others by the type.
    layout = "@qqihh" if sys.platform == "darwin" else "@hhqqi"
    first = (0, 0, 0, fcntl.F_WRLCK, 0) if sys.platform == "darwin" else (fcntl.F_WRLCK, 0, 0, 0, 0)
    found = struct.unpack(layout, fcntl.fcntl(handle, fcntl.F_GETLK, struct.pack(layout, *first)))
    return found[3 if sys.platform == "darwin" else 0] != fcntl.F_UNLCK


def _owner(handle: IO[bytes]) -> str:
    handle.seek(0)
    try:
        record = json.load(handle)
        return f"process {record['pid']} on {record['host']} since {record['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
