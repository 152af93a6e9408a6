"""One process for each output folder."""

import contextlib
import json
import os
import socket
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
def owned(folder: str | PathLike) -> Iterator[None]:
    """Hold `folder` while the block runs.

    The lock is the operating system's, so it ends with its process, however that ends; what the file says is for
    the message only. Where there are no such locks (Windows, some network file systems), nothing is locked.

    Raises:
        UserError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    with open(Path(folder) / LOCK_FILE, "a+", encoding="utf-8") as handle:
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


def _holder(handle):
    handle.seek(0)
    try:
        record = json.load(handle)
        return f"process {record['pid']} on {record['host']} since {record['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
