"""One process for each output folder."""

import contextlib
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from common.errors import UserError
from common.locks import InUse, file_lock, lock_owner

LOCK_FILE = "owner.lock"


@contextlib.contextmanager
def owned(folder: str | PathLike, name: str = LOCK_FILE) -> Iterator[None]:
    """Hold `folder` while the block runs, see `common.locks`.

    Args:
        folder: where the file goes that is locked.
        name: that file's.

    Raises:
        UserError: another process holds it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(Path(folder) / name, "uses it", seconds=0))
        except InUse as error:
            raise UserError(
                f"{folder} is in use by {error}. Wait for it, end it, or name another --output-dir."
            ) from error
        yield


def holder(folder: str | PathLike, name: str = LOCK_FILE) -> str | None:
    """Which process holds a folder, as it said itself; None: none does, or there are no such locks here."""
    return lock_owner(Path(folder) / name)
