"""What a run's prompt labels have to be, by its config and data: where they lie and what they are made from."""

import hashlib
from collections.abc import Iterable

from yacs.config import CfgNode

from common.run.names import class_subset, dataset_label
from trainers.base.trainer import FrozenClipTrainer
from trainers.modules.clip_backbone import backbone_label
from trainers.modules.image_data import Item
from trainers.modules.prompt_labels import LabelFolder, LabelOrigin


def label_folder(cfg: CfgNode) -> LabelFolder:
    """The LabelFolder of a run."""
    spg = cfg.TRAINER.SPG
    seed = cfg.SEED if spg.LABEL_SEED < 0 else spg.LABEL_SEED
    subset = class_subset(cfg)
    dataset = dataset_label(cfg) if subset == "all" else f"{dataset_label(cfg)}_{subset}"
    return LabelFolder(spg.LABEL_DIR, dataset, backbone_label(cfg.MODEL.BACKBONE.NAME), seed)


def label_origin(
    trainer: FrozenClipTrainer, train_items: Iterable[Item], stage1_cfg: CfgNode | None = None
) -> LabelOrigin:
    """What a label for this run has to be made from.

    Args:
        trainer: any trainer of SPG.
        train_items: the domain's training items.
        stage1_cfg: config of stage I; None where the run does not know it.

    Returns:
        LabelOrigin.
    """
    digest = hashlib.sha256()
    for entry in sorted(f"{item.label}/{trainer.dm.dataset.image_name(item)}\n" for item in train_items):
        digest.update(entry.encode())
    return LabelOrigin(
        backbone_sha256=trainer.backbone.sha256,
        classnames=tuple(trainer.dm.dataset.classnames),
        class_token_position=trainer.settings.CLASS_TOKEN_POSITION,
        data=digest.hexdigest(),
        recipe=None if stage1_cfg is None else _recipe(stage1_cfg, trainer.started_from),
    )


def _recipe(cfg, started_from):
    """The settings that a prompt label depends on, as plain values by name."""
    recipe = {f"OPTIM.{key}": value for key, value in cfg.OPTIM.items()}
    recipe |= {f"INPUT.{key}": cfg.INPUT[key] for key in ("TRANSFORMS", "INTERPOLATION", "RRCROP_SCALE")}
    recipe["DATALOADER.TRAIN_X.BATCH_SIZE"] = cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    recipe["TRAINER.SPG.CTX_INIT"] = cfg.TRAINER.SPG.CTX_INIT
    recipe["TRAINER.FEATURES.TRAIN_VIEWS"] = cfg.TRAINER.FEATURES.TRAIN_VIEWS
    recipe["TEST.FINAL_MODEL"] = cfg.TEST.FINAL_MODEL
    if started_from:
        recipe["MODEL.INIT_WEIGHTS"] = started_from
    return {key: list(value) if isinstance(value, (list, tuple)) else value for key, value in recipe.items()}
