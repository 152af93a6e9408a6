"""Decoded images in memory that a process and its forked loader workers share."""

import contextlib
import fcntl
import functools
import mmap
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from common.content_hashes import content_hashes
from common.errors import warn
from common.memory import free_memory
from trainers.modules.sampling import ImageData, Item

MAX_IMAGES = 2**21
CHECKED_BYTES = 2**26  # the cache checks the free memory once for so many bytes


class StoredImage(Image.Image):
    """An RGB image that copies its pixels when an operation reads them; a crop copies its own pixels alone."""

    def __init__(self, pixels: np.ndarray, size: tuple[int, int]) -> None:
        super().__init__()
        self._pixels, self._size, self._mode, self._is_copied = pixels, size, "RGB", False

    def load(self) -> Any:
        if not self._is_copied:
            self.im, self._is_copied = self._part(0, 0, *self.size).im, True
        return super().load()

    def crop(self, box: tuple[float, float, float, float] | None = None) -> Image.Image:
        left, top, right, bottom = map(int, box or (0, 0, *self.size))
        if (left, top, right, bottom) == box and 0 <= left < right <= self.width and 0 <= top < bottom <= self.height:
            return self._part(left, top, right, bottom)
        return super().crop(box)

    def _part(self, left: int, top: int, right: int, bottom: int) -> Image.Image:
        row, size = 3 * self.width, (right - left, bottom - top)
        return Image.frombuffer("RGB", size, self._pixels[top * row + 3 * left :], "raw", "RGB", row, 1)


class ImageCache:
    """Stores decoded images for forked processes and for later runs of this process.

    Args:
        limit: bytes of pixels; images beyond it are decoded at each read.
        read_image: opens an image by its path as RGB.
    """

    def __init__(self, limit: int, read_image: Callable[[str], Image.Image]) -> None:
        self.limit, self.read_image = limit, read_image
        self._reserve = free_memory() // 4  # bytes to leave free, since parallel runs have caches of their own
        self._numbers: dict[str, int] = {}  # content hash -> number of the image
        self._by_path: dict[str, int] = {}
        # Anonymous shared memory takes no space before it is written.
        self._pixels = np.frombuffer(mmap.mmap(-1, limit), np.uint8)
        table = mmap.mmap(-1, (MAX_IMAGES + 1) * 3 * 8)
        self._places = np.frombuffer(table, np.int64).reshape(-1, 3)  # start, height, width of each image
        self._used = self._places[-1, :1]  # bytes
        self._lock_file = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the cache)
        with self._lock():  # raises OSError if TMPDIR has no locks
            pass

    def add(self, paths: Sequence[str]) -> None:
        """Let images be cached. Call it before loader workers start."""
        for path, content in zip(paths, content_hashes(paths), strict=True):
            self._by_path[path] = self._numbers.setdefault(content, len(self._numbers))

    def read(self, path: str) -> Image.Image:
        """The image of a path as RGB."""
        number = self._by_path.get(path, MAX_IMAGES)
        if number >= MAX_IMAGES:
            return self.read_image(path)
        with self._lock():
            start, height, width = self._places[number].tolist()
        if width:
            return StoredImage(self._pixels[start : start + 3 * width * height], (width, height))
        image = self.read_image(path)
        with self._lock():
            self._store(number, image)
        return image

    def _store(self, number: int, image: Image.Image) -> None:
        (width, height), start = image.size, int(self._used[0])
        end = start + 3 * width * height
        if self._places[number, 2] or end > self.limit:
            return
        if start // CHECKED_BYTES != end // CHECKED_BYTES and free_memory() < self._reserve:
            return
        # In this order, a process that is killed in between leaves no place with other pixels.
        self._used[0] = end
        self._pixels[start:end] = np.asarray(image).reshape(-1)
        self._places[number] = start, height, width

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """A lock that a killed worker does not keep."""
        fcntl.lockf(self._lock_file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._lock_file, fcntl.LOCK_UN)

    def __reduce__(self) -> Any:
        """Workers that are not forked do not share memory, so they decode images each time."""
        return ImageCache, (1, self.read_image)  # too small for any image


@functools.cache
def image_cache(megabytes: int, read_image: Callable[[str], Image.Image]) -> ImageCache | None:
    """The cache of this process, or None without memory. `megabytes` -1: a quarter of the memory that is free now."""
    limit = free_memory() // 4 if megabytes < 0 else megabytes * 2**20
    try:
        return ImageCache(limit, read_image) if limit else None
    except OSError as error:
        warn(f"Decoded images are not kept in memory: {error}. DATALOADER.CACHE_MB limits that memory.")
        return None


class CachedImages(Dataset):
    """A data set that reads its images by an `ImageCache`."""

    def __init__(self, dataset: ImageData, cache: ImageCache) -> None:
        self.dataset, self.cache = dataset, cache
        cache.add([item.impath for item in dataset.data_source])

    @property
    def data_source(self) -> Sequence[Item]:
        return self.dataset.data_source

    def transform(self, image: Image.Image) -> Any:
        return self.dataset.transform(image)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset.data_source[index]
        image = self.dataset.transform(self.cache.read(item.impath))
        return {"img": image, "label": item.label, "domain": item.domain, "impath": item.impath, "index": index}
