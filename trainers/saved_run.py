"""The folder of a run: its config, its checkpoints, and its trainer, built again."""

import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from dassl.engine import TRAINER_REGISTRY
from yacs.config import CfgNode

from common.errors import UserError
from common.run.record import RECORD_FILE, is_finished, read_run_record
from common.run.results import RESULTS_FILE, read_results
from trainers.authors_configs import merge_method_file
from trainers.base.checkpoints import find_checkpoint, read_prompts
from trainers.base.trainer import PromptTrainer
from trainers.config import apply_settings, check_values, default_cfg, merge_file
from trainers.methods import find_method


def read_config(folder: str | PathLike) -> CfgNode:
    """The config, not yet frozen, that a run's folder holds.

    Raises:
        UserError: there is no such folder, or no usable config.yaml in it.
    """
    folder = Path(folder)
    path = folder / "config.yaml"
    if not path.is_file():
        what = "is a file" if folder.exists() else "is not there"
        what = "has no config.yaml, so it is no folder of a run" if folder.is_dir() else what
        mend = "Name the folder that train.py wrote (--output-dir)"
        if folder.is_dir():
            mend += ", or say what checkpoints alone do not: --trainer, --config-file, --backbone, --classnames"
        raise UserError(f"{folder} {what}. {mend}.")
    cfg = default_cfg()
    merge_file(cfg, path, "Config of a run")
    return cfg


def bare_config(folder: str | PathLike, trainer: str, config_file: str = "", backbone: str | PathLike = "") -> CfgNode:
    """The config, not yet frozen, for a folder that holds checkpoints of CoOp's kind alone.

    Args:
        folder: it.
        trainer: the method's name.
        config_file: that it was trained with; "": the method's default.
        backbone: CLIP's name or file; "": the config file's.

    Raises:
        UserError: there is no such method or file, no backbone, or no checkpoint in the folder.
    """
    cfg = default_cfg()
    method = find_method(trainer)
    merge_method_file(cfg, config_file or method.config_file("default"), method.trainer)
    cfg.TRAINER.NAME = method.trainer
    cfg.MODEL.BACKBONE.NAME = str(backbone or cfg.MODEL.BACKBONE.NAME)
    if not cfg.MODEL.BACKBONE.NAME:
        raise UserError(f"{folder} does not say which CLIP its model is for; name it (--backbone ViT-B/16).")
    # How many vectors there are, in how many layers, and of what, is in the file.
    of_method = TRAINER_REGISTRY.get(method.trainer)
    if Path(folder, of_method.NETWORK).is_dir():
        saved, _ = read_prompts(find_checkpoint(folder, of_method.NETWORK))
        told = of_method.sizes_in(of_method.learned_in(saved))
        node = cfg.TRAINER[of_method.SETTINGS]
        node.update({key: value for key, value in told.items() if key in node})
    return cfg


def read_run(folder: str | PathLike) -> dict[str, Any]:
    """What a run was: its results.json, or of an unfinished run the values of run.json.

    Keys: classnames, backbone_sha256; of a finished run all others of results.json.

    Raises:
        UserError: neither is there.
    """
    folder = Path(folder)
    if (folder / RESULTS_FILE).is_file():
        return read_results(folder / RESULTS_FILE)
    record = read_run_record(folder)
    if record is None or not record.identity:
        raise UserError(
            f"{folder} has neither {RESULTS_FILE} nor {RECORD_FILE}: nothing was trained there yet. Run train.py "
            "to its end first."
        )
    return {"classnames": record.identity["class names"], "backbone_sha256": record.identity["backbone weights"]}


def build_run(
    folder: str | PathLike,
    classnames: Sequence[str] | None = None,
    backbone: str | PathLike | None = None,
    opts: Sequence[Any] = (),
    with_data: bool = False,
    trainer_name: str = "",
    config_file: str = "",
) -> PromptTrainer:
    """The trainer of a run with its model loaded, in evaluation mode.

    Args:
        folder: of the run.
        classnames: other classes than the run's; only without data.
        backbone: where CLIP's weights are now, if not where they were.
        opts: KEY VALUE pairs on top of the run's config.
        with_data: build its data set and loaders, too.
        trainer_name, config_file: of a folder that holds checkpoints alone, see `bare_config`; classnames has to be
            given as well.

    Raises:
        UserError: the folder holds no usable run, the backbone is another one, or the data are others than it tested.
    """
    _register()
    is_bare = not Path(folder, "config.yaml").is_file()
    if is_bare and trainer_name:
        if classnames is None:
            raise UserError(f"{folder} does not say which classes to choose from; name them (--classnames cat,dog).")
        cfg, record = bare_config(folder, trainer_name, config_file, backbone or ""), {"classnames": list(classnames)}
    elif trainer_name or config_file:
        what = "needs --trainer as well" if is_bare else "says itself what it is, in config.yaml; leave these out"
        raise UserError(f"--trainer and --config-file are for a folder of checkpoints alone; {folder} {what}.")
    else:
        cfg, record = read_config(folder), read_run(folder)
    if backbone:
        cfg.MODEL.BACKBONE.NAME = str(backbone)
    apply_settings(cfg, opts)
    check_values(cfg)
    cfg.freeze()
    if cfg.TRAINER.NAME not in TRAINER_REGISTRY.registered_names():
        raise UserError(f"{folder} is a run of {cfg.TRAINER.NAME!r}, a trainer that is not here.")
    names = None if with_data else list(record["classnames"] if classnames is None else classnames)
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg, classnames=names, is_rebuilt=True)
    if trainer.backbone.sha256 != record.get("backbone_sha256", trainer.backbone.sha256):
        raise UserError(
            f"{cfg.MODEL.BACKBONE.NAME} holds other weights than the CLIP that {folder} was trained with. Name the "
            "right file (--backbone)."
        )
    if with_data:
        _check_data(folder, record, trainer)
    if not trainer_name and not is_finished(folder) and not is_finished(folder, tested=False):
        print(f"Note: the run in {folder} has not ended; what it has so far is used.", file=sys.stderr)
    # A run that only tested keeps no model of its own.
    trainer.load_model(record.get("model_dir") or str(folder), epoch=record.get("load_epoch"))
    trainer.set_model_mode("eval")
    return trainer


def _check_data(folder, record, trainer):
    dataset = trainer.dm.dataset
    found = {"classnames": list(dataset.classnames), "test_fingerprint": dataset.test_fingerprint}
    if any(record.get(key, value) != value for key, value in found.items()):
        raise UserError(
            f"{trainer.cfg.DATASET.NAME} under {trainer.cfg.DATASET.ROOT or '.'} has other test images or classes than "
            f"those that {folder} was tested on. Give the run its images back, or name the folder where they are now "
            "(--root)."
        )


def _register():
    import trainers.all  # noqa: F401 (registers trainers and data sets)
