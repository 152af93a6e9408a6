"""The one loop that classifies images by their features, its predictions, and their metrics."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.interruption import check_interruption
from trainers.modules.tensor_files import all_finite

Indices = TypeVar("Indices", bound=Sequence[int])
# Features (B, E) and the indices of their images -> logits (B, C).
Classifier = Callable[[Tensor, Sequence[int]], Tensor]
CALIBRATION_BINS = 15
LIKELY_CAUSES = "Most likely the learning rate is too high (OPTIM.LR), or half precision overflows (PREC fp32)."


@torch.no_grad()
def classify(
    batches: Iterable[tuple[Tensor, Indices]],
    classifier: Classifier,
    device: torch.device,
    describe: Callable[[Indices], str],
    allow_neg_inf: bool = False,
) -> Iterator[tuple[Indices, Tensor]]:
    """Yield indices and logits (B, C) of each batch; raise UserError if logits are not finite.

    Args:
        batches: features (B, E) and the B indices that seed the images' noise.
        describe: names the images of a batch, "images 1 to 100 of the test split", for errors.
        allow_neg_inf: logits may be -inf, for instance a linear probe's for classes without training images.
    """
    for features, indices in batches:
        check_interruption()
        features = features.to(device)
        logits = classifier(features, indices)
        if not all_finite(logits.amax(dim=-1) if allow_neg_inf else logits):
            raise UserError(f"The logits of {describe(indices)} are not finite. {LIKELY_CAUSES}")
        yield indices, logits


def feature_batches(features: np.ndarray, batch_size: int) -> Iterator[tuple[Tensor, range]]:
    """Features (N, E) of a split in batches, each with the range of its indices."""
    for start in range(0, len(features), batch_size):
        indices = range(start, min(start + batch_size, len(features)))
        # A copy: the features may be a read-only memory map.
        yield torch.from_numpy(np.array(features[start : indices.stop])), indices


@dataclass
class Predictions:
    """Predictions for N images, in the data set's order."""

    labels: Tensor  # (N,)
    confidence: Tensor  # (N,) probabilities of these labels
    logits: Tensor  # (N, C) minus each row's maximum, in half precision

    @classmethod
    def of(cls, logits: Tensor) -> "Predictions":
        # By the logits, as the evaluator predicts: the probabilities of two nearly equal logits may be equal.
        predicted = logits.argmax(dim=-1)
        # In half precision large logits tie. Their differences to the row's maximum do not: the prediction has 0, and
        # every other class at most the negative half nearest to 0. A class without training images has -inf.
        below = (logits.float() - logits.float().amax(dim=-1, keepdim=True)).clamp(
            torch.finfo(torch.half).min, -(2**-24)
        )
        below = torch.where(logits.isneginf(), -torch.inf, below).scatter(-1, predicted[:, None], 0)
        return cls(predicted, logits.softmax(dim=-1).amax(dim=-1), below.half())

    @classmethod
    def joined(cls, parts: Sequence["Predictions"]) -> "Predictions":
        columns = zip(*((part.labels, part.confidence, part.logits) for part in parts), strict=True)
        return cls(*(torch.cat(column).cpu() for column in columns))


@dataclass
class Evaluation:
    """Metrics (name -> value, among them accuracy and macro_f1 in percent) and predictions of a split."""

    metrics: dict[str, float]
    predictions: Predictions


def finite_metrics(found: Any, labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The finite metrics of an evaluator's result; accuracy and macro F1 are added if missing."""
    if not isinstance(found, Mapping):
        raise UserError(f"TEST.EVALUATOR: evaluate() returned a {type(found).__name__}. Return a dict of numbers.")
    metrics = {"accuracy": 100 * float(np.mean(labels == predicted)), "macro_f1": macro_f1(labels, predicted)}
    for name, value in found.items():
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
        if math.isfinite(number):
            metrics[str(name)] = number
        else:
            print(f"Note: the metric {name} is no finite number, so it is not used.")
    return metrics


# These metrics are scikit-learn's, without its import of a second in every run.


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean F1 in percent over the classes among the labels (N,), as Dassl's evaluator."""
    n = 1 + max(labels.max(), predicted.max())
    right, n_true, n_predicted = (np.bincount(x, minlength=n) for x in (labels[labels == predicted], labels, predicted))
    occurs = n_true > 0
    return 100 * float(np.mean(2 * right[occurs] / (n_true + n_predicted)[occurs]))


def accuracy_by_class(labels: np.ndarray, predicted: np.ndarray, classnames: list[str]) -> dict[str, float | None]:
    """Recall of each class in percent; None for a class without images."""
    right = labels == predicted
    return {
        name: 100 * float(np.mean(right[labels == label])) if label in labels else None
        for label, name in enumerate(classnames)
    }


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error in percent: |accuracy - confidence| over 15 equal bins (Guo et al., 2017)."""
    bins = np.searchsorted(np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1], confidence)
    # |accuracy - confidence| of a bin times its number of images
    gaps = np.abs(np.bincount(bins, weights=right) - np.bincount(bins, weights=confidence))
    return 100 * float(gaps.sum() / len(right))
