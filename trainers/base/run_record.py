"""The identity of a run: everything that must be equal when a command is repeated, resumed or tested."""

import contextlib
import io
import os
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from yacs.config import CfgNode

from common.errors import UserError, user_errors
from common.run import RunRecord, differences, read_run_record
from datasets.adapted import adapted
from datasets.base import DomainGeneralizationDataset
from trainers.config import SECTIONS, ContextLength, format_for_shell, value_of
from trainers.methods import method_of
from trainers.modules.clip.backbone import load_backbone

# The location of prompt labels has no effect, and their content is a part of the identity.
WITHOUT_EFFECT = ("LABEL_DIR", "STAGE1_CONFIG_FILE", "STAGE1_OPTS")


def settings_of(cfg: CfgNode, node: str) -> dict[str, Any]:
    """The settings that change numbers, by their full keys; `node` is the method's under cfg.TRAINER.

    `cfg` is the user's config: in the completed one, CTX_INIT has replaced N_CTX.
    """
    settings = {"TRAINER.NAME": cfg.TRAINER.NAME, "TRAINER.FEATURES.TRAIN_VIEWS": cfg.TRAINER.FEATURES.TRAIN_VIEWS}
    settings |= {f"OPTIM.{key}": value for key, value in cfg.OPTIM.items()}
    settings |= {f"INPUT.{key}": value for key, value in cfg.INPUT.items() if key != "SIZE"}  # the backbone's
    settings |= {f"TEST.{key}": cfg.TEST[key] for key in ("FINAL_MODEL", "N_PROMPTS", "SELECT_BY")}
    settings |= {f"DATALOADER.TRAIN_X.{key}": value for key, value in cfg.DATALOADER.TRAIN_X.items()}
    settings["TRAINER.FUSED_ADAMW"] = cfg.TRAINER.FUSED_ADAMW
    if (method := method_of(cfg.TRAINER.NAME)) and method.depends_on_batch:
        settings["DATALOADER.TEST.BATCH_SIZE"] = cfg.DATALOADER.TEST.BATCH_SIZE
    own, fields = cfg.TRAINER[node], SECTIONS[f"TRAINER.{node}"].model_fields if f"TRAINER.{node}" in SECTIONS else {}
    for key, value in own.items():
        follows_from_words = own.get("CTX_INIT") and key in fields and ContextLength.ALL_TOKENS in fields[key].metadata
        if key not in WITHOUT_EFFECT and not follows_from_words:
            settings[f"TRAINER.{node}.{key}"] = value
    return settings


def identity_of(cfg: CfgNode, settings: dict[str, Any], dataset: Any, backbone_sha256: str | None) -> dict[str, Any]:
    """The identity of a run with these settings; values that are None are unknown and never differ."""
    is_tested = not cfg.TEST.NO_TEST
    # Without a seed, few shots are other images in each run.
    is_drawn = cfg.SEED < 0 and cfg.DATASET.NUM_SHOTS > 0
    return {
        **settings,
        "SEED": cfg.SEED,
        "source domains": list(dataset.source_domains),
        "target domains": list(dataset.target_domains) if is_tested else None,
        "class names": list(dataset.classnames),
        "DATASET.NUM_SHOTS": cfg.DATASET.NUM_SHOTS,
        "training images": None if is_drawn else dataset.fingerprint,
        "test images": dataset.test_fingerprint if is_tested else None,
        "backbone weights": backbone_sha256,
    }


def places_of(cfg: CfgNode) -> dict[str, Any]:
    """Settings of data set and backbone: the contents are compared if these have changed."""
    data = {key: list(value) if isinstance(value, tuple) else value for key, value in cfg.DATASET.items()}
    weights = cfg.MODEL.BACKBONE.NAME
    weights = os.path.abspath(weights) if os.path.exists(weights) else weights
    return {"data": {**data, "ROOT": os.path.abspath(cfg.DATASET.ROOT)}, "weights": weights}


def check_finished(folder: str | PathLike, cfg: CfgNode, tested_model: str = "its own", is_quick: bool = False) -> None:
    """Raise UserError if the finished run in a folder has other settings, weights or images than a config.

    With `is_quick`, images are compared only if settings of the data set differ.
    """
    record, trainer = read_run_record(folder), TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if record is None or not hasattr(trainer, "config_settings"):
        return
    places, here = places_of(cfg), {**trainer.config_settings(cfg), "SEED": cfg.SEED}
    if not is_quick:
        here["tested model"] = tested_model
    if not is_quick or places["data"] != record.places.get("data"):
        here = _with_images(cfg, here)
    if places["weights"] != record.places.get("weights"):
        named = cfg.MODEL.BACKBONE
        here["backbone weights"] = load_backbone(named.NAME, root=named.PATH).sha256
    if changes := differences(record.identity, here):
        raise UserError(
            f"{folder} holds a finished run with other settings or data: {changes}. Delete it, or name another "
            "folder (train.py: --output-dir; launchers: OUTPUT)."
        )


def _with_images(cfg: CfgNode, here: dict[str, Any]) -> dict[str, Any]:
    kind, quiet = DATASET_REGISTRY.get(cfg.DATASET.NAME), cfg.clone()
    quiet.defrost()
    quiet.VERBOSE = False
    quiet.freeze()
    if issubclass(kind, DomainGeneralizationDataset):
        kind = type(kind.__name__, (kind,), {"writes": False})
    gone: tuple[type[BaseException], ...] = (*user_errors(), OSError, ValueError)
    with contextlib.suppress(*gone), contextlib.redirect_stdout(io.StringIO()):  # the run gave the same warnings
        here = identity_of(cfg, here, adapted(kind(quiet), cfg), None)
    return here


def check_trained_as(folder: str | PathLike, record: RunRecord, cfg: CfgNode, node: str, keys: Iterable[str]) -> None:
    """Raise UserError if a test would use the model of a run in another way than its training did.

    `keys` must be equal in training and test; `node` is the method's under cfg.TRAINER.
    """
    trained = record.identity
    if not any(key.startswith(f"TRAINER.{node}.") for key in trained):
        name = trained.get("TRAINER.NAME")
        raise UserError(
            f"The model in {folder} was trained by {name}, not by {cfg.TRAINER.NAME}. Pass --trainer {name}."
        )
    differing = [key for key in keys if trained.get(key) not in (None, value_of(cfg, key))]
    if differing:
        here = ", ".join(f"{key} is {format_for_shell(value_of(cfg, key))}" for key in differing)
        fix = " ".join(f"{key} {format_for_shell(trained[key])}" for key in differing)
        raise UserError(f"The model in {folder} was trained with {fix}, and here {here}. Set {fix}.")


def domain_fingerprints(cfg: CfgNode, dataset: Any, trained: bool) -> dict[str, str]:
    if not getattr(dataset, "covers_domains", False) or cfg.DATASET.NUM_SHOTS > 0:
        return {}
    return dataset.domain_fingerprints(("train_x", "val", "test") if trained else ("test",))


def is_split_by_seed(cfg: CfgNode, dataset: Any) -> bool:
    """Whether the training split depends on the seed: few shots, or a split file for each seed."""
    files = getattr(dataset, "split_files", {}).values()
    return cfg.DATASET.NUM_SHOTS > 0 or any(Path(path).parent.name.isdigit() for path in files)
