"""predictions.csv: what a run's model said of each test image."""

import csv
import io
import os
from collections import defaultdict
from pathlib import Path

from common.errors import UserError
from common.files import atomic_write

PREDICTIONS_FILE = "predictions.csv"
COLUMNS = ("path", "domain", "label", "prediction", "confidence")


def prediction_rows(dataset, root, predicted, confidence):
    """One dict with COLUMNS for each test image.

    Args:
        dataset: DomainGeneralizationDataset.
        root: DATASET.ROOT; paths below it are given relative to it.
        predicted: N labels.
        confidence: N probabilities of these.
    """
    root = os.path.abspath(os.path.expanduser(root))
    names = dataset.classnames
    rows = []
    for item, label, probability in zip(dataset.test, predicted, confidence, strict=True):
        path = os.path.abspath(item.impath)
        if path.startswith(root + os.sep):
            path = path[len(root) + 1 :]
        domain = dataset.domains[item.domain]
        rows.append(dict(zip(COLUMNS, (path, domain, names[item.label], names[label], probability), strict=True)))
    return rows


def accuracy_by_domain(rows):
    """Accuracy in percent of each domain that occurs in rows of predictions."""
    right = defaultdict(list)
    for row in rows:
        right[row["domain"]].append(row["label"] == row["prediction"])
    return {domain: 100.0 * sum(values) / len(values) for domain, values in sorted(right.items())}


def write_predictions(folder, rows):
    """Write rows to <folder>/predictions.csv, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows({**row, "confidence": f"{row['confidence']:.4f}"} for row in rows)
    with atomic_write(Path(folder) / PREDICTIONS_FILE) as handle:
        # File names may be any bytes.
        handle.write(text.getvalue().encode("utf-8", "surrogateescape"))


def read_predictions(path):
    """Read rows of one predictions.csv.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as handle:
            reader = csv.DictReader(handle)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(f"its columns are {reader.fieldnames}")
            return [{**row, "confidence": float(row["confidence"])} for row in reader]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} holds no predictions: {error}. Delete its run and start that again.") from error
