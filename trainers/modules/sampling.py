"""Select images and views for training steps: batches, seeded augmentation, cached views."""

import contextlib
import itertools
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from trainers.modules.loader_workers import lower_priority


class Item(Protocol):
    """An image with its label, such as Dassl's Datum."""

    impath: str
    label: int
    domain: int


class ImageData(Protocol):
    """A data set of dicts with "img" (transformed), "label", "domain" and "index", such as Dassl's DatasetWrapper."""

    @property
    def data_source(self) -> Sequence[Item]: ...

    def transform(self, image: Image.Image) -> Any: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class Batches(Protocol):
    """A batch sampler: lists of indices."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[int]]: ...


def mix_seed(*numbers: int) -> int:
    """A seed of 32 bits for some numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global generators in the block; in the main process, restore them after it."""
    seed = mix_seed(*numbers)
    # Restoring takes as long as cropping a small image, and loader workers draw only in such blocks.
    states = None if get_worker_info() else (random.getstate(), np.random.get_state(), torch.get_rng_state())
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed also seeds GPUs, which takes longer
        yield
    finally:
        if states:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])


class SeededDataset(Dataset):
    """A data set with a random transform as a function of (seed, epoch, repeat, index), for any number of workers.

    `repeat` counts earlier draws of the image in the epoch. An index alone is the first draw in epoch 0.
    """

    def __init__(self, dataset: ImageData, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def data_source(self) -> Sequence[Item]:
        return self.dataset.data_source

    def __getitem__(self, key: int | tuple[int, int, int]) -> dict[str, Any]:
        epoch, repeat, index = key if isinstance(key, tuple) else (0, 0, key)
        with seeded(self.seed, epoch, repeat, index):
            return self.dataset[index]


class SeededBatchSampler:
    """The batches of all epochs, one epoch after another, as lists of (epoch, repeat, index) for a `SeededDataset`.

    Args:
        batches: drawn from the global generators with seed (seed, epoch).
        epochs: returns the numbers of the epochs to come.
    """

    def __init__(self, batches: Batches, seed: int, epochs: Callable[[], range]) -> None:
        self.batches, self.seed, self.epochs = batches, seed, epochs

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for epoch in self.epochs():
            with seeded(self.seed, epoch):
                batches = list(iter(self.batches))  # list() of a sampler would also count it, by another draw
            repeats: dict[int, int] = {}  # index -> its last repeat
            for batch in batches:
                keys = []
                for index in batch:
                    repeats[index] = repeat = repeats.get(index, -1) + 1
                    keys.append((epoch, repeat, index))
                yield keys


class ImageLoader(DataLoader):
    """A DataLoader over dicts with images.

    Workers send each tensor by a socket of its own, which takes 1 ms, so they send labels and indices as arrays.
    """

    def __init__(self, dataset: Dataset, num_workers: int = 0, **options: Any) -> None:
        # Only forked workers share an ImageCache. From Python 3.14 on, Linux does not fork by default.
        context = "fork" if num_workers and sys.platform == "linux" else None
        options |= {"collate_fn": _collate, "multiprocessing_context": context, "worker_init_fn": lower_priority}
        super().__init__(dataset, num_workers=num_workers, **options)

    def __iter__(self) -> Any:
        return map(_with_tensors, super().__iter__())


class TrainingLoader(ImageLoader):
    """Training batches with a seeded augmentation; a pass is the first of the epochs to come.

    Workers load the first batches of the next epoch while the main process validates.

    Args:
        batches, seed, epochs: see `SeededBatchSampler`.
    """

    def __init__(
        self, data: ImageData, batches: Batches, seed: int, epochs: Callable[[], range], **options: Any
    ) -> None:
        # A generator of its own: a start of workers draws from the global one otherwise.
        options |= {"persistent_workers": options["num_workers"] > 0, "generator": torch.Generator()}
        options["batch_sampler"] = SeededBatchSampler(batches, seed, epochs)
        super().__init__(SeededDataset(data, seed), **options)
        self.batches, self.epochs = batches, epochs
        self._running: tuple[int, Any] = -1, None  # the next epoch of an iterator, after a pass to the end

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        epoch, (next_epoch, running) = self.epochs().start, self._running
        self._running = -1, None
        if epoch != next_epoch:
            running = super().__iter__()
        # The batches are drawn once more, so that later draws of the epoch, such as noise, do not depend on workers.
        yield from itertools.islice(running, sum(1 for _ in self.batches))
        self._running = epoch + 1, running


def _collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    batch = default_collate(items)
    return {key: value.numpy() if torch.is_tensor(value) and value.ndim < 2 else value for key, value in batch.items()}


def _with_tensors(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in batch.items()}


class MultiViewDataset(Dataset):
    """K random views of each image, (K, 3, H, W), as a function of (view, index). Each image is decoded once.

    Args:
        dataset: images with a random transform.
        read_image: opens an image by its path, as the data set does.
    """

    def __init__(self, dataset: ImageData, n_views: int, read_image: Callable[[str], Image.Image]) -> None:
        self.dataset, self.n_views, self.read_image = dataset, n_views, read_image

    def __len__(self) -> int:
        return len(self.dataset.data_source)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image, views = self.read_image(self.dataset.data_source[index].impath), []
        for view in range(self.n_views):
            with seeded(view, index):
                views.append(self.dataset.transform(image))
        return {"img": torch.stack(views)}


class PairedBatchSampler:
    """Two independent batches of one data set in one list, for a step of SPG's stage II (Algorithm 1).

    The shorter sampler ends the epoch. The loader decodes, and the image tower encodes, both batches together.
    """

    def __init__(self, first: Batches, second: Batches) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return min(len(self.first), len(self.second))

    def __iter__(self) -> Iterator[list[int]]:
        for first, second in zip(self.first, self.second, strict=False):
            n = min(len(first), len(second))
            yield list(first[:n]) + list(second[:n])


class FeatureLoader:
    """A training loader over cached features (K, N, E): each draw of an image takes one of its K views."""

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
