"""One process for each output folder."""

import contextlib
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from common.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a name that may be either has no other way to say so

LOCK_FILE = "owner.lock"


@contextlib.contextmanager
def owned(folder: str | PathLike, name: str = LOCK_FILE) -> Iterator[None]:
    """Hold `folder` while the block runs.

    The lock is the operating system's, so it ends with its process, however that ends; what the file says is for
    the message only. Where there are no such locks (Windows, some network file systems), nothing is locked.

    Args:
        folder: where the file goes that is locked.
        name: that file's.

    Raises:
        UserError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    with open(Path(folder) / name, "a+", encoding="utf-8") as handle:
        try:
            # Not flock: loader workers inherit such locks, and live on for seconds after a killed process.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(
                f"{folder} is in use by {_holder(handle)}. Wait for it, end it, or name another --output-dir."
            ) from error
        except OSError as error:
            print(f"Note: {folder} cannot be locked ({error.strerror}); take care that no second process uses it.")
        handle.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}, handle)
        handle.flush()
        yield


def holder(folder: str | PathLike, name: str = LOCK_FILE) -> str | None:
    """Which process holds a folder, as it said itself; None: none does, or there are no such locks here.

    Nothing is locked meanwhile, so that no process finds the folder in use that had it free.
    """
    if fcntl is None:
        return None
    try:
        with open(Path(folder) / name, encoding="utf-8") as handle:
            return _holder(handle) if _is_locked(handle) else None
    except OSError:
        return None


def _is_locked(handle):
    """Whether another process holds a POSIX lock on a file."""
    # The C library's struct flock, which Python has no type for: macOS begins it by the place, others by the type.
    layout = "@qqihh" if sys.platform == "darwin" else "@hhqqi"
    first = (0, 0, 0, fcntl.F_WRLCK, 0) if sys.platform == "darwin" else (fcntl.F_WRLCK, 0, 0, 0, 0)
    found = struct.unpack(layout, fcntl.fcntl(handle, fcntl.F_GETLK, struct.pack(layout, *first)))
    return found[3 if sys.platform == "darwin" else 0] != fcntl.F_UNLCK


def _holder(handle):
    handle.seek(0)
    try:
        record = json.load(handle)
        return f"process {record['pid']} on {record['host']} since {record['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
