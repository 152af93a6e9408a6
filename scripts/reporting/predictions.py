"""Confusion and misclassified images, from the predictions.csv of runs."""

import base64
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from common.errors import UserError
from common.image_results import PREDICTIONS_FILE, read_predictions
from common.startup import REPOSITORY

THUMBNAIL = 128  # pixels


def load_predictions(runs: pd.DataFrame, skipped: list[str]) -> pd.DataFrame:
    """Load predictions.csv of runs: its columns, and "method" and "folder". Unreadable files go to `skipped`."""
    frames = [pd.DataFrame(columns=["path", "domain", "label", "prediction", "confidence", "method", "folder"])]
    for method, folder in zip(runs["method"], runs["folder"], strict=True):
        try:
            rows = read_predictions(Path(folder) / PREDICTIONS_FILE)
        except UserError as error:
            skipped.append(str(error))
            continue
        frames.append(pd.DataFrame(rows, dtype=object).assign(method=method, folder=folder))
    return pd.concat(frames, ignore_index=True)


def count_confusions(rows: pd.DataFrame, classnames: Sequence[str]) -> pd.DataFrame:
    """Counts (C, C): images of class i with prediction j; rows of other classes are left out."""
    names = list(classnames)
    return pd.crosstab(rows["label"], rows["prediction"]).reindex(index=names, columns=names, fill_value=0)


def most_confused(counts: pd.DataFrame, n: int) -> pd.DataFrame:
    """The n most frequent confusions: class, prediction, times, and % of the images of the class."""
    wrong, total = counts.to_numpy(copy=True), counts.to_numpy().sum(axis=1)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:n]
    i, j = np.unravel_index(order[wrong.flat[order] > 0], wrong.shape)
    shares = 100 * wrong[i, j] / total[i]
    return pd.DataFrame(
        {"class": counts.index[i], "prediction": counts.columns[j], "times": wrong[i, j], "% of the class": shares}
    )


def most_often_wrong(rows: pd.DataFrame, n: int) -> pd.DataFrame:
    """The n images that the largest share of runs classifies wrongly; ties: more runs, then higher confidence.

    "tested" and "wrong" are numbers of runs, "answers" texts by method, "jpeg" is a thumbnail in base64 or None.
    """
    is_wrong = rows["prediction"] != rows["label"]
    rows = rows.assign(wrong=is_wrong, confidence=rows["confidence"].where(is_wrong, 0).astype(float))
    groups = rows.groupby(["path", "domain", "label"], sort=False)
    images = groups.agg(
        tested=("wrong", "size"), wrong=("wrong", "sum"), sure=("confidence", "sum"), folder=("folder", "first")
    )
    images = images[images["wrong"] > 0].assign(right=1 - images["wrong"] / images["tested"]).reset_index()
    order = ["right", "wrong", "sure", "domain", "path"]
    images = images.sort_values(order, ascending=[True, False, False, True, True]).head(n)
    answers, thumbnails = [], []
    for image in images.itertuples():
        own = groups.get_group((image.path, image.domain, image.label)).groupby("method", sort=False)["prediction"]
        counts = {method: (len(found), Counter(found).most_common()) for method, found in own}
        answers.append(
            {m: ", ".join(f"{name} {n}/{total}" for name, n in found) for m, (total, found) in counts.items()}
        )
        thumbnails.append(make_thumbnail(image.folder, image.path))
    return images.assign(answers=answers, jpeg=pd.Series(thumbnails, images.index, dtype=object))


def make_thumbnail(folder: str, path: str) -> str | None:
    """A small JPEG of a test image of a run in base64; None if the image cannot be read."""
    try:
        config = yaml.safe_load(Path(folder, "config.yaml").read_text(encoding="utf-8"))
        root = os.path.expanduser(config["DATASET"]["ROOT"])
        # A relative DATASET.ROOT starts in this folder or in the repository.
        file = next(filter(os.path.isfile, (start / root / path for start in (Path.cwd(), REPOSITORY))))
        with Image.open(file) as opened:
            if opened.mode in ("I", "F") or opened.mode.startswith("I;16"):  # more than 8 bits
                from dassl.utils import read_image  # imports PyTorch, which takes seconds

                image = read_image(str(file))
            else:
                image = opened.convert("RGB")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
    except Exception:  # damaged configs and images raise many kinds of exceptions
        return None
    return base64.b64encode(buffer.getvalue()).decode()
