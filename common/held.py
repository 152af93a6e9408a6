"""One process at a time makes a file that several need; the others wait for it."""

import contextlib
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import filelock

from common.interruption import check_interruption

SECONDS_BETWEEN_LOOKS = 1.0


@contextlib.contextmanager
def held(path: str | PathLike, what: str) -> Iterator[None]:
    """Hold the right to make a file while the block runs, as soon as no other process has it.

    The lock, a hidden file `.<name>.lock` beside it, is the operating system's, so it ends with its process, however
    that ends. Where there are no such locks (some network file systems), nothing is locked, and that is said.

    Args:
        path: the file; folders above it are made.
        what: what it is, for the line that says that this process waits.

    Raises:
        Interrupted: the process was asked to end while it waited.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        _acquire(lock, what)
    except (OSError, NotImplementedError) as error:
        print(f"Note: {lock.lock_file} cannot be locked ({error}); take care that no second process makes {path.name}.")
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: filelock.BaseFileLock, what: str) -> None:
    try:
        lock.acquire(timeout=0)
        return
    except filelock.Timeout:
        print(f"Waiting for another process that makes {what}", flush=True)
    while not lock.is_locked:
        check_interruption()
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=SECONDS_BETWEEN_LOOKS)
