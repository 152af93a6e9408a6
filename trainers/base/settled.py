"""What of a run's config follows from its backbone and from other keys."""

import numpy as np
from dassl.optim.optimizer import AVAI_OPTIMS
from yacs.config import CfgNode

from common.loader_workers import prepare_loader_workers
from common.threads import loader_workers
from trainers.base.image_features import follow_facts
from trainers.base.prompt_depth import settled_depths
from trainers.config import set_key, shared_folders
from trainers.config_check import counted_contexts
from trainers.config_keys import KEYS, value_of
from trainers.modules.backbone_source import OF_IMAGES, Facts
from trainers.modules.clip_backbone import Backbone


def settled(cfg: CfgNode, backbone: Backbone) -> CfgNode:
    """A config, frozen, with what follows from the backbone and from other keys; what is worth knowing is told."""
    cfg = cfg.clone()
    cfg.defrost()
    taken = follow_facts(cfg.INPUT, backbone.facts)
    if taken and cfg.VERBOSE:
        print(f"Note: images are made as the backbone {backbone.name} expects them: {', '.join(taken)}.")
    check_normalisation(cfg, backbone)
    cfg.INPUT.SIZE = (backbone.image_size,) * 2
    cfg.DATALOADER.NUM_WORKERS = loader_workers(cfg.DATALOADER.NUM_WORKERS)
    prepare_loader_workers(cfg.DATALOADER.NUM_WORKERS)
    for key, n in counted_contexts(cfg, backbone.text.tokenizer).items():
        if value_of(cfg, key) != n and cfg.VERBOSE:
            print(f"Note: {key} is {n}, as many as the words of {KEYS[key].words}.")
        set_key(cfg, key, n)
    for key, depth in settled_depths(cfg, backbone).items():
        set_key(cfg, key, depth)
    for key, folder in shared_folders(cfg).items():
        set_key(cfg, key, folder)
    cfg.freeze()
    return cfg


def check_normalisation(cfg: CfgNode, backbone: Backbone) -> None:
    """Warn where images are not normalised or resized as the backbone expects it."""
    mean, std, facts = cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD, backbone.facts
    expected = [facts.pixel_mean, facts.pixel_std]
    mend = "The configs in configs/trainers/ have it right (--config-file)."
    openais = Facts()
    if any(getattr(facts, key) != getattr(openais, key) for key in OF_IMAGES):
        mend = (
            "Leave INPUT.PIXEL_MEAN, PIXEL_STD and INTERPOLATION as the configs in configs/trainers/ have them: they "
            f"become the backbone's own, {list(facts.pixel_mean)}, {list(facts.pixel_std)} and {facts.interpolation}."
        )
    if "normalize" not in cfg.INPUT.TRANSFORMS or not np.allclose([mean, std], expected, atol=1e-3):
        print(
            "Warning: CLIP expects images normalised by its own mean and standard deviation, and INPUT says "
            f"otherwise (TRANSFORMS {list(cfg.INPUT.TRANSFORMS)}, PIXEL_MEAN {list(mean)}, PIXEL_STD {list(std)}): "
            f"accuracies will suffer. {mend}"
        )
    if facts.interpolation != cfg.INPUT.INTERPOLATION:
        print(
            f"Warning: {backbone.name} expects images resized by {facts.interpolation} interpolation, and "
            f"INPUT.INTERPOLATION is {cfg.INPUT.INTERPOLATION}: accuracies will suffer. {mend}"
        )


def optimiser_cfg(cfg: CfgNode) -> CfgNode:
    """cfg.OPTIM for the optimiser: with AdamW fused where it may be, and Dassl can."""
    optim = cfg.OPTIM
    if optim.NAME == "adamw" and cfg.TRAINER.FUSED_ADAMW and "adamw_fused" in AVAI_OPTIMS:
        optim = optim.clone()
        optim.defrost()
        optim.NAME = "adamw_fused"
    return optim
