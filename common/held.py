"""One process at a time makes a file that several need; the others wait for it."""

import contextlib
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from common.locks import file_lock

_mine: set[Path] = set()  # what this process holds


@contextlib.contextmanager
def held(path: str | PathLike, what: str) -> Iterator[None]:
    """Hold the right to make a file while the block runs, as soon as no other process has it.

    The lock is on a hidden file `.<name>.lock` beside it, see `common.locks`. A process that holds the right already
    goes on.

    Args:
        path: the file; folders above it are made.
        what: what it is, for the line that says that this process waits.

    Raises:
        Interrupted: the process was asked to end while it waited.
    """
    path = Path(path).absolute()
    if path in _mine:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        _wait_for(path, what, stack)
        _mine.add(path)
        stack.callback(_mine.remove, path)
        yield


def _wait_for(path: Path, what: str, stack: contextlib.ExitStack) -> None:
    stack.enter_context(file_lock(path.with_name(f".{path.name}.lock"), f"makes {what}"))
