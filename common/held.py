"""One process at a time makes a file that several need; the others wait for it."""

import contextlib
import time
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from common.interruption import check_interruption
from common.locks import InUse, locked

SECONDS_BETWEEN_LOOKS = 0.2

_mine: set[Path] = set()  # what this process holds


@contextlib.contextmanager
def held(path: str | PathLike, what: str, wait: bool = True) -> Iterator[None]:
    """Hold the right to make a file while the block runs, as soon as no other process has it.

    The lock is on a hidden file `.<name>.lock` beside it, see `common.locks`. A process that holds the right already
    goes on.

    Args:
        path: the file; folders above it are made.
        what: what it is, for the line that says that this process waits.
        wait: whether to wait for another process that makes it.

    Raises:
        InUse: another process makes it, and `wait` is False.
        Interrupted: the process was asked to end while it waited.
    """
    path = Path(path).absolute()
    if path in _mine:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        _wait_for(path, what, wait, stack)
        _mine.add(path)
        stack.callback(_mine.remove, path)
        yield


def _wait_for(path: Path, what: str, wait: bool, stack: contextlib.ExitStack) -> None:
    told = False
    while True:
        try:
            stack.enter_context(locked(path.with_name(f".{path.name}.lock"), str(path), "makes it"))
            return
        except InUse:
            if not wait:
                raise
            if not told:
                print(f"Waiting for another process that makes {what}", flush=True)
            told = True
        except OSError as error:  # the lock's file is another user's, say
            print(f"Note: {path} cannot be locked ({error.strerror}); take care that no second process makes it.")
            return
        check_interruption()
        time.sleep(SECONDS_BETWEEN_LOOKS)
