"""Build the trainer of a run's folder again: its config, its classes, its model."""

import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from dassl.engine import TRAINER_REGISTRY
from yacs.config import CfgNode

from common.errors import UserError
from common.run import RECORD_FILE, RESULTS_FILE, is_finished, read_results, read_run_record
from trainers.base.checkpoints import find_checkpoint, read_prompts
from trainers.base.trainer import PromptTrainer
from trainers.config import apply_settings, check_values, default_cfg, merge_file, merge_method_file
from trainers.methods import find_method


def read_config(folder: Path) -> CfgNode:
    """The config in a run's folder, not frozen."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{folder} has no config.yaml, so it is no folder of a run. Name the folder that train.py wrote "
            "(--output-dir), or add --trainer, --config-file, --backbone, --classnames for checkpoints alone."
        )
    cfg = default_cfg()
    merge_file(cfg, path, "Config of a run")
    return cfg


def bare_config(folder: Path, trainer: str, config_file: str, backbone: str | PathLike) -> CfgNode:
    """The config, not frozen, for a folder with checkpoints of CoOp's kind and no config.yaml."""
    cfg, method = default_cfg(), find_method(trainer)
    merge_method_file(cfg, config_file or method.config_file("default"), method.trainer)
    cfg.TRAINER.NAME = method.trainer
    cfg.MODEL.BACKBONE.NAME = str(backbone or cfg.MODEL.BACKBONE.NAME)
    if not cfg.MODEL.BACKBONE.NAME:
        raise UserError(f"{folder} does not say which CLIP its model is for. Name it (--backbone ViT-B/16).")
    # The tensors show the number of vectors and of layers.
    trainer_class = TRAINER_REGISTRY.get(method.trainer)
    if (folder / trainer_class.NETWORK).is_dir():
        saved, _ = read_prompts(find_checkpoint(folder, trainer_class.NETWORK))
        sizes, node = trainer_class.sizes_in(trainer_class.learned_in(saved)), cfg.TRAINER[trainer_class.NODE]
        node.update({key: value for key, value in sizes.items() if key in node})
    return cfg


def read_run(folder: Path) -> dict[str, Any]:
    """The results.json of a finished run; of another run, classnames and backbone_sha256 of run.json."""
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
    trainer: str = "",
    config_file: str = "",
) -> PromptTrainer:
    """The trainer of a run with its model loaded, in evaluation mode.

    Args:
        classnames: other classes than the run's; without data alone.
        backbone: new place of CLIP's weights.
        opts: KEY VALUE pairs on top of the run's config.
        with_data: build its data set and loaders, too.
        trainer, config_file: method and config of a folder of checkpoints alone; it needs `classnames`.

    Raises:
        UserError: the folder holds no usable run, or the backbone or the data have changed.
    """
    import trainers.all  # noqa: F401 (registers trainers and data sets)

    folder = Path(folder)
    is_bare = not (folder / "config.yaml").is_file()
    if is_bare and trainer:
        if classnames is None:
            raise UserError(f"{folder} does not say which classes to choose from. Name them (--classnames cat,dog).")
        cfg, record = bare_config(folder, trainer, config_file, backbone or ""), {"classnames": list(classnames)}
    elif trainer or config_file:
        fix = "add --trainer" if is_bare else "leave these out, since its config.yaml has both"
        raise UserError(f"--trainer and --config-file are for a folder of checkpoints alone; for {folder} {fix}.")
    else:
        cfg, record = read_config(folder), read_run(folder)
    if backbone:
        cfg.MODEL.BACKBONE.NAME = str(backbone)
    apply_settings(cfg, opts)
    check_values(cfg)
    cfg.freeze()
    if cfg.TRAINER.NAME not in TRAINER_REGISTRY.registered_names():
        raise UserError(f"{folder}: unknown trainer {cfg.TRAINER.NAME!r}. Import its module in trainers/all.py.")
    names = None if with_data else list(record["classnames"] if classnames is None else classnames)
    built = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg, classnames=names, is_rebuilt=True)
    if built.backbone.sha256 != record.get("backbone_sha256", built.backbone.sha256):
        raise UserError(
            f"{cfg.MODEL.BACKBONE.NAME} holds other weights than the CLIP that {folder} was trained with. Name the "
            "right file (--backbone)."
        )
    dataset = built.dm.dataset
    data = {"classnames": list(dataset.classnames), "test_fingerprint": dataset.test_fingerprint} if with_data else {}
    if any(record.get(key, value) != value for key, value in data.items()):
        raise UserError(
            f"{cfg.DATASET.NAME} under {cfg.DATASET.ROOT or '.'} has other test images or classes than {folder} was "
            "tested on. Give the run its images back, or name the folder where they are now (--root)."
        )
    if not trainer and not is_finished(folder) and not is_finished(folder, tested=False):
        print(f"Note: the run in {folder} has not ended; its newest checkpoint is used.", file=sys.stderr)
    # A run that only tested has no model of its own.
    built.load_model(record.get("model_dir") or str(folder), epoch=record.get("load_epoch"))
    built.set_model_mode("eval")
    return built
