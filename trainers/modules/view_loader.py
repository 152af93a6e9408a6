"""Batches of features that were encoded beforehand."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from trainers.modules.image_data import Batches, Item


class ViewLoader:
    """Takes the place of a training loader: one of several encoded views of each image, drawn anew at each look.

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
