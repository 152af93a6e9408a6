"""results.json: what a finished run found out. A run counts as done when this file exists."""

import platform
from dataclasses import dataclass, field, fields
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.run.records import read_record, write_record

RESULTS_FILE = "results.json"
FORMAT = 2


def _shared(over: str, otherwise: str) -> Any:
    """A key that cells have to share: over the table, a row, a column, or a split.

    "split" is a column, or one seed of a column where the training split depends on the seed.
    """
    return field(metadata={"over": over, "otherwise": otherwise})


def _circumstance() -> Any:
    """A key that may differ between two runs that agree, but tells why if they do not."""
    return field(metadata={"circumstance": True})


@dataclass(frozen=True, kw_only=True)
class Result:
    """The keys of results.json.

    Attributes:
        trainer, config: names of the method and of its config file, which make the row of a table.
        dataset: what was tested on, as folders call it.
        backbone, backbone_sha256: name of the CLIP in folders and tables, and fingerprint of what it computes.
        backbone_name, backbone_family: by which it was asked for, and whose it is.
        precision: what it computed in.
        protocol: "multi-source", "single-source", "cross-dataset", "base-to-new", "in-domain".
        trained_on: the data set that the model was trained on, where it is another one; None.
        model_dir: folder of the run whose model was tested; None: its own.
        load_epoch: which of its epochs, where it was named.
        source_domains, target_domains: full names.
        class_subset: which classes were tested: "all", the "base" half, or the "new" ones.
        test_subset: which of a target's images were tested: "all", "published".
        num_shots: training images of each class and domain; -1: all.
        classnames: by label.
        data_fingerprint: of the contents of the training and validation images and their split; None for methods that
            learn nothing.
        split_by_seed: whether the training split depends on the seed: few shots, or a split file for each seed.
        test_fingerprint: of the contents of the test images.
        domain_fingerprints: of the contents of each domain's images, where a domain has the same images as a source and
            as a target; {} for few shots, and for data sets that train on a part of a domain.
        settings_sha256: of all settings that change numbers; equal over data, domains, seeds and backbones.
        selection: how the epoch was chosen: TEST.FINAL_MODEL, or "epoch 5"; None for methods that learn nothing.
        seed: of the run.
        accuracy, macro_f1: on the test images, in percent.
        macro_f1_over: the classes that macro_f1 is the mean over.
        macro_f1_sklearn: over the classes that occur among labels or predictions, which is scikit-learn's default.
        accuracy_by_domain: in percent, by target domain.
        accuracy_by_class: share of each class's images that were recognised, in percent; None without images.
        calibration_error: expected calibration error in percent: 15 bins of confidence, L1.
        metrics: all numbers that the evaluator measured, by name, with accuracy and macro_f1 where it did not.
        n_test: number of test images.
        val_accuracy: in percent, of the epoch that was chosen; None without a choice.
        best_epoch: that epoch, from 1.
        val_history: accuracy on the validation images after each epoch, in percent.
        loss_history: mean losses of each epoch, by name.
        n_trained: numbers of parameters that training changes, stage by stage; [] of methods that learn nothing, None
            where that is not known.
        seconds: that the run took.
        train_seconds: that training took until the end of the last epoch, its validation included, over all starts of
            the run, with stage I of prompt labels that another run had made; None without training.
        train_reused: what other runs had made, and how long that took is not known, so that it is not in
            train_seconds: "image features", "prompt labels" of older versions.
        threads: that the model computed with at the end.
        threads_alone, threads_beside_workers: see common/threads.py.
        thread_waiting: how threads wait for each other.
        revision: of the code, by git.
        versions: of Python and packages.
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
    macro_f1_over: str
    macro_f1_sklearn: float
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
    thread_waiting: str = _circumstance()
    revision: str | None = _circumstance()
    versions: dict[str, str | None] = _circumstance()


# Keys that every cell of a table has to share: what it is called where it differs, and over what it is shared.
SHARED = {f.name: (f.metadata["otherwise"], f.metadata["over"]) for f in fields(Result) if "over" in f.metadata}
TIMES = ("seconds", "train_seconds", "train_reused")  # circumstances that explain nothing
CIRCUMSTANCES = tuple(f.name for f in fields(Result) if f.metadata.get("circumstance"))


def write_results(folder: str | PathLike, results: dict[str, Any]) -> None:
    """Write the keys of a `Result` to <folder>/results.json, whole or not at all."""
    write_record(Path(folder) / RESULTS_FILE, {"format": FORMAT, **results})


def read_results(path: str | PathLike) -> dict[str, Any]:
    """Read one results.json: the keys of `Result`, of which one of an older version may lack some.

    Raises:
        UserError: the file is damaged or of another format.
    """
    try:
        results = read_record(path)
        results_format = results["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no results file: {error}. Delete it and run its command again.") from error
    if results_format != FORMAT:
        newer = isinstance(results_format, int) and results_format > FORMAT
        mend = "Use the version that wrote it." if newer else "Delete it and run its command again."
        raise UserError(f"{path} has format {results_format}; this version reads format {FORMAT}. {mend}")
    return results


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that results depend on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    of_towers = ("torch", "torchvision", "clip-anytorch", "open_clip_torch")
    for package in (*of_towers, "numpy", "pillow", "scipy", "scikit-learn"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
