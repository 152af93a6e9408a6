"""What the parts ask of images that are learned from, and of the batches that these come in."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from PIL import Image


class Item(Protocol):
    """An image with its label, as Dassl's Datum."""

    @property
    def impath(self) -> str: ...

    @property
    def label(self) -> int: ...

    @property
    def domain(self) -> int: ...


class ImageData(Protocol):
    """Items, transformed as they are taken: dicts with "img", "label", "domain" and "index"."""

    @property
    def data_source(self) -> Sequence[Item]: ...

    def transform(self, image: Image.Image) -> Any: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class Batches(Protocol):
    """Lists of indices, one for each batch: what torch calls a batch sampler."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[int]]: ...
