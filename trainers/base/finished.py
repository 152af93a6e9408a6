"""Whether a finished run in a folder is the one that is asked for."""

import contextlib
import io
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from yacs.config import CfgNode

from common.errors import UserError
from common.failures import user_errors
from common.files import read_text
from common.run.identity import TRAINED_FILE, identity_differences, read_identity
from common.run.records import read_record
from common.run.results import RESULTS_FILE, read_results
from datasets.adapted import adapted
from datasets.base import DomainGeneralizationDataset
from trainers.base.run_record import settings_of
from trainers.base.trainer import PromptTrainer
from trainers.config import COUNTED, field_of
from trainers.modules.clip_backbone import read_backbone
from trainers.spg import read_stage1_config

OTHERWISE = {
    "classnames": "other class names",
    "data_fingerprint": "other training images or another split of them",
    "test_fingerprint": "other test images",
}


def check_finished(folder: str | PathLike, cfg: CfgNode, quick: bool = False) -> None:
    """Compare the finished run in a folder with a config.

    Args:
        quick: compare class names and images only if the settings of the data set differ.

    Raises:
        UserError: the run had other settings, another seed, other domains, images or weights. Values that are not on
            record are not compared, nor images that are no longer there, nor weights of a backbone of the same name.
    """
    there = _written(folder)
    images = not quick or there.get("DATASET") != yaml.safe_load(cfg.DATASET.dump())
    weights = there.get("MODEL", {}).get("BACKBONE") != yaml.safe_load(cfg.MODEL.BACKBONE.dump())

    settings = [_settings(folder, cfg), _domains(folder, cfg)]
    data = [_images(folder, cfg) if images else "", _weights(folder, cfg) if weights else ""]
    for what, found in (("with other settings", settings), ("on other data", data)):
        if differences := ", ".join(filter(None, found)):
            raise UserError(
                f"{folder} holds a finished run {what}: {differences}. Delete it to run anew, or name another "
                "--output-dir."
            )


def _written(folder: str | PathLike) -> dict[str, Any]:
    """The config.yaml of a run; {} if it cannot be read."""
    try:
        return yaml.load(read_text(Path(folder) / "config.yaml"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _settings(folder: str | PathLike, cfg: CfgNode) -> str:
    trainer, found = TRAINER_REGISTRY.get(cfg.TRAINER.NAME), read_identity(folder)
    if not issubclass(trainer, PromptTrainer) or not found:
        return ""
    asked = {**settings_of(cfg, trainer.SETTINGS), "SEED": cfg.SEED}
    if getattr(trainer, "LEARNS_LABELS", False):
        stage1 = read_stage1_config(cfg, trainer.SETTINGS).OPTIM
        asked |= {f"stage I: OPTIM.{key}": value for key, value in stage1.items()}
    fields = {key: field_of(key) for key in asked if key in found}
    # Tokens of words override a number of context vectors.
    known = {key: asked[key] for key, field in fields.items() if not (field and COUNTED in field.metadata)}
    return identity_differences(folder, {**found, **known})


def _domains(folder: str | PathLike, cfg: CfgNode) -> str:
    dataset, asked = DATASET_REGISTRY.get(cfg.DATASET.NAME), cfg.DATASET
    if not issubclass(dataset, DomainGeneralizationDataset):
        return ""
    try:
        found = read_results(Path(folder) / RESULTS_FILE)
        domains = dataset.resolve_domains(asked.ROOT, asked.SOURCE_DOMAINS, asked.TARGET_DOMAINS)
    except (UserError, OSError):  # of a damaged file, or where the data are no longer
        return ""
    differing = []
    for key, names in zip(("source_domains", "target_domains"), domains, strict=True):
        if sorted(found[key]) != sorted(names) and (key == "target_domains" or not found.get("model_dir")):
            differing.append(f"{key} {found[key]} there and {names} here")
    return ", ".join(differing)


def _images(folder: str | PathLike, cfg: CfgNode) -> str:
    kind, quiet = DATASET_REGISTRY.get(cfg.DATASET.NAME), cfg.clone()
    if cfg.SEED < 0 and cfg.DATASET.NUM_SHOTS > 0:  # drawn by chance
        return ""
    quiet.defrost()
    quiet.VERBOSE = False
    quiet.freeze()
    if issubclass(kind, DomainGeneralizationDataset):
        kind = type(kind.__name__, (kind,), {"writes": False})
    failures: tuple[type[BaseException], ...] = (*user_errors(), OSError, ValueError)
    try:
        found = read_record(Path(folder) / (TRAINED_FILE if cfg.TEST.NO_TEST else RESULTS_FILE))
        with contextlib.redirect_stdout(io.StringIO()):  # the run gave the same warnings
            dataset = adapted(kind(quiet), cfg)
        here = {"classnames": list(dataset.classnames)}
        if found.get("data_fingerprint") and not found.get("model_dir"):
            here["data_fingerprint"] = dataset.fingerprint
        if "test_fingerprint" in found:
            here["test_fingerprint"] = dataset.test_fingerprint
    except failures:  # of a damaged file, or where the images are no longer
        return ""
    return ", ".join(OTHERWISE[key] for key, value in here.items() if found.get(key, value) != value)


def _weights(folder: str | PathLike, cfg: CfgNode) -> str:
    named = cfg.MODEL.BACKBONE
    there = read_identity(folder).get("backbone")
    if not there and not cfg.TEST.NO_TEST:  # methods that learn nothing write no identity
        there = read_results(Path(folder) / RESULTS_FILE)["backbone_sha256"]
    differs = there and read_backbone(named.NAME, "cpu", "fp32", named.PATH).sha256 != there
    return "other backbone weights" if differs else ""
