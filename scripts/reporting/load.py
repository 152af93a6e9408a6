"""Load the results of finished runs as one pandas frame."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from common.errors import UserError
from common.run import BASE_TO_NEW, RESULTS_FILE, Result, read_results
from trainers.methods import METHODS


def load_results(folders: Iterable[str | Path]) -> pd.DataFrame:
    """Load the results.json files below folders, in the order of trainers.methods.METHODS; see `make_frame`."""
    paths: dict[Path, Path] = {}
    for folder in map(Path, folders):
        found = sorted(folder.rglob(RESULTS_FILE))
        if not found:
            problem = f"no finished run (no {RESULTS_FILE}) is in it" if folder.is_dir() else "there is no such folder"
            raise UserError(f"{folder}: {problem}. Name the output folder of a launcher or of train.py.")
        for path in found:
            paths.setdefault(path.resolve(), path)
    order = {method.trainer: i for i, method in enumerate(METHODS)}
    runs = [{**_read_run(path), "folder": str(path.parent), "written": path.stat().st_mtime} for path in paths.values()]
    return make_frame(sorted(runs, key=lambda run: order.get(run["trainer"], len(order))))


def make_frame(runs: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Make the frame of results: one row for each run and each table column that it has.

    Columns are the keys of `Result`, "folder", and "written", the time of results.json; "title" of the table, "method"
    (its row), "column", "value" (accuracy in %), and "targets", one text for all columns of the run.
    """
    rows = []
    for run in runs:
        columns = accuracy_by_column(run)
        targets = next(iter(columns)) if len(columns) == 1 else f"{'+'.join(run['source_domains'])} → others"
        names = {"title": table_title(run), "method": method_name(run), "targets": targets}
        run = {**run, **names, "classnames": tuple(run["classnames"])}  # a list cannot be the key of a group
        rows += [{**run, "column": column, "value": value} for column, value in columns.items()]
    frame = pd.DataFrame(rows, dtype=object)  # None stays None, and integers stay integers
    return frame.astype({"value": float})


def _read_run(path: Path) -> dict[str, Any]:
    try:
        run = asdict(TypeAdapter(Result).validate_python(read_results(path)))
    except ValidationError as error:
        (first, *_) = error.errors()
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {key}: {first['msg']}. Delete the file and run its command again.") from error
    accuracies = accuracy_by_column(run).values()
    if not accuracies or not all(0 <= value <= 100 for value in accuracies):
        raise UserError(f"{path}: an accuracy is not in 0 to 100 %. Delete the file and run its command again.")
    return run


def method_name(run: dict[str, Any]) -> str:
    """The row of a run in its table: "SPG", or "SPG (pacs)" for a config other than default."""
    return run["trainer"] if run["config"] in ("", "default") else f"{run['trainer']} ({run['config']})"


def accuracy_by_column(run: dict[str, Any]) -> dict[str, float]:
    """The columns of a run in its table, with its accuracy (%) in each; NaN if it is missing."""
    if run["protocol"] == "single-source":
        source, accuracies = "+".join(run["source_domains"]), run["accuracy_by_domain"]
        return {f"{source} → {target}": accuracies.get(target, float("nan")) for target in run["target_domains"]}
    columns = {BASE_TO_NEW: run["class_subset"], "cross-dataset": run["dataset"]}
    return {columns.get(run["protocol"], "+".join(run["target_domains"])): run["accuracy"]}


def table_title(run: dict[str, Any]) -> str:
    data = run["dataset"]
    if run["protocol"] == "cross-dataset":
        data = f"trained on {run['trained_on'] or 'nothing'}"
    if run["protocol"] == BASE_TO_NEW and not set(run["target_domains"]) <= set(run["source_domains"]):
        data += f" ({'+'.join(run['target_domains'])})"
    return f"{data}, {run['backbone']}, {run['protocol']}"
