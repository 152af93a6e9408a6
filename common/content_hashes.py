"""Hashes of file contents, cached on disk by path, size, modification and change time."""

import contextlib
import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import atomic_write, cache_folder
from common.interruption import check_interruption
from common.progress import progress
from common.threads import usable_cores

HASH_BYTES = 16
FILES_AT_A_TIME = 64
# Two changes within one tick of the file system's clock leave equal times. The cache skips files changed this recently.
MIN_AGE_NS = 2 * 10**9


def content_hashes(files: Sequence[str | PathLike]) -> list[str]:
    """Hexadecimal hashes of files, in their order; raises UserError if a file cannot be read."""
    here = os.getcwd()
    paths = [os.path.join(here, path) for path in files]
    by_folder: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        by_folder[path.rsplit(os.sep, 2)[0]].append(path)  # mostly a domain: one cache file for it
    hashes: dict[str, bytes] = {}
    try:
        for folder, inside in by_folder.items():
            hashes |= _folder_hashes(folder, inside)
    except OSError as error:
        raise UserError(
            f"Cannot read {error.filename}: {error.strerror}. Check DATASET.ROOT, or remove the file."
        ) from error
    return [hashes[path].hex() for path in paths]


def _folder_hashes(folder: str, paths: Sequence[str]) -> dict[str, bytes]:
    cache_file = cache_folder() / "image_hashes" / _hash(os.fsencode(folder)).hex()
    cached = _read_cache(cache_file)
    newest = time.time_ns() - MIN_AGE_NS
    keys, is_old = {}, {}
    for path in paths:
        status = os.stat(path)
        # Copying tools and `touch` can restore the modification time, but not the change time.
        text = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
        keys[path], is_old[path] = _hash(os.fsencode(text)), status.st_ctime_ns < newest
    missing = [path for path, key in keys.items() if key not in cached]
    if not missing:
        return {path: cached[key] for path, key in keys.items()}
    new = dict(zip(missing, _hash_files(missing), strict=True))
    with contextlib.suppress(OSError):  # without a cache, the next run hashes again
        _write_cache(cache_file, cached | {keys[path]: new[path] for path in missing if is_old[path]})
    return {path: new[path] if path in new else cached[key] for path, key in keys.items()}


def _hash_files(paths: Sequence[str]) -> list[bytes]:
    chunks = [paths[start : start + FILES_AT_A_TIME] for start in range(0, len(paths), FILES_AT_A_TIME)]
    hashes: list[bytes] = []
    pool = ThreadPoolExecutor(2 * usable_cores())  # reading and hashing release Python's lock
    try:
        with progress(total=len(paths), description="Hashing images", unit="img") as bar:
            for chunk in pool.map(lambda chunk: [_hash_file(path) for path in chunk], chunks):
                check_interruption()
                hashes += chunk
                bar.update(len(chunk))
    finally:
        pool.shutdown(cancel_futures=True)
    return hashes


def _hash_file(path: str) -> bytes:
    return _hash(Path(path).read_bytes())


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=HASH_BYTES).digest()


def _read_cache(path: Path) -> dict[bytes, bytes]:
    """The hashes by key; {} if the file is missing or damaged, which the checksum of NumPy's zip file shows."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(zip(arrays["keys"].tolist(), arrays["hashes"].tolist(), strict=True))
    except Exception:  # NumPy's reader raises many kinds of exceptions
        return {}


def _write_cache(path: Path, hashes: dict[bytes, bytes]) -> None:
    """Replace a cache file. A hash that another process adds at the same time may get lost."""
    keys, values = (np.frombuffer(b"".join(column), f"V{HASH_BYTES}") for column in (hashes, hashes.values()))
    with atomic_write(path) as handle:
        np.savez(handle, keys=keys, hashes=values)
