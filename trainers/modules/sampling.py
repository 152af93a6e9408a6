"""Which images and views a training step sees: batches, seeded augmentation, cached views."""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset


class Item(Protocol):
    """An image with its label, such as Dassl's Datum."""

    @property
    def impath(self) -> str: ...

    @property
    def label(self) -> int: ...

    @property
    def domain(self) -> int: ...


class ImageData(Protocol):
    """A data set of dicts with "img" (transformed), "label", "domain" and "index"."""

    @property
    def data_source(self) -> Sequence[Item]: ...

    def transform(self, image: Image.Image) -> Any: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class Batches(Protocol):
    """A batch sampler: one list of indices a batch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[int]]: ...


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global generators within the block, and restore them after it.

    Args:
        numbers: integers from 0.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs too, which takes longer
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SeededItems(Dataset):
    """Items of a data set with a random transform, drawn by `SeededBatches`.

    Args:
        dataset: yields dicts; its transform draws from the global generators.
        seed: an integer from 0.
    """

    def __init__(self, dataset: ImageData, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def data_source(self) -> Sequence[Item]:
        """The items of the data set."""
        return self.dataset.data_source

    def __getitem__(self, place: tuple[int, int, int]) -> dict[str, Any]:
        epoch, look, index = place
        with seeded(self.seed, epoch, look, index):
            return self.dataset[index]


class FirstLooks(Dataset):
    """The first augmented look at each item in the first epoch, by index."""

    def __init__(self, items: SeededItems) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[0, 0, index]


class SeededBatches:
    """Batches for `SeededItems`: (epoch, look, index) for each index.

    Args:
        batches: batch sampler; it may draw an index several times, each of which is a look of its own.
        epoch: called when a pass begins; says which epoch that is.
    """

    def __init__(self, batches: Batches, epoch: Callable[[], int]) -> None:
        self.batches, self.epoch = batches, epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        epoch = self.epoch()
        looks: dict[int, int] = {}  # number of the last look at each index
        for batch in self.batches:
            places = []
            for index in batch:
                looks[index] = look = looks.get(index, -1) + 1
                places.append((epoch, look, index))
            yield places


class RandomViews(Dataset):
    """K random views of each image, a function of (view, image); each image is decoded once.

    Args:
        dataset: has `data_source`, items with `impath`, and a `transform` that draws from the global generators.
        n_views: K, how many.
        read_image: opens an image by its path, as the data set itself does.
    """

    def __init__(self, dataset: ImageData, n_views: int, read_image: Callable[[str], Image.Image]) -> None:
        self.dataset, self.n_views, self.read_image = dataset, n_views, read_image

    def __len__(self) -> int:
        return len(self.dataset.data_source)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """A dict with "img", (K, 3, H, W)."""
        image, views = self.read_image(self.dataset.data_source[index].impath), []
        for view in range(self.n_views):
            with seeded(view, index):
                views.append(self.dataset.transform(image))
        return {"img": torch.stack(views)}


class PairedBatchSampler:
    """Joins two independent batches of one data set into one: stage II needs both in a step (SPG, Algorithm 1).

    The loader decodes and the image tower encodes both in one go.

    Args:
        first, second: batch samplers; the shorter one ends the epoch.
    """

    def __init__(self, first: Batches, second: Batches) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return min(len(self.first), len(self.second))

    def __iter__(self) -> Iterator[list[int]]:
        for first, second in zip(self.first, self.second, strict=False):
            yield list(first) + list(second)


class ViewLoader:
    """A training loader over cached features: at each look it draws one of K encoded views of an image.

    Args:
        views: float32 array (K, N, E), K views of N images.
        data_source: the N items, each with `label` and `domain`.
        batch_sampler: yields lists of indices below N.
    """

    def __init__(self, views: np.ndarray, data_source: Sequence[Item], batch_sampler: Batches) -> None:
        self.views, self.batch_sampler = views, batch_sampler
        self.labels = torch.tensor([item.label for item in data_source])
        self.domains = torch.tensor([item.domain for item in data_source])

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for indices in self.batch_sampler:
            drawn = torch.randint(len(self.views), (len(indices),)).numpy()
            yield {
                "features": torch.from_numpy(np.ascontiguousarray(self.views[drawn, indices])),
                "label": self.labels[indices],
                "domain": self.domains[indices],
                "index": torch.tensor(indices),
            }
