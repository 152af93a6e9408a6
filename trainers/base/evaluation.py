"""The one loop over images that classifies, their features -> logits, batch by batch; and what comes out of a split."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.interruption import check_interruption
from common.progress import progress
from trainers.base.metrics import measured
from trainers.base.not_finite import why_not_finite
from trainers.base.run_record import Said, Tested
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


def evaluate(trainer: Any, split: str) -> tuple[Mapping[str, Any], Tested]:
    """Classify the images of a split, "val" or "test".

    Returns:
        (what the trainer's evaluator returned, what came out in all).

    Raises:
        UserError: logits are not finite, or the evaluator does not return metrics by name.
    """
    trainer.set_model_mode("eval")
    trainer.evaluator.reset()
    loader = trainer.val_loader if split == "val" else trainer.test_loader
    features = trainer.image_features.of_split(loader, split)
    items = loader.dataset.data_source
    labels = torch.tensor([item.label for item in items])
    batches, predicted, said = FeatureBatches(features, loader.batch_size), [], []

    def explain(features: Tensor, indices: range) -> str:
        domains = sorted({trainer.dm.dataset.domains[items[i].domain] for i in indices})
        when = f" after epoch {trainer.epoch + 1}" if split == "val" else ""
        images = f"images {indices.start + 1} to {indices.stop} of the {split} split ({', '.join(domains)}){when}"
        return why_not_finite(trainer, images, features, indices)

    device, unseen = trainer.device, bool(trainer.MINUS_INFINITY)
    # Loader workers wait meanwhile.
    with trainer.threads.all(), progress(batches, description=f"Classifying {split}", unit="batch") as bar:
        for indices, logits in classify(bar, trainer.classifier(), device, explain, unseen):
            trainer.evaluator.process(logits, labels[indices.start : indices.stop].to(device))
            predicted.append(logits.argmax(dim=-1))
            if split == "test":
                said.append(Said.of(logits))
    found = trainer.evaluator.evaluate()
    metrics = measured(found, labels.numpy(), torch.cat(predicted).cpu().numpy())
    return found, Tested(metrics, Said.joined(said))
