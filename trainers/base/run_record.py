"""The settings that identify a run, and the files of its results."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from yacs.config import CfgNode

from common.errors import UserError
from common.reproducible import revision
from common.run.identity import TRAINED_FILE, read_identity, settings_sha256
from common.run.names import class_subset, dataset_label, protocol_name
from common.run.predictions import accuracy_by_domain, prediction_rows, write_logits, write_predictions
from common.run.records import check_finite, read_record
from common.run.results import RESULTS_FILE, Result, versions, write_results
from common.threads import Threads, waiting
from trainers.base.evaluation import Evaluation, accuracy_by_class, calibration_error, macro_f1
from trainers.config import as_typed, value_of
from trainers.methods import BATCH, method_of
from trainers.modules.clip.backbone import Backbone, backbone_label

UNKNOWN = "unknown"  # in results.json, of a model whose training is not on record
OF_TRAINING = (
    *("dataset", "source_domains", "class_subset", "num_shots", "data_fingerprint", "split_by_seed"),
    *("settings_sha256", "n_trained", "train_seconds", "train_reused"),
)
# Where labels lie does not matter, what they are does: they are checked when they are loaded.
WITHOUT_EFFECT = ("LABEL_DIR", "STAGE1_CONFIG_FILE", "STAGE1_OPTS")
F1_OF_DASSL = "classes that occur among the labels"


@dataclass
class OtherRun:
    """Another run whose model is tested.

    Attributes:
        folder: of that run.
        epoch: which of its epochs, where it was named.
        record: how its model was trained, as far as its folder says that: some of OF_TRAINING, and "selection".
    """

    folder: str
    epoch: int | None
    record: dict[str, Any]


@dataclass
class Course:
    """How a training went.

    Attributes:
        history: of each completed epoch what history.json has.
        best_epoch: the epoch that was chosen, from 1; None without a choice.
        started: time.time() when it began, less what it had taken before it was interrupted.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    started: float = field(default_factory=time.time)

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return round(time.time() - self.started, 1)

    @property
    def train_seconds(self) -> float | None:
        """How long it had taken when its last epoch ended, with what others had made if they say; None: no epochs."""
        if not self.history:
            return None
        return round(self.history[-1]["seconds"] + sum(seconds or 0 for seconds in self.reused.values()), 1)

    @property
    def reused(self) -> dict[str, float | None]:
        """What earlier runs had made for it, by its epochs, with the seconds that took; older versions say nothing."""
        return self.history[-1].get("found", {}) if self.history else {}


def settings_of(cfg: CfgNode, node: str) -> dict[str, Any]:
    """All of a run's settings that change numbers, by their whole keys.

    Args:
        cfg: as it was asked for.
        node: name of the trainer's own node under cfg.TRAINER.
    """
    settings = {"TRAINER.NAME": cfg.TRAINER.NAME, "TRAINER.FEATURES.TRAIN_VIEWS": cfg.TRAINER.FEATURES.TRAIN_VIEWS}
    settings |= {f"OPTIM.{key}": value for key, value in cfg.OPTIM.items()}
    settings |= {f"INPUT.{key}": value for key, value in cfg.INPUT.items() if key != "SIZE"}  # the backbone's
    settings |= {f"TEST.{key}": cfg.TEST[key] for key in ("FINAL_MODEL", "N_PROMPTS")}
    settings |= {"TEST.SELECT_BY": cfg.TEST.SELECT_BY, "TRAINER.FUSED_ADAMW": cfg.TRAINER.FUSED_ADAMW}
    settings |= {f"DATALOADER.TRAIN_X.{key}": value for key, value in cfg.DATALOADER.TRAIN_X.items()}
    if (method := method_of(cfg.TRAINER.NAME)) and method.depends_on == BATCH:
        settings["DATALOADER.TEST.BATCH_SIZE"] = cfg.DATALOADER.TEST.BATCH_SIZE
    own = cfg.TRAINER[node]
    return settings | {f"TRAINER.{node}.{key}": value for key, value in own.items() if key not in WITHOUT_EFFECT}


def identity_of(cfg: CfgNode, settings: dict[str, Any], dataset: Any, backbone: Backbone) -> dict[str, Any]:
    """What makes a run what it is, plain values by name.

    Args:
        cfg: the run's.
        settings: all that changes numbers and can be set.
        dataset: DomainGeneralizationDataset.
        backbone: the CLIP.
    """
    return {
        **settings,
        "backbone": backbone.sha256,
        "class names": list(dataset.classnames),
        "images trained on": dataset.fingerprint,
        "images tested on": None if cfg.TEST.NO_TEST else dataset.test_fingerprint,
        "source domains": list(dataset.source_domains),
        "SEED": cfg.SEED,
    }


def is_split_by_seed(cfg: CfgNode, dataset: Any) -> bool:
    """Whether the training split depends on the seed: few shots, or a split file for each seed."""
    files = getattr(dataset, "split_files", {}).values()
    return cfg.DATASET.NUM_SHOTS > 0 or any(Path(path).parent.name.isdigit() for path in files)


def domain_fingerprints(cfg: CfgNode, dataset: Any, trained: bool) -> dict[str, str]:
    """Fingerprints of the images of each domain of a run; see `Result`."""
    if not getattr(dataset, "covers_domains", False) or cfg.DATASET.NUM_SHOTS > 0:
        return {}
    return dataset.domain_fingerprints(("train_x", "val", "test") if trained else ("test",))


def training_record(
    cfg: CfgNode, dataset: Any, settings: dict[str, Any], n_trained: list[int], course: Course
) -> dict[str, Any]:
    """What results of a run's model have to say of its training, by the names of results.json."""
    return {
        "dataset": dataset_label(cfg),
        "source_domains": list(dataset.source_domains),
        "class_subset": class_subset(cfg),
        "num_shots": cfg.DATASET.NUM_SHOTS,
        "data_fingerprint": dataset.fingerprint if n_trained else None,
        "split_by_seed": is_split_by_seed(cfg, dataset),
        "selection": cfg.TEST.FINAL_MODEL if n_trained else None,
        "settings_sha256": settings_sha256(settings),
        "n_trained": n_trained,
        "train_seconds": course.train_seconds,
        "train_reused": [what for what, seconds in course.reused.items() if seconds is None],
    }


def read_training_record(folder: str | PathLike) -> dict[str, Any]:
    """How the model in a run's folder was trained, by its results.json or trained.json; {} where neither says."""
    for name in (RESULTS_FILE, TRAINED_FILE):
        try:
            record = read_record(Path(folder) / name)
        except (OSError, ValueError):
            continue
        if not record.get("trained_on"):
            return {key: record[key] for key in OF_TRAINING if key in record}
    return {}


def check_use(folder: str | PathLike, cfg: CfgNode, node: str, keys: Iterable[str]) -> None:
    """Raise UserError if a test would use the model in a run's folder in another way than its training.

    Args:
        folder: the run's; published folders have no identity.json and pass.
        cfg: config of the test, as asked for.
        node: the method's under cfg.TRAINER, which the stages of a method share.
        keys: config keys that must be equal in training and test, "TRAINER.COOP.CLASS_TOKEN_POSITION".
    """
    identity = read_identity(folder)
    if not identity:
        return
    if not any(key.startswith(f"TRAINER.{node}.") for key in identity):
        trained_by = identity.get("TRAINER.NAME")
        raise UserError(
            f"The model in {folder} was trained by {trained_by}, and its results would stand under the name of "
            f"{cfg.TRAINER.NAME}. Pass --trainer {trained_by}."
        )
    trained = {key: identity.get(key) for key in keys}
    differing = {key: value for key, value in trained.items() if value not in (None, value_of(cfg, key))}
    if differing:
        here = ", ".join(f"{key} is {as_typed(value_of(cfg, key))}" for key in differing)
        mend = " ".join(f"{key} {as_typed(value)}" for key, value in differing.items())
        raise UserError(f"The model in {folder} was trained with {mend}, and here {here}. Set {mend}.")


def write_test_files(
    cfg: CfgNode,
    dataset: Any,
    backbone: Backbone,
    tested: Evaluation,
    course: Course,
    training: dict[str, Any],
    settings: dict[str, Any],
    other: OtherRun | None,
    threads: Threads,
) -> None:
    """Write predictions.csv, logits.npy and results.json of a run that was tested.

    Args:
        cfg: the run's.
        dataset: DomainGeneralizationDataset, whose test split was tested on.
        backbone: the CLIP.
        tested: what came out.
        course: of the training.
        training: how the model was trained, see `training_record`.
        settings: this run's.
        other: the run whose model was tested, where it is not this one's.
        threads: that it computed with.
    """
    dataset.check_unchanged()
    sha256 = settings_sha256(settings)
    if other is not None:  # this run's settings do not tell how its model was trained
        sha256 = settings_sha256(settings, **{"of the model's training": training.get("settings_sha256", UNKNOWN)})
    label = dataset_label(cfg)
    trained_on = training.get("dataset", label)
    trained_on = None if trained_on == label else trained_on
    sources = training.get("source_domains", dataset.source_domains)
    learns_nothing = training.get("selection") is None
    base_to_new = class_subset(cfg) != "all" and (learns_nothing or training.get("class_subset") == "base")
    predictions = tested.predictions
    rows = prediction_rows(dataset, cfg.DATASET.ROOT, predictions.labels.tolist(), predictions.confidence.tolist())
    write_predictions(cfg.OUTPUT_DIR, rows)
    if cfg.TEST.KEEP_LOGITS:
        write_logits(cfg.OUTPUT_DIR, predictions.logits.numpy())
    labels, predicted = np.array([item.label for item in dataset.test]), predictions.labels.numpy()
    as_dassl = np.isclose(tested.metrics["macro_f1"], macro_f1(labels, predicted))
    best = None if course.best_epoch is None else course.history[course.best_epoch - 1]
    result = Result(
        trainer=cfg.TRAINER.NAME,
        config=cfg.TRAINER.CONFIG,
        dataset=label,
        backbone=backbone_label(backbone.name),
        backbone_sha256=backbone.sha256,
        backbone_name=backbone.name,
        backbone_family=backbone.info.family,
        precision=backbone.precision,
        protocol=protocol_name(sources, dataset.target_domains, trained_on is not None, base_to_new),
        trained_on=trained_on,
        model_dir=None if other is None else other.folder,
        load_epoch=None if other is None else other.epoch,
        source_domains=list(sources),
        target_domains=list(dataset.target_domains),
        class_subset=class_subset(cfg),
        test_subset=dataset.test_subset,
        num_shots=training.get("num_shots", UNKNOWN),
        classnames=list(dataset.classnames),
        data_fingerprint=training.get("data_fingerprint", UNKNOWN),
        test_fingerprint=dataset.test_fingerprint,
        domain_fingerprints=domain_fingerprints(cfg, dataset, trained=other is None and not learns_nothing),
        split_by_seed=training.get("split_by_seed", False),
        settings_sha256=sha256,
        selection=training.get("selection"),
        seed=cfg.SEED,
        accuracy=float(tested.metrics["accuracy"]),
        macro_f1=float(tested.metrics["macro_f1"]),
        macro_f1_over=F1_OF_DASSL if as_dassl else f"what the evaluator {cfg.TEST.EVALUATOR} takes",
        macro_f1_sklearn=macro_f1(labels, predicted, of_labels=False),
        accuracy_by_domain=accuracy_by_domain(rows),
        accuracy_by_class=accuracy_by_class(labels, predicted, dataset.classnames),
        calibration_error=calibration_error(predictions.confidence.numpy(), predicted == labels),
        metrics=tested.metrics,
        n_test=len(dataset.test),
        val_accuracy=None if best is None else best["val_accuracy"],
        best_epoch=course.best_epoch,
        val_history=[] if best is None else [epoch["val_accuracy"] for epoch in course.history],
        loss_history=[epoch["losses"] for epoch in course.history],
        n_trained=training.get("n_trained"),
        seconds=course.seconds,
        train_seconds=training.get("train_seconds"),
        train_reused=training.get("train_reused", []),
        threads=torch.get_num_threads(),
        threads_alone=threads.alone,
        threads_beside_workers=threads.beside_workers,
        thread_waiting=waiting(),
        revision=revision(),
        versions=versions(),
    )
    check_finite(Path(cfg.OUTPUT_DIR) / RESULTS_FILE, asdict(result))
    write_results(cfg.OUTPUT_DIR, asdict(result))
