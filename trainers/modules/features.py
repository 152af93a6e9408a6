"""Image features on disk: each image is encoded once for all epochs, seeds and trainers.

With a frozen image tower and a deterministic transform, the features of an image never change. An entry is two files:

    <key>.npy    the features
    <key>.json   their checksum and description

The key hashes everything that the features depend on: weights, precision, transform, and contents and order of the
images. One process computes an entry under a lock, and the others wait for it. A damaged entry is computed again.
"""

import contextlib
import errno
import hashlib
import json
import math
import time
import zlib
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.content_hashes import content_hashes
from common.errors import UserError
from common.files import atomic_write, is_writable, make_output_folder
from common.interruption import check_interruption
from common.locks import creation_lock
from common.progress import progress
from trainers.modules.sampling import ImageLoader
from trainers.modules.tensor_files import all_finite

CACHE_VERSION = 1  # a part of the key: raise it when features change


class FeatureCache:
    """Features on disk, or in the memory of this process if there is no usable folder.

    Args:
        folder: the folder of the entries; None: in memory.

    Attributes:
        oldest_read: time.time() at which the oldest entry that was read from the folder was written; infinity: none.
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
        """Return the features of an entry, and compute them if they are missing.

        Args:
            key: from `features_key`.
            shape: shape of the features, (N, E) or (K, N, E).
            compute: fills a float32 array of that shape.
            description: name of the images, for messages.
            wait: whether to wait for another process that computes them.

        Returns:
            float32 array of that shape, memory-mapped if it is on disk.

        Raises:
            InUse: another process computes them, and `wait` is False.
        """
        if key not in self._opened:
            array, _ = self._read(key, shape)
            if array is None:
                with self._lock(key, description, wait):
                    array, fault = self._read(key, shape)  # another process may have computed it by now
                    if fault:
                        print(f"Feature cache {self.folder}/{key}.npy: {fault}; computed again.")
                    if array is None:
                        array = self._create(key, shape, compute, description)
            self._opened[key] = array
        return self._opened[key]

    def _lock(self, key: str, description: str, wait: bool) -> contextlib.AbstractContextManager:
        if self.folder is None or not is_writable(self.folder):
            return contextlib.nullcontext()
        return creation_lock(self.folder / f"{key}.npy", f"encodes {description}", wait)

    def _read(self, key: str, shape: tuple[int, ...]) -> tuple[np.ndarray | None, str]:
        """The entry or None, and the fault of an entry that cannot be used."""
        if self.folder is None or not (about := self.folder / f"{key}.json").is_file():
            return None, ""
        try:
            checksum = json.loads(about.read_text(encoding="utf-8"))["crc32"]
            array = np.load(about.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
            if array.shape != tuple(shape) or array.dtype != np.float32 or zlib.crc32(array.data) != checksum:
                return None, "damaged"
            if not np.isfinite(array.sum()):
                return None, "not finite"
            self.oldest_read = min(self.oldest_read, about.stat().st_mtime)
        except Exception as error:  # NumPy's reader of damaged headers fails in many ways
            return None, f"damaged ({type(error).__name__})"
        return array, ""

    def _create(
        self, key: str, shape: tuple[int, ...], compute: Callable[[np.ndarray], None], description: str
    ) -> np.ndarray:
        start, array, place = time.perf_counter(), np.empty(shape, np.float32), "in memory"
        compute(array)
        seconds, n_images = time.perf_counter() - start, math.prod(shape[:-1])
        if self.folder is not None:
            path = self.folder / f"{key}.npy"
            try:
                if not is_writable(self.folder):
                    raise PermissionError(errno.EACCES, "it is not writable")
                make_output_folder(self.folder)
                with atomic_write(path) as handle:
                    np.save(handle, array)
                with atomic_write(path.with_suffix(".json"), "w") as handle:
                    json.dump({"crc32": zlib.crc32(array.data), "of": description}, handle)
                array, place = np.load(path, mmap_mode="r", allow_pickle=False), f"cached in {path}"
            except OSError as error:
                reason = error.strerror or str(error)
                print(
                    f"Feature cache {self.folder} cannot be written: {reason}. The run continues without it. "
                    "TRAINER.FEATURES.CACHE_DIR names another folder."
                )
                self.folder = None
        print(
            f"Encoded {n_images:,} images ({description}) in {seconds:.1f} s, "
            f"{n_images / max(seconds, 1e-9):,.0f} images/s; {array.nbytes / 2**20:.1f} MB {place}"
        )
        return array


def features_key(
    weights: str, precision: str, transform: object, paths: Sequence[str | PathLike], *more: object
) -> str:
    """Name of a cache entry: equal if and only if everything that the features depend on is equal.

    Args:
        weights: hash of the image tower.
        transform: the deterministic image transform; its repr must contain all its settings, as torchvision's do.
        paths: the images in their order; their contents count.
        more: other values that the features depend on.
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
    """Encode the images of a data set in their order.

    Args:
        dataset: yields dicts with "img" (3, H, W), or (K, 3, H, W) for K views.
        encode: (B, 3, H, W) -> (B, E), or (B, K, 3, H, W) -> (B, K, E).
        out: array (N, E) or (N, K, E), filled in place.
        description: name of the images, for messages.
    """
    loader = ImageLoader(dataset, batch_size=batch_size, num_workers=num_workers)
    row = 0
    with progress(total=len(out), description=f"Encoding {description}", unit="img") as bar, torch.no_grad():
        for batch in loader:
            check_interruption()
            features = encode(batch["img"]).float().cpu()
            if not all_finite(features):
                raise UserError(
                    f"The image features of {description} are not finite, among images {row + 1} to "
                    f"{row + len(features)}. Set PREC fp32 if half precision overflows, check INPUT.PIXEL_MEAN and "
                    "PIXEL_STD, or lower OPTIM.LR if the image tower learns."
                )
            out[row : row + len(features)] = features.numpy()
            row += len(features)
            bar.update(len(features))
