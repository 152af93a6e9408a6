"""The records in a run's folder: run.json from its start, and results.json, which exists when the run is finished."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.files import hash_json, read_json, write_json

if TYPE_CHECKING:
    from yacs.config import CfgNode

RECORD_FILE = "run.json"
RESULTS_FILE = "results.json"
BASE_TO_NEW = "base-to-new"
# Keys with hashes, which messages leave out.
HASHES = ("training images", "validation images", "test images", "backbone weights", "prompt labels")


def _shared(over: str, otherwise: str) -> Any:
    """A key that must be equal over a table, row, column or split; `otherwise` marks a cell that differs.

    A split is a column, or one seed of a column if the training split depends on the seed.
    """
    return field(metadata={"over": over, "otherwise": otherwise})


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
    seconds: float  # duration of the run
    # Duration of training and validation, with reused prompt labels, without interruptions.
    train_seconds: float | None
    train_reused: list[str]  # results of earlier runs that train_seconds lacks: "image features"
    threads: int
    revision: str | None
    versions: dict[str, str | None]


# Shared keys: (mark of a cell that differs, range over which they are shared).
SHARED = {f.name: (f.metadata["otherwise"], f.metadata["over"]) for f in fields(Result) if "over" in f.metadata}
TIMES = ("seconds", "train_seconds", "train_reused")
# Keys that may differ between two equal runs. All but the times may explain other numbers.
CIRCUMSTANCES = (*TIMES, "threads", "revision", "versions")


def write_results(folder: str | PathLike, results: dict[str, Any]) -> None:
    """Write the keys of a `Result` to <folder>/results.json; raises UserError if a number is not finite."""
    write_json(Path(folder) / RESULTS_FILE, results)


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


def dataset_name(cfg: "CfgNode") -> str:
    """The data set's name in folders: "SPG_PACS" -> "PACS"; a FolderDG has its folder's name, or DATASET.LABEL."""
    name = cfg.DATASET.NAME.removeprefix("SPG_")
    folder = Path(cfg.DATASET.ROOT).resolve().name if name == "FolderDG" else name
    return getattr(cfg.DATASET, "LABEL", "") or folder


@dataclass
class RunRecord:
    """The record of a run, written before training and after each epoch."""

    # Settings, data, weights, seed: values that must be equal to continue the run; None: unknown.
    identity: dict[str, Any]
    places: dict[str, Any] = field(default_factory=dict)  # settings of the data set, and location of the weights
    threads: int | None = None
    versions: dict[str, str | None] = field(default_factory=dict)  # of Python and packages
    history: list[dict[str, Any]] = field(default_factory=list)  # an entry for each completed epoch
    training: dict[str, Any] | None = None  # keys of results.json on the training; None before it has ended

    def write(self, folder: str | PathLike) -> None:
        """Write <folder>/run.json; raises UserError if a number is not finite."""
        write_json(Path(folder) / RECORD_FILE, {"hash": hash_json(self.identity), **asdict(self)})


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The values that differ between a file and this run; "" if none does. Unknown values (None) do not differ."""
    here = json.loads(json.dumps(here))  # tuples become lists, as in the file
    differing = []
    for key, value in sorted(there.items()):
        if None not in (value, here.get(key)) and value != here[key]:
            differing.append(f"other {key}" if key in HASHES else f"{key} {value} there and {here[key]} here")
    return ", ".join(differing)


def read_run_record(folder: str | PathLike) -> RunRecord | None:
    """The record in the folder of a run; None if it is missing or damaged."""
    try:
        values = read_json(Path(folder) / RECORD_FILE)
        return RunRecord(**{name: values[name] for name in RunRecord.__dataclass_fields__})
    except (OSError, ValueError, KeyError):
        return None


def is_finished(folder: str | PathLike, tested: bool = True) -> bool:
    """Whether the run in a folder has ended; `tested`: it ends with a test."""
    if tested:
        return (Path(folder) / RESULTS_FILE).is_file()
    record = read_run_record(folder)
    return record is not None and record.training is not None
