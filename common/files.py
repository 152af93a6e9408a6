"""Text files of users; files that are either whole or not there; where files may be made; sizes for people."""

import codecs
import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import IO

OUTPUT_MARK = ".spg_output"  # a file in folders of output


def read_text(path: str | PathLike, errors: str = "strict") -> str:
    """Read a text file of a user: UTF-8, with or without a byte order mark.

    Args:
        path: the file.
        errors: for bytes that are not UTF-8, see `bytes.decode`; a list of file names may have any bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it has another encoding.
    """
    content = Path(path).read_bytes()
    try:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
            raise ValueError
        return content.decode("utf-8-sig", errors)
    except ValueError as error:
        raise ValueError("it is not text in UTF-8; save it as UTF-8") from error


def is_utf8(name: str) -> bool:
    """Whether a name of a file or folder is text, and not bytes in another encoding."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def atomic_write(path: str | PathLike, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file beside ``path`` that takes its place when the block ends without error.

    A reader never sees half a file: the content is flushed to disk and renamed in one step; if the
    block raises, ``path`` stays as it was. Missing parent folders are made.

    Args:
        path: the file to write.
        mode: ``"wb"`` or ``"w"`` (text is UTF-8).

    Yields:
        the open file object.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, mode, encoding=None if "b" in mode else "utf-8") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        # mkstemp makes files private to their owner; shared machines expect the usual mode.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def make_output_folder(folder: str | PathLike) -> None:
    """Make a folder for output, and mark it, so that it is never read as data.

    The mark goes into the topmost folder that is new, or into one that was there and empty.

    Raises:
        OSError: it cannot be made or marked.
    """
    top = folder = Path(folder).expanduser().absolute()
    if folder.exists() and not all(name.startswith(".") for name in os.listdir(folder)):
        return
    while not top.parent.exists():
        top = top.parent
    folder.mkdir(parents=True, exist_ok=True)
    (top / OUTPUT_MARK).touch()


def is_writable(folder: str | PathLike) -> bool:
    """Whether files may be made in ``folder`` (or in the nearest ancestor that exists).

    A folder without any write bit counts as read-only for root as well: whoever took the bits away
    meant it.
    """
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    has_write_bit = folder.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    return bool(has_write_bit) and os.access(folder, os.W_OK)


def cache_folder() -> Path:
    """The user's folder for what can be made again: $XDG_CACHE_HOME/spg-dg, by default ~/.cache/spg-dg."""
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "spg-dg"


def size_text(n_bytes: float) -> str:
    """A number of bytes for people: ``"174 MB"``, ``"5.6 GB"``."""
    for unit in ("bytes", "kB", "MB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"
