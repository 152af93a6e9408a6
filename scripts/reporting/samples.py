"""What predictions.csv files tell: which classes are taken for which, and which images most runs get wrong."""

import base64
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from common.errors import UserError
from common.run.predictions import PREDICTIONS_FILE, read_predictions
from common.startup import REPOSITORY
from scripts.reporting.tables import Results, method_name

THUMBNAIL = 128  # pixels

Predictions = Iterable[tuple[Results, list[dict[str, Any]]]]  # runs with the rows of their predictions.csv


@dataclass
class Sample:
    """A test image and what runs said of it.

    Attributes:
        path, domain, label: as in predictions.csv.
        tested, wrong: how many runs tested it, and were wrong.
        sure: sum of the wrong ones' confidences.
        said: dict from a method to a Counter of its seeds' predictions.
        folder: of one of these runs.
    """

    path: str
    domain: str
    label: str
    tested: int = 0
    wrong: int = 0
    sure: float = 0.0
    said: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    folder: str = ""


def predictions_of(runs: Iterable[Results], skipped: list[str]) -> list[tuple[Results, list[dict[str, Any]]]]:
    """(run, rows) of all runs whose predictions can be read; why others cannot is added to `skipped`."""
    found = []
    for run in runs:
        try:
            found.append((run, read_predictions(Path(run["folder"]) / PREDICTIONS_FILE)))
        except UserError as error:
            skipped.append(str(error))
    return found


def confusion(predictions: Predictions, classnames: Sequence[str]) -> np.ndarray:
    """(C, C) counts over all rows: [i, j] images of class i that were taken for j; other names are left out."""
    index = {name: i for i, name in enumerate(classnames)}
    counts = np.zeros((len(classnames), len(classnames)), int)
    for _, rows in predictions:
        for row in rows:
            if row["label"] in index and row["prediction"] in index:
                counts[index[row["label"]], index[row["prediction"]]] += 1
    return counts


def most_confused(counts: np.ndarray, classnames: Sequence[str], n: int) -> list[tuple[str, str, int, float]]:
    """The n pairs that are mixed up most: (class, taken for, times, % of the class's images)."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:n]
    pairs = [divmod(int(flat), len(classnames)) for flat in order]
    return [
        (classnames[i], classnames[j], int(wrong[i, j]), 100 * wrong[i, j] / counts[i].sum())
        for i, j in pairs
        if wrong[i, j]
    ]


def most_often_wrong(predictions: Predictions, n: int) -> list[Sample]:
    """The n Samples that the largest share of their runs got wrong; of equal shares, where more runs were surer."""
    samples: dict[tuple[str, str, str], Sample] = {}
    for run, rows in predictions:
        for row in rows:
            key = row["domain"], row["path"], row["label"]
            sample = samples.setdefault(key, Sample(row["path"], row["domain"], row["label"], folder=run["folder"]))
            sample.tested += 1
            if row["prediction"] != row["label"]:
                sample.wrong += 1
                sample.sure += row["confidence"]
            sample.said[method_name(run)][row["prediction"]] += 1
    wrong = [sample for sample in samples.values() if sample.wrong]
    return sorted(wrong, key=lambda s: (-s.wrong / s.tested, -s.wrong, -s.sure, s.domain, s.path))[:n]


def find_image(sample: Sample) -> Path | None:
    """The file of a sample; None if it is not where its run read it.

    Paths are relative to the DATASET.ROOT of the run's config.yaml, and that to where the run was started: here, or
    the repository.
    """
    try:
        config = yaml.safe_load(Path(sample.folder, "config.yaml").read_text(encoding="utf-8"))
        root = os.path.expanduser(config["DATASET"]["ROOT"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        root = ""
    for start in (Path.cwd(), REPOSITORY):
        path = start / root / sample.path
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # no name of a file at all
            pass
    return None


def thumbnail(path: Path) -> str | None:
    """A small JPEG of an image file, in base64; None if the file cannot be read as an image."""
    try:
        with Image.open(path) as opened:
            more_bits = opened.mode in ("I", "F") or opened.mode.startswith("I;16")
            image = _as_in_training(path) if more_bits else opened.convert("RGB")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
    except Exception:  # damaged images end in any kind of exception
        return None
    return base64.b64encode(buffer.getvalue()).decode()


def _as_in_training(path: Path) -> Image.Image:
    from dassl.utils import read_image  # with which PyTorch comes, for seconds

    return read_image(str(path))
