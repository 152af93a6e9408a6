"""The one loop over images that classifies: their features -> logits, batch by batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.interruption import check_interruption
from trainers.modules.finite import all_finite

Indices = TypeVar("Indices", bound=Sequence[int])
# Features (B, E) and the indices of their images -> logits (B, C).
Classifier = Callable[[Tensor, Sequence[int]], Tensor]


@torch.no_grad()
def classify(
    batches: Iterable[tuple[Tensor, Indices]],
    classifier: Classifier,
    device: torch.device,
    explain: Callable[[Tensor, Indices], str],
    unseen_classes: bool = False,
) -> Iterator[tuple[Indices, Tensor]]:
    """Classify images by their features.

    Args:
        batches: of features (B, E) and the B indices that their images' noise goes by.
        classifier: see `Classifier`.
        device: where it computes.
        explain: what to say of a batch, by its features and indices, whose logits are not finite.
        unseen_classes: whether logits may be minus infinity, as those of classes that a classifier has never seen.

    Yields:
        the indices of each batch, and its logits (B, C).

    Raises:
        UserError: logits are not finite.
    """
    for features, indices in batches:
        check_interruption()
        features = features.to(device)
        logits = classifier(features, indices)
        if not all_finite(logits.amax(dim=-1) if unseen_classes else logits):
            raise UserError(explain(features, indices))
        yield indices, logits


class FeatureBatches:
    """Features (N, E) of a split, `batch_size` at a time, with the range of their indices."""

    def __init__(self, features: np.ndarray, batch_size: int) -> None:
        self.features, self.batch_size = features, batch_size

    def __len__(self) -> int:
        return -(-len(self.features) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, range]]:
        for start in range(0, len(self.features), self.batch_size):
            indices = range(start, min(start + self.batch_size, len(self.features)))
            # A copy, since the features may be a read-only map of a file.
            yield torch.from_numpy(np.array(self.features[start : indices.stop])), indices
