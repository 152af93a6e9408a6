"""Results for each image of a run: predictions.csv, logits.npy, and contexts.npz of generators."""

import csv
import io
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import atomic_write

PREDICTIONS_FILE = "predictions.csv"
LOGITS_FILE = "logits.npy"  # float16 (N, C): logits minus the row's maximum, in the order of predictions.csv
CONTEXTS_FILE = "contexts.npz"
COLUMNS = ("path", "domain", "label", "prediction", "confidence")


def prediction_rows(
    dataset: Any, root: str, predicted: Sequence[int], confidence: Sequence[float]
) -> list[dict[str, Any]]:
    """One dict with COLUMNS for each of the N test images; paths below DATASET.ROOT are relative to it."""
    root = os.path.abspath(os.path.expanduser(root))
    names, rows = dataset.classnames, []
    for item, label, probability in zip(dataset.test, predicted, confidence, strict=True):
        path = os.path.abspath(item.impath).removeprefix(root + os.sep)
        domain = dataset.domains[item.domain]
        rows.append(dict(zip(COLUMNS, (path, domain, names[item.label], names[label], probability), strict=True)))
    return rows


def accuracy_by_domain(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Accuracy in percent of each domain in rows of predictions."""
    right: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        right[row["domain"]].append(row["label"] == row["prediction"])
    return {domain: 100.0 * sum(values) / len(values) for domain, values in sorted(right.items())}


def write_predictions(folder: str | os.PathLike, rows: Iterable[dict[str, Any]]) -> None:
    """Write <folder>/predictions.csv atomically."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows({**row, "confidence": f"{row['confidence']:.4f}"} for row in rows)
    with atomic_write(Path(folder) / PREDICTIONS_FILE) as handle:
        # File names may be any bytes.
        handle.write(text.getvalue().encode("utf-8", "surrogateescape"))


def write_logits(folder: str | os.PathLike, logits: np.ndarray) -> None:
    """Write logits (N, C) to <folder>/logits.npy atomically, in half precision."""
    with atomic_write(Path(folder) / LOGITS_FILE) as handle:
        np.save(handle, logits.astype(np.float16), allow_pickle=False)


def read_predictions(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read one predictions.csv; raises UserError if it is missing or damaged."""
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as handle:
            reader = csv.DictReader(handle)
            rows: list[dict[str, Any]] = [{**row, "confidence": float(row["confidence"])} for row in reader]
        if tuple(reader.fieldnames or ()) != COLUMNS or not all(math.isfinite(row["confidence"]) for row in rows):
            raise ValueError("it has other columns, or a confidence is not finite")
        return rows
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path} holds no predictions: {error}. Delete its run and start it again.") from error


@dataclass(frozen=True)
class Contexts:
    """Generated contexts of N images, and the L prompt labels of the training (0 in tests of another run's model)."""

    contexts: np.ndarray  # (N, n_ctx, D) float16, generated
    domains: np.ndarray  # (N,) domain names of their images
    splits: np.ndarray  # (N,) "val" (images of source domains) or "test" (of target domains)
    labels: np.ndarray  # (L, n_ctx, D) float16 prompt labels
    label_domains: np.ndarray  # (L,) their domain names


def write_contexts(folder: str | os.PathLike, contexts: Contexts) -> None:
    """Write <folder>/contexts.npz atomically."""
    numbers = {"contexts": np.float16(contexts.contexts), "labels": np.float16(contexts.labels)}
    with atomic_write(Path(folder) / CONTEXTS_FILE) as handle:
        np.savez_compressed(handle, **{**contexts.__dict__, **numbers})


def read_contexts(path: str | os.PathLike) -> Contexts:
    """Read one contexts.npz without running code; raises UserError if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = Contexts(**{name: archive[name] for name in Contexts.__dataclass_fields__})
        if not np.isfinite(found.contexts).all() or found.labels.shape[1:] != found.contexts.shape[1:]:
            raise ValueError("its contexts are not finite or do not match its labels")
        return found
    except Exception as error:  # NumPy's reader raises many kinds of exceptions
        raise UserError(f"{path} holds no contexts: {error}. Delete it, and plots leave out its contexts.") from error
