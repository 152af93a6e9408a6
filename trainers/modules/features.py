"""Features of the frozen image tower, computed once.

The image tower never trains, so the feature of an image under a deterministic transform never changes: it is encoded
once and read back by every epoch, seed and trainer. An entry of the cache is two files,

    <key>.npy    the features, opened as a memory map
    <key>.json   its checksum and what it is

where the key hashes everything the features depend on: weights, precision, transform, and the contents of the images
in their order. An entry that does not check out is computed again. Of several processes one computes an entry, under a
lock, and the others wait for it.
"""

import contextlib
import hashlib
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.content_hashes import content_hashes
from common.errors import UserError
from common.files import atomic_write, is_writable, make_output_folder
from common.interruption import check_interruption
from common.locks import creation_lock
from common.progress import progress
from trainers.modules.finite import all_finite

CACHE_VERSION = 1
CHECKSUM_BYTES = 2**24  # how much of an entry is checksummed at a time


class _NotEncoded(Exception):
    """Images could not be encoded; the cause says why."""


class FeatureCache:
    """Features on disk, or in memory only where there is no usable folder.

    Args:
        folder: where entries are kept; None keeps features in memory, for this process.

    Attributes:
        oldest_read: when the oldest entry was made that was read from there, by time.time(); infinity: none was.
    """

    def __init__(self, folder: str | PathLike | None = None) -> None:
        self.folder = None if folder is None else Path(folder).expanduser()
        self.oldest_read = math.inf
        self._opened: dict[str, np.ndarray] = {}

    def get(
        self,
        key: str,
        shape: tuple[int, ...],
        compute: Callable[[np.ndarray], None],
        description: str,
        wait: bool = True,
    ) -> np.ndarray:
        """The features of an entry, computed if they are not there.

        Args:
            key: from `features_key`.
            shape: shape of the features, e.g. (N, E).
            compute: called with a float32 array of that shape to fill.
            description: what the features are of, for the messages.
            wait: whether to wait for another process that computes them.

        Returns:
            float32 array of that shape, memory-mapped when on disk.

        Raises:
            InUse: another process computes them, and `wait` is False.
        """
        if key not in self._opened:
            array, fault = self._read(key, shape)
            if array is None:
                with self._lock(key, description, wait):
                    array, fault = self._read(key, shape)  # another process may have computed it by now
                    if fault:
                        print(f"Feature cache {self.folder}/{key}.npy: {fault}; computed again.")
                    try:
                        array = self._write(key, shape, compute, description) if array is None else array
                    except _NotEncoded as failure:
                        raise failure.__cause__ or failure from None
            self._opened[key] = array
        return self._opened[key]

    def _lock(self, key: str, description: str, wait: bool) -> contextlib.AbstractContextManager:
        if self.folder is None or not is_writable(self.folder):
            return contextlib.nullcontext()
        return creation_lock(self.folder / f"{key}.npy", f"encodes {description}", wait)

    def _read(self, key, shape):
        """The entry or None, and why an entry that is there cannot be used or ""."""
        if self.folder is None:
            return None, ""
        data, about = self.folder / f"{key}.npy", self.folder / f"{key}.json"
        if not about.is_file():
            return None, ""
        try:
            record = json.loads(about.read_text(encoding="utf-8"))
            array = np.load(data, mmap_mode="r", allow_pickle=False)
            if record["version"] != CACHE_VERSION:
                reason = f"made by version {record['version']} of the cache"
            elif array.shape != tuple(shape) or array.dtype != np.float32 or _checksum(array) != record["crc32"]:
                reason = "damaged"
            elif not (np.isfinite(array.sum()) or np.isfinite(array).all()):
                reason = "not finite"
            else:
                self.oldest_read = min(self.oldest_read, about.stat().st_mtime)
                return array, ""
        except Exception as error:  # NumPy's reader of damaged headers fails in many ways
            reason = f"damaged ({type(error).__name__})"
        return None, reason

    def _write(self, key, shape, compute, description):
        if self.folder is not None and not is_writable(self.folder):
            self._go_on_without("is not writable")
        if self.folder is None:
            return self._compute(np.empty(shape, np.float32), compute, description, "kept in memory")
        path = self.folder / f"{key}.npy"
        array = None
        try:
            make_output_folder(self.folder)
            # Filled in memory-mapped form, so that a data set need not fit into memory.
            with atomic_write(path) as handle:
                mapped = _map_npy(handle, tuple(shape))
                array = self._compute(mapped, compute, description, f"cached in {path}")
                mapped.flush()
                record = {"version": CACHE_VERSION, "crc32": _checksum(mapped), "of": description}
            with atomic_write(self.folder / f"{key}.json", "w") as handle:
                json.dump(record, handle)
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            self._go_on_without(f"cannot be written ({error.strerror or error})")
            if array is not None:
                return np.array(array)
            return self._compute(np.empty(shape, np.float32), compute, description, "kept in memory")

    def _go_on_without(self, why):
        print(f"Feature cache {self.folder} {why}; going on without it (TRAINER.FEATURES.CACHE_DIR names another).")
        self.folder = None

    def _compute(self, array, compute, description, place):
        start = time.perf_counter()
        try:
            compute(array)
        except OSError as error:
            raise _NotEncoded from error  # an image's fault, not the cache's
        seconds = time.perf_counter() - start
        n_images = int(np.prod(array.shape[:-1]))
        print(
            f"Encoded {n_images:,} images ({description}) in {seconds:.1f} s, "
            f"{n_images / max(seconds, 1e-9):,.0f} images/s; {array.nbytes / 2**20:.1f} MB {place}"
        )
        return array


def features_key(
    weights: str, precision: str, transform: object, paths: Sequence[str | PathLike], *more: object
) -> str:
    """A name for features: equal exactly if everything the features depend on is.

    Args:
        weights: fingerprint of the image tower.
        precision: what it computes in.
        transform: the deterministic image transform; its repr must tell all its settings, as torchvision's do.
        paths: the images, in order; their contents count.
        more: anything else, e.g. which random views.
    """
    digest = hashlib.sha256()
    digest.update(repr((CACHE_VERSION, weights, precision, repr(transform), *more)).encode())
    digest.update("".join(content_hashes(paths)).encode())
    return digest.hexdigest()[:32]


def encode_dataset(
    dataset: Dataset,
    encode: Callable[[Tensor], Tensor],
    out: np.ndarray,
    batch_size: int,
    num_workers: int,
    description: str,
) -> None:
    """Encode a data set in its own order.

    Args:
        dataset: yields dicts with "img" (3, H, W), or (K, 3, H, W) for K views.
        encode: (B, 3, H, W) tensor -> (B, E) tensor, or (B, K, 3, H, W) -> (B, K, E).
        out: array (N, E) or (N, K, E), filled in place.
        batch_size, num_workers: of the loader; its workers end with the pass.
        description: shown beside the progress bar.

    Raises:
        UserError: features are not finite.
    """
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers)
    row = 0
    with progress(total=len(out), description=f"Encoding {description}", unit="img") as bar, torch.no_grad():
        for batch in loader:
            check_interruption()
            encoded = encode(batch["img"]).float().cpu()
            features = encoded.numpy()
            if not all_finite(encoded):
                raise UserError(
                    f"The image features of {description} are not finite, among images {row + 1} to "
                    f"{row + len(features)}. Half precision may overflow: try PREC fp32. Or images are normalised by "
                    "what is no number (INPUT.PIXEL_MEAN, PIXEL_STD), or training broke an image tower that learns."
                )
            out[row : row + len(features)] = features
            row += len(features)
            bar.update(len(features))


def _map_npy(handle, shape):
    """A float32 array of zeros mapped onto an empty file, in NumPy's format."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(handle, header)
    handle.flush()
    start = handle.tell()
    # A full disk must say so here: written to through the map, it would kill the process.
    n_bytes = int(np.prod(shape)) * 4
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle.fileno(), start, n_bytes)
    else:  # macOS: no reserved space, but a file of the right size
        os.ftruncate(handle.fileno(), start + n_bytes)
    return np.memmap(handle, np.float32, "r+", start, shape)


def _checksum(array):
    flat = array.reshape(-1).view(np.uint8)
    crc = 0
    for start in range(0, flat.size, CHECKSUM_BYTES):
        crc = zlib.crc32(flat[start : start + CHECKSUM_BYTES], crc)
    return crc
