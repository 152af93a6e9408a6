"""Hashes of file contents, cached on disk."""

import contextlib
import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path

from common.errors import UserError
from common.files import atomic_write, cache_folder, is_writable
from common.interruption import check_interruption
from common.progress import progress
from common.threads import usable_cores

HASH_BYTES = 16
FILES_AT_A_TIME = 64
# Two changes within one tick of the file system's clock leave equal times. The cache skips files changed this recently.
MIN_AGE_NS = 2 * 10**9


def content_hashes(files: Sequence[str | PathLike]) -> list[str]:
    """Hexadecimal hashes of files, in their order.

    The cache has one file for each data folder, two levels above its files (mostly a domain). Its keys are path, size,
    modification and change time (ctime): copying tools and `touch` can restore the modification time.

    Raises:
        UserError: a file cannot be read.
    """
    paths: list[str] = [os.fspath(path) for path in files]
    keys, is_old = _keys(paths)
    by_folder = defaultdict(list)
    for index, path in enumerate(paths):
        by_folder[path.rsplit(os.sep, 2)[0] if path.count(os.sep) > 1 else ""].append(index)
    known: dict[bytes, bytes] = {}
    for folder in by_folder:
        known |= _read(_cache_file(folder))
    missing = [index for index, key in enumerate(keys) if key not in known]
    if missing:
        found = dict(zip(missing, _hash_all([paths[index] for index in missing]), strict=True))
        known |= {keys[index]: value for index, value in found.items()}
        for folder, indices in by_folder.items():
            _add(_cache_file(folder), {keys[i]: found[i] for i in indices if i in found and is_old[i]})
    return [known[key].hex() for key in keys]


def _keys(paths: Sequence[str]) -> tuple[list[bytes], list[bool]]:
    """Cache keys of files, and whether each file is old enough for the cache."""
    keys, is_old = [], []
    newest, here = time.time_ns() - MIN_AGE_NS, os.path.join(os.getcwd(), "")
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(f"Cannot read {path}: {error.strerror}. Check DATASET.ROOT.") from error
        place = path if os.path.isabs(path) else here + path
        text = f"{place}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
        keys.append(hashlib.blake2b(os.fsencode(text), digest_size=HASH_BYTES).digest())
        is_old.append(status.st_ctime_ns < newest)
    return keys, is_old


def _hash_all(paths: Sequence[str]) -> list[bytes]:
    chunks = [paths[start : start + FILES_AT_A_TIME] for start in range(0, len(paths), FILES_AT_A_TIME)]
    hashes: list[bytes] = []
    pool = ThreadPoolExecutor(2 * usable_cores())  # reading and hashing release Python's lock
    try:
        with progress(total=len(paths), description="Hashing images", unit="img") as bar:
            for chunk in pool.map(lambda chunk: [_hash(path) for path in chunk], chunks):
                check_interruption()
                hashes += chunk
                bar.update(len(chunk))
    finally:
        pool.shutdown(cancel_futures=True)
    return hashes


def _hash(path: str) -> bytes:
    try:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=HASH_BYTES).digest()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. Check DATASET.ROOT, or remove the file.") from error


# ---- the cache: pairs of key and hash, then the hash of all pairs ----


def _cache_file(folder: str) -> Path:
    name = hashlib.blake2b(os.fsencode(os.path.abspath(folder)), digest_size=HASH_BYTES).hexdigest()
    return cache_folder() / "image_hashes" / name


def _read(path: Path) -> dict[bytes, bytes]:
    """The hashes by key; {} of a missing or damaged file."""
    content = b""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
    pairs, checksum, size = content[:-HASH_BYTES], content[-HASH_BYTES:], 2 * HASH_BYTES
    if hashlib.blake2b(pairs, digest_size=HASH_BYTES).digest() != checksum:
        return {}
    return {pairs[i : i + HASH_BYTES]: pairs[i + HASH_BYTES : i + size] for i in range(0, len(pairs), size)}


def _add(path: Path, new: dict[bytes, bytes]) -> None:
    """Add hashes to a cache file. A hash that another process adds at the same time may get lost."""
    if new and is_writable(path.parent):
        pairs = b"".join(key + value for key, value in {**_read(path), **new}.items())
        with contextlib.suppress(OSError), atomic_write(path) as handle:
            handle.write(pairs + hashlib.blake2b(pairs, digest_size=HASH_BYTES).digest())
