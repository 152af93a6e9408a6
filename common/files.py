"""Files: text of users, atomic writes, JSON with a checksum, folders for output and caches."""

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import IO, Any

from common.errors import UserError

OUTPUT_MARK = ".spg_output"  # a file in output folders: data sets skip these folders
SPLIT_FOLDER = "spg_coop_splits"  # split files in the folder of a data set


def read_text(path: str | PathLike, errors: str = "strict") -> str:
    """Read a text file in UTF-8, with or without a byte order mark; `errors` as in bytes.decode.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file has another encoding.
    """
    content = Path(path).read_bytes()
    try:
        if b"\0" in content:  # UTF-16
            raise ValueError
        return content.decode("utf-8-sig", errors)
    except ValueError as error:
        raise ValueError("it is not text in UTF-8; save it as UTF-8") from error


def is_utf8(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


@contextlib.contextmanager
def atomic_write(path: str | PathLike, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file that replaces `path` if the block ends without an error; missing parents are created.

    Args:
        mode: "wb", or "w" for UTF-8 text.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, mode, encoding=None if "b" in mode else "utf-8") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        # mkstemp makes files private to their owner. Shared machines expect the usual mode.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_json(path: str | PathLike, record: dict[str, Any]) -> None:
    """Write a dict of plain values with a checksum, atomically; raises UserError for NaN and infinity."""
    record = json.loads(json.dumps(record))  # the values that a reader gets
    try:
        record["checksum"] = hash_json(record)
    except ValueError as error:
        raise UserError(f"{path} is not written, since a number is not finite ({error}). See log.txt.") from error
    with atomic_write(path, "w") as handle:
        json.dump(record, handle, indent=2)
        handle.write("\n")


def read_json(path: str | PathLike) -> dict[str, Any]:
    """Read a file of `write_json`; raises OSError, or ValueError if it is damaged, was edited, or holds NaN."""
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError(f"it holds a {type(record).__name__}")
    if record.pop("checksum", None) not in (None, hash_json(record)):
        raise ValueError("its checksum does not match: it is damaged or was edited")
    return record


def hash_json(record: dict[str, Any]) -> str:
    """Hash (16 hexadecimal digits) of plain values by name; raises ValueError for NaN and infinity."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]


def make_output_folder(folder: str | PathLike) -> None:
    """Create a folder for output, and mark the topmost new or empty folder, so that data sets skip it."""
    top = folder = Path(folder).expanduser().absolute()
    if folder.exists() and not all(name.startswith(".") for name in os.listdir(folder)):
        return
    while not top.parent.exists():
        top = top.parent
    folder.mkdir(parents=True, exist_ok=True)
    (top / OUTPUT_MARK).touch()


def is_writable(folder: str | PathLike) -> bool:
    """Whether files can be created in a folder, or in its nearest existing ancestor."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    # A folder without any write bit counts as read-only for root as well.
    has_write_bit = folder.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    return bool(has_write_bit) and os.access(folder, os.W_OK)


def cache_folder() -> Path:
    """The user's cache folder: $XDG_CACHE_HOME/spg-dg, by default ~/.cache/spg-dg."""
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "spg-dg"
