"""Metrics of an evaluation: those of its evaluator, and those that are always there."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, f1_score, recall_score

from common.errors import UserError

CALIBRATION_BINS = 15


def measured(found: Any, labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """The metrics of an evaluation, by name, of which accuracy and macro F1 are always there.

    Args:
        found: what the evaluator returned; what is no finite number in it is left out, and that is said.
        labels, predicted: (N,) each.

    Raises:
        UserError: it returned something else than values by name.
    """
    if not isinstance(found, Mapping):
        raise UserError(
            f"The evaluator (TEST.EVALUATOR) returned a {type(found).__name__}; evaluate() has to return a dict from "
            "the names of metrics to numbers."
        )
    metrics: dict[str, float] = {}
    for name, value in found.items():
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
        if math.isfinite(number):
            metrics[str(name)] = number
        else:
            print(f"Note: the metric {name} is no finite number ({type(value).__name__}), so it is not recorded.")
    if "accuracy" not in metrics:
        metrics["accuracy"] = 100 * float(accuracy_score(labels, predicted))
    if "macro_f1" not in metrics:
        metrics["macro_f1"] = macro_f1(labels, predicted)
    return metrics


def macro_f1(labels: np.ndarray, predicted: np.ndarray, of_labels: bool = True) -> float:
    """Mean F1 in percent over the classes that occur among the labels (N,), as Dassl's.

    Args:
        of_labels: False: over those that occur among labels or predictions, which is scikit-learn's default.
    """
    classes = np.unique(labels) if of_labels else None
    return 100 * float(f1_score(labels, predicted, labels=classes, average="macro", zero_division=0))


def accuracy_by_class(labels: np.ndarray, predicted: np.ndarray, classnames: list[str]) -> dict[str, float | None]:
    """Share of each class's images (N labels and predictions) that were recognised, in percent; None without images."""
    recalls = recall_score(labels, predicted, labels=range(len(classnames)), average=None, zero_division=np.nan)
    return {
        name: None if np.isnan(recall) else 100 * float(recall)
        for name, recall in zip(classnames, recalls, strict=True)
    }


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error in percent: |accuracy - confidence| over 15 equal bins (Guo et al., 2017).

    Args:
        confidence: N probabilities of what was predicted.
        right: N booleans: whether it was right.
    """
    accuracies, confidences = calibration_curve(right, confidence, n_bins=CALIBRATION_BINS)  # of bins with images
    inner = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    counts = np.bincount(np.searchsorted(inner, confidence), minlength=CALIBRATION_BINS)
    return 100 * float(np.average(np.abs(accuracies - confidences), weights=counts[counts > 0]))
