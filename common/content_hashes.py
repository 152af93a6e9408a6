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

from common.files import atomic_write, cache_folder
from common.interruption import check_interruption
from common.progress import progress
from common.threads import usable_cores

HASH_BYTES = 16
FILES_AT_A_TIME = 64
# Two changes within one tick of the file system's clock leave equal times. The cache skips files changed this recently.
MIN_AGE_NS = 2 * 10**9


def content_hashes(files: Sequence[str | PathLike]) -> list[str]:
    """Hexadecimal hashes of files, in their order."""
    here = os.getcwd()
    texts = [os.fspath(path) for path in files]
    # os.path.join for each of many paths takes long.
    paths = [path if path.startswith(os.sep) else os.path.join(here, path) for path in texts]
    by_folder: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        by_folder[path.rsplit(os.sep, 2)[0]].append(path)  # mostly a domain: one cache file for it
    hashes: dict[str, bytes] = {}
    for folder, inside in by_folder.items():
        hashes |= _folder_hashes(folder, inside)
    return [hashes[path].hex() for path in paths]


def _folder_hashes(folder: str, paths: Sequence[str]) -> dict[str, bytes]:
    cache_file = cache_folder() / "image_hashes" / _hash(os.fsencode(folder)).hex()
    hashes = _read_cache(cache_file)
    newest = time.time_ns() - MIN_AGE_NS
    keys: dict[str, bytes] = {}
    recent = set()
    for path in paths:
        status = os.stat(path)
        # Copying tools and `touch` can restore the modification time, but not the change time.
        text = f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
        keys[path] = _hash(os.fsencode(text))
        if status.st_ctime_ns >= newest:
            recent.add(keys[path])
    if missing := [path for path, key in keys.items() if key not in hashes]:
        hashes.update(zip((keys[path] for path in missing), _hash_files(missing), strict=True))
        pairs = b"".join(key + content for key, content in hashes.items() if key not in recent)
        with contextlib.suppress(OSError), atomic_write(cache_file) as handle:  # without a cache, runs hash again
            np.savez(handle, np.frombuffer(pairs, f"V{HASH_BYTES}").reshape(-1, 2))
    return {path: hashes[key] for path, key in keys.items()}


def _read_cache(path: Path) -> dict[bytes, bytes]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays["arr_0"].tolist())
    except Exception:  # NumPy raises many kinds of exceptions for missing and damaged files
        return {}


def _hash_files(paths: Sequence[str]) -> list[bytes]:
    chunks = [paths[start : start + FILES_AT_A_TIME] for start in range(0, len(paths), FILES_AT_A_TIME)]
    hashes: list[bytes] = []
    with (
        ThreadPoolExecutor(2 * usable_cores()) as pool,  # reading and hashing release Python's lock
        progress(total=len(paths), description="Hashing images", unit="img") as bar,
    ):
        for chunk in pool.map(lambda chunk: [_hash_file(path) for path in chunk], chunks):
            check_interruption()
            hashes += chunk
            bar.update(len(chunk))
    return hashes


def _hash_file(path: str) -> bytes:
    return _hash(Path(path).read_bytes())


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=HASH_BYTES).digest()
