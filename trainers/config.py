"""Every config key that our trainers add to Dassl's, with its meaning and default; and how KEY VALUE pairs set them."""

import difflib
from collections.abc import Iterable
from typing import Any

from yacs.config import CfgNode

from common.errors import UserError


def extend_cfg(cfg: CfgNode) -> None:
    """Add our keys to a config made by dassl.config.get_cfg_default(), in place."""
    cfg.MODEL.BACKBONE.PATH = "~/.cache/clip"  # where OpenAI's weights are downloaded to

    cfg.DATASET.TEST_SUBSET = "all"  # DomainNet: "published" tests on the 3 % that the authors tested on
    cfg.DATASET.SKIP_UNREADABLE = False  # True: each image is decoded once at the start, and the bad ones are left out

    cfg.TEST.N_PROMPTS = 1  # contexts generated for each image; their logits are averaged
    cfg.TEST.SELECT_BY = "accuracy"  # metric of the evaluator that the best epoch is chosen by: the higher, the better
    cfg.TEST.KEEP_LOGITS = True  # keep the test images' logits, logits.npy, 2 bytes for each image and class
    cfg.TEST.MEMORY_MB = 0  # bound on intermediate results of the text tower in MB; 0: by device

    cfg.TRAINER.CONFIG = ""  # name of the method's config file, for tables; train.py fills it in

    # AdamW as one kernel, three times as fast; False: the bits of the plain one's steps, of whose last digits the GAN
    # makes other accuracies.
    cfg.TRAINER.FUSED_ADAMW = True

    cfg.TRAINER.FEATURES = CfgNode()
    cfg.TRAINER.FEATURES.CACHE = True  # keep features of val and test images on disk, for later runs
    cfg.TRAINER.FEATURES.CACHE_DIR = "output/feature_cache"
    cfg.TRAINER.FEATURES.TRAIN_VIEWS = 0  # 0: encode each augmented batch; K: draw from K views encoded once

    # CoOp and CoCoOp exactly as in their repository.
    cfg.TRAINER.COOP = CfgNode()
    cfg.TRAINER.COOP.N_CTX = 16  # number of context vectors
    cfg.TRAINER.COOP.CSC = False  # class-specific contexts
    cfg.TRAINER.COOP.CTX_INIT = ""  # initial words; their number overrides N_CTX
    cfg.TRAINER.COOP.PREC = "fp16"  # fp16, fp32, amp (and bf16)
    cfg.TRAINER.COOP.CLASS_TOKEN_POSITION = "end"  # end, middle or front

    cfg.TRAINER.COCOOP = CfgNode()
    cfg.TRAINER.COCOOP.N_CTX = 16
    cfg.TRAINER.COCOOP.CTX_INIT = ""
    cfg.TRAINER.COCOOP.PREC = "fp16"

    cfg.TRAINER.LINEAR_PROBE = CfgNode()
    cfg.TRAINER.LINEAR_PROBE.PREC = "fp16"
    # Inverse strengths of the L2 penalty, as scikit-learn's LogisticRegression has it, to choose from.
    cfg.TRAINER.LINEAR_PROBE.C = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)

    spg = cfg.TRAINER.SPG = CfgNode()
    spg.N_CTX = 4
    spg.CSC = False  # accepted for CoOp's sake; a prompt label is one context for all classes
    spg.CTX_INIT = "a photo of a"
    spg.PREC = "fp16"
    spg.CLASS_TOKEN_POSITION = "end"
    spg.LATENT_DIM = 100  # length of the generator's noise vector
    # Largest gradient norm of each parameter tensor in stage II: discriminator's weights, biases, first and last
    # Linear; generator's weights, biases, biases of its last BatchNorm and last Linear.
    spg.GRAD_CLIP = True
    spg.D_WEIGHT_NORM = 5e-2
    spg.D_BIAS_NORM = 5e-1
    spg.D_ENDS_NORM = 5.0
    spg.G_WEIGHT_NORM = 5e-3
    spg.G_BIAS_NORM = 5e-8
    spg.G_LAST_BIAS_NORM = 1.0
    spg.GRAD_CLIP_OFF_TARGETS = ()  # target domains (full names) for which the clipping is off
    spg.LABEL_DIR = "output/prompt_labels"  # <LABEL_DIR>/<dataset>/<backbone>/seed_<k>/<domain>.pt
    spg.LABEL_SEED = -1  # seed of the prompt labels; -1: the run's SEED (the published labels have seed 1)
    # Stage I inside the trainer SPG: its OPTIM section comes from this file (the rest is shared with stage II), then
    # from these KEY VALUE pairs.
    spg.STAGE1_CONFIG_FILE = "configs/trainers/SPG_CoOp/default.yaml"
    spg.STAGE1_OPTS = ()


def apply_settings(cfg: CfgNode, opts: Iterable[Any]) -> None:
    """Merge KEY VALUE pairs into a config, the later over the earlier.

    Raises:
        UserError: a key does not exist, has no value, or not one of its type.
    """
    opts = list(opts)
    if len(opts) % 2:
        raise UserError(f"Settings come in pairs KEY VALUE; {opts[-1]!r} has no value.")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        try:
            cfg.merge_from_list([key, value])
        except (KeyError, AssertionError, ValueError) as error:
            near = difflib.get_close_matches(key, _keys(cfg), n=1)
            mend = f"Did you mean {near[0]}?" if near and near[0] != key else "See trainers/config.py for ours."
            raise UserError(f"Cannot apply the setting {key} {value}: {error.args[0]}. {mend}") from error


def _keys(cfg, above=""):
    for key, value in cfg.items():
        yield above + key
        if hasattr(value, "items"):
            yield from _keys(value, f"{above}{key}.")
