"""Batches of features that were encoded beforehand."""

import numpy as np
import torch


class ViewLoader:
    """Takes the place of a training loader: one of several encoded views of each image, drawn anew at each look.

    Args:
        views: float32 array (K, N, E), K views of N images.
        data_source: the N items, each with `label` and `domain`.
        batch_sampler: yields lists of indices below N.
    """

    def __init__(self, views, data_source, batch_sampler):
        self.views, self.batch_sampler = views, batch_sampler
        self.labels = torch.tensor([item.label for item in data_source])
        self.domains = torch.tensor([item.domain for item in data_source])

    def __len__(self):
        return len(self.batch_sampler)

    def __iter__(self):
        for indices in self.batch_sampler:
            drawn = torch.randint(len(self.views), (len(indices),)).numpy()
            yield {
                "features": torch.from_numpy(np.ascontiguousarray(self.views[drawn, indices])),
                "label": self.labels[indices],
                "domain": self.domains[indices],
                "index": torch.tensor(indices),
            }
