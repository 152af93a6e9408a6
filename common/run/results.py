"""results.json: the results of a finished run. A run is finished when this file exists."""

from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, write_json

RESULTS_FILE = "results.json"


def _shared(over: str, otherwise: str) -> Any:
    """A key that must be equal over the table, a row, a column, or a split; `otherwise` marks a cell that differs.

    "split" is a column, or one seed of a column if the training split depends on the seed.
    """
    return field(metadata={"over": over, "otherwise": otherwise})


def _circumstance() -> Any:
    """A key that may differ between two equal runs, and that may explain a difference."""
    return field(metadata={"circumstance": True})


@dataclass(frozen=True, kw_only=True)
class Result:
    """The keys of results.json. Hashes are hexadecimal; accuracies, F1 and calibration error are in percent.

    Attributes:
        trainer, config: the method and its config file, together a row of a table.
        backbone, backbone_name, backbone_family: the CLIP in tables, as the user named it, and its publisher.
        protocol: "multi-source", "single-source", "cross-dataset", "base-to-new" or "in-domain".
        trained_on: data set of the training, if the test uses another one; else None.
        model_dir, load_epoch: run and epoch of the tested model; None: this run's own.
        class_subset: tested classes: "all", "base" or "new".
        num_shots: training images of each class and domain; -1: all.
        data_fingerprint: hash of training and validation images and their split; None: the method learns nothing.
        split_by_seed: the training split depends on the seed: few shots, or a split file for each seed.
        domain_fingerprints: hash of each domain's images; {} for few shots and for sets with parts of domains.
        settings_sha256: hash of all settings that change numbers; equal over data, domains, seeds and backbones.
        selection: TEST.FINAL_MODEL, or "epoch 5"; None: the method learns nothing.
        calibration_error: expected calibration error: 15 bins, L1.
        metrics: all metrics of the evaluator.
        best_epoch, val_accuracy: the selected epoch, from 1, and its accuracy; None: no selection.
        val_history, loss_history: of each epoch.
        n_trained: numbers of trainable parameters, stage by stage; []: the method learns nothing; None: unknown.
        seconds: duration of the run.
        train_seconds: duration of training and validation, with reused prompt labels, without interruptions.
        train_reused: results of earlier runs that are missing in train_seconds: "image features".
        threads_alone, threads_beside_workers: see common/threads.py.
    """

    trainer: str
    config: str
    dataset: str
    backbone: str
    backbone_sha256: str = _shared("table", "other backbone weights under the same name")
    backbone_name: str
    backbone_family: str
    precision: str = _shared("table", "another precision")
    protocol: str
    trained_on: str | None
    model_dir: str | None
    load_epoch: int | None
    source_domains: list[str]
    target_domains: list[str]
    class_subset: str
    test_subset: str = _shared("table", "another test subset")
    num_shots: int | str = _shared("table", "another number of shots")
    classnames: list[str] = _shared("column", "other class names")
    data_fingerprint: str | None = _shared("split", "other images or another split of them")
    split_by_seed: bool
    test_fingerprint: str = _shared("column", "other test images")
    domain_fingerprints: dict[str, str]
    settings_sha256: str = _shared("row", "other settings")
    selection: str | None = _shared("table", "another selection of the model")
    seed: int
    accuracy: float
    macro_f1: float
    accuracy_by_domain: dict[str, float]
    accuracy_by_class: dict[str, float | None]
    calibration_error: float
    metrics: dict[str, float]
    n_test: int
    val_accuracy: float | None
    best_epoch: int | None
    val_history: list[float | None]
    loss_history: list[dict[str, float]]
    n_trained: list[int] | None
    seconds: float = _circumstance()
    train_seconds: float | None = _circumstance()
    train_reused: list[str] = _circumstance()
    threads: int = _circumstance()
    threads_alone: int = _circumstance()
    threads_beside_workers: int = _circumstance()
    revision: str | None = _circumstance()
    versions: dict[str, str | None] = _circumstance()


# Shared keys: (mark of a cell that differs, range over which they are shared).
SHARED = {f.name: (f.metadata["otherwise"], f.metadata["over"]) for f in fields(Result) if "over" in f.metadata}
TIMES = ("seconds", "train_seconds", "train_reused")  # circumstances that explain nothing
CIRCUMSTANCES = tuple(f.name for f in fields(Result) if f.metadata.get("circumstance"))


def write_results(folder: str | PathLike, results: dict[str, Any]) -> None:
    """Write the keys of a `Result` to <folder>/results.json; raises UserError if a number is not finite."""
    path = Path(folder) / RESULTS_FILE
    try:
        write_json(path, results)
    except ValueError as error:
        raise UserError(f"{path} is not written, since a result is not finite ({error}). See log.txt.") from error


def read_results(path: str | PathLike) -> dict[str, Any]:
    """Read one results.json: the keys of `Result`.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no results file: {error}. Delete it and run its command again.") from error
