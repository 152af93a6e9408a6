"""results.json: the results of a finished run. A run is finished when this file exists."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.files import read_json, write_json

if TYPE_CHECKING:
    from yacs.config import CfgNode

RESULTS_FILE = "results.json"
BASE_TO_NEW = "base-to-new"


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

    None: `trained_on`, `model_dir`, `load_epoch` of a run that tests its own model; `data_fingerprint`, `selection` of
    a method that learns nothing; `val_accuracy`, `best_epoch` without selection; `n_trained` if it is unknown.
    """

    trainer: str  # trainer and config are a row of a table
    config: str  # name of the method's config file
    dataset: str
    backbone: str  # the CLIP in tables
    backbone_sha256: str = _shared("table", "other backbone weights under the same name")
    backbone_name: str  # as the user named it
    backbone_family: str  # its publisher
    precision: str = _shared("table", "another precision")
    protocol: str  # see protocol_name
    trained_on: str | None  # data set of the training
    model_dir: str | None  # folder of the tested model's run
    load_epoch: int | None  # epoch of the tested model
    source_domains: list[str]
    target_domains: list[str]
    class_subset: str  # tested classes: "all", "base" or "new"
    test_subset: str = _shared("table", "another test subset")
    # Training images of each class and domain; -1: all.
    num_shots: int | str = _shared("table", "another number of shots")
    classnames: list[str] = _shared("column", "other class names")
    # Hash of training and validation images and their split.
    data_fingerprint: str | None = _shared("split", "other images or another split of them")
    split_by_seed: bool  # the training split depends on the seed: few shots, or a split file for each seed
    test_fingerprint: str = _shared("column", "other test images")
    domain_fingerprints: dict[str, str]  # hash of each domain's images; {} for few shots and for parts of domains
    # Hash of all settings that change numbers; equal over data, domains, seeds and backbones.
    settings_sha256: str = _shared("row", "other settings")
    # TEST.FINAL_MODEL, or "epoch 5".
    selection: str | None = _shared("table", "another selection of the model")
    seed: int
    accuracy: float
    macro_f1: float
    accuracy_by_domain: dict[str, float]
    accuracy_by_class: dict[str, float | None]
    calibration_error: float  # expected calibration error: 15 bins, L1
    metrics: dict[str, float]  # all metrics of the evaluator
    n_test: int
    val_accuracy: float | None  # of the selected epoch
    best_epoch: int | None  # the selected epoch, from 1
    val_history: list[float | None]  # of each epoch
    loss_history: list[dict[str, float]]  # of each epoch
    n_trained: list[int] | None  # trainable parameters, stage by stage; []: the method learns nothing
    seconds: float = _circumstance()  # duration of the run
    # Duration of training and validation, with reused prompt labels, without interruptions.
    train_seconds: float | None = _circumstance()
    train_reused: list[str] = _circumstance()  # results of earlier runs that train_seconds lacks: "image features"
    threads: int = _circumstance()
    threads_alone: int = _circumstance()  # see common/threads.py
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
    """Read one results.json: the keys of `Result`; raises UserError if it is damaged."""
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no results file: {error}. Delete it and run its command again.") from error


def protocol_name(
    sources: Sequence[str], targets: Sequence[str], is_other_dataset: bool = False, is_base_to_new: bool = False
) -> str:
    """The protocol of a run; `is_base_to_new`: the model was trained on the base classes only."""
    if is_other_dataset:
        return "cross-dataset"
    if is_base_to_new:
        return BASE_TO_NEW
    if set(targets) <= set(sources):
        return "in-domain"
    return "single-source" if len(sources) == 1 else "multi-source"


def class_subset(cfg: "CfgNode") -> str:
    """The classes of a run: "all", "base" or "new"."""
    return getattr(cfg.DATASET, "SUBSAMPLE_CLASSES", "all")


def dataset_label(cfg: "CfgNode") -> str:
    """The data set's name in folders: "SPG_PACS" -> "PACS"; a FolderDG has its folder's name, or DATASET.LABEL."""
    name = cfg.DATASET.NAME.removeprefix("SPG_")
    folder = Path(cfg.DATASET.ROOT).resolve().name if name == "FolderDG" else name
    return getattr(cfg.DATASET, "LABEL", "") or folder
