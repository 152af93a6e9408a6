"""Every config key that our trainers add to Dassl's, with its meaning and default; and what sets them.

Which values a key takes, and which trainers it has an effect on, is in trainers/config_keys.py.
"""

import difflib
import os
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from common.errors import UserError
from common.files import read_text
from trainers.config_keys import kind_for, refusal, value_of
from trainers.methods import method_of

NOWHERE = object()
# Keys of folders that several runs share: unless they are named, these beside the folder of the run.
SHARED_FOLDERS = {
    "TRAINER.FEATURES.CACHE_DIR": "feature_cache",
    "TRAINER.SPG.LABEL_DIR": "prompt_labels",
    "TRAINER.DPSPG.LABEL_DIR": "prompt_labels",
}

# What the authors of SPG call our keys, in their configs and on their command lines.
AUTHORS_KEYS = {
    "GRAD_CLIP": "TRAINER.SPG.GRAD_CLIP",
    "D_MAX_NORM_WEIGHT": "TRAINER.SPG.D_WEIGHT_NORM",
    "D_MAX_NORM_BIAS": "TRAINER.SPG.D_BIAS_NORM",
    "D_MAX_NORM_LAST": "TRAINER.SPG.D_ENDS_NORM",
    "G_MAX_NORM_WEIGHT": "TRAINER.SPG.G_WEIGHT_NORM",
    "G_MAX_NORM_BIAS": "TRAINER.SPG.G_BIAS_NORM",
    "G_MAX_NORM_BIAS_LAST": "TRAINER.SPG.G_LAST_BIAS_NORM",
}
# Every config file of the authors has these keys, and neither of the others. CoOp's files do not have TEST.NO_TEST.
AUTHORS_HAVE, AUTHORS_LACK = {"TEST.NO_TEST", "INPUT.SIZE"}, {"OPTIM.WEIGHT_DECAY", "TEST.FINAL_MODEL"}
# The authors' code sets these keys itself, whatever their config file says.
AUTHORS_OVERRIDE = (
    *("OPTIM.NAME", "OPTIM.LR", "OPTIM.WEIGHT_DECAY", "OPTIM.WARMUP_EPOCH", "TEST.FINAL_MODEL"),
    *(key for key in AUTHORS_KEYS.values() if key.endswith("_NORM")),
)


def extend_cfg(cfg: CfgNode) -> None:
    """Add our keys to a config made by dassl.config.get_cfg_default(), in place."""
    cfg.MODEL.BACKBONE.PATH = "~/.cache/clip"  # where OpenAI's weights are downloaded to

    cfg.DATASET.TEST_SUBSET = "all"  # DomainNet: "published" tests on the 3 % that the authors tested on
    cfg.DATASET.LABEL = ""  # the data set's name in tables; "": its own, of a FolderDG that of its folder
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # base: the first half of the classes; new: the rest (as in CoOp)
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
    cfg.TRAINER.FEATURES.CACHE_DIR = ""  # "": feature_cache beside OUTPUT_DIR
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
    # Inverse strengths of the L2 penalty, as scikit-learn's LogisticRegression has it, to choose from; one: no choice.
    cfg.TRAINER.LINEAR_PROBE.C = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
    cfg.TRAINER.LINEAR_PROBE.HALVINGS = 0  # how many times C half way from the best to its neighbours are tried as well
    cfg.TRAINER.LINEAR_PROBE.NORMALISED = True  # whether features are L2-normalised
    cfg.TRAINER.LINEAR_PROBE.AUGMENTED = False  # fit one augmented look at each training image, not the image itself

    # KgCoOp, with the start and the weight of its paper.
    kgcoop = cfg.TRAINER.KGCOOP = CfgNode()
    kgcoop.N_CTX = 4
    kgcoop.CSC = False
    kgcoop.CTX_INIT = "a photo of a"
    kgcoop.PREC = "fp16"
    kgcoop.CLASS_TOKEN_POSITION = "end"
    kgcoop.W = 8.0  # weight of the distance to the fixed prompts' text features

    cfg.TRAINER.DPL = CfgNode()
    cfg.TRAINER.DPL.N_CTX = 4
    cfg.TRAINER.DPL.XAVIER = False  # start from Xavier's weights, as the original; False: PyTorch's, as SPG's authors
    cfg.TRAINER.DPL.BY_DOMAIN = False  # True: in training a context for the images of each domain, as in the original
    cfg.TRAINER.DPL.PREC = "fp16"

    vp = cfg.TRAINER.VP = CfgNode()
    vp.METHOD = "random"  # random: a patch at a place that is drawn; fix: at the upper left; pad: a frame
    vp.PROMPT_SIZE = 10  # side of the patch or width of the frame in pixels
    vp.PREC = "fp16"

    # VPT and MaPLe, as in MaPLe's repository.
    vpt = cfg.TRAINER.VPT = CfgNode()
    vpt.N_CTX_VISION = 10  # number of tokens in the image tower
    vpt.CTX_INIT = "a photo of a"  # words of the fixed prompts
    vpt.PREC = "fp16"
    # Number of layers with tokens of their own; 1: shallow. 0, here and below: 12 (PromptSRC: 9), or all of fewer.
    vpt.PROMPT_DEPTH_VISION = 1

    maple = cfg.TRAINER.MAPLE = CfgNode()
    maple.N_CTX = 2  # number of vectors, the first of the words'
    maple.CTX_INIT = "a photo of a"
    maple.PREC = "fp16"
    maple.PROMPT_DEPTH = 9  # number of layers with prompts of their own, in both towers

    promptsrc = cfg.TRAINER.PROMPTSRC = CfgNode()
    promptsrc.N_CTX_VISION = 4
    promptsrc.N_CTX_TEXT = 4
    promptsrc.CTX_INIT = "a photo of a"
    promptsrc.PREC = "fp16"
    promptsrc.PROMPT_DEPTH_VISION = 9
    promptsrc.PROMPT_DEPTH_TEXT = 9
    promptsrc.TEXT_LOSS_WEIGHT = 25.0  # of the mean distance to the frozen text features
    promptsrc.IMAGE_LOSS_WEIGHT = 10.0  # of that to the frozen image features
    promptsrc.GPA_MEAN = 15.0  # epoch about which, and within which, weights count in the final model
    promptsrc.GPA_STD = 1.0

    dpspg = cfg.TRAINER.DPSPG = CfgNode()
    dpspg.N_CTX = 4
    dpspg.CTX_INIT = "a photo of a"
    dpspg.NEG_CTX_INIT = "a photo without a"  # of the negative label; as many tokens
    dpspg.PREC = "fp16"
    dpspg.ALPHA = 0.2  # weight of the negative cosines
    dpspg.EARLY = 0  # stage II stops after this epoch, on the schedule of OPTIM.MAX_EPOCH; 0: at its end
    dpspg.EARLY_TARGETS = ()  # target domains (full names) for which it does; (): all
    dpspg.LATE = 0  # validation chooses among the epochs of stage II after this one; 0: all
    dpspg.LATE_TARGETS = ()  # target domains (full names) for which it does; (): all
    # <LABEL_DIR>/{pos,neg}/<dataset>/<backbone>/seed_<k>/<domain>.pt; "": as SPG's
    dpspg.LABEL_DIR = ""
    dpspg.LABEL_SEED = -1  # seed of the prompt labels; -1: the run's SEED
    dpspg.STAGE1_CONFIG_FILE = "configs/trainers/DPSPG_CoOp/default.yaml"  # as SPG's
    dpspg.STAGE1_OPTS = ()

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
    # <LABEL_DIR>/<dataset>/<backbone>/seed_<k>/<domain>.pt; "": prompt_labels beside OUTPUT_DIR
    spg.LABEL_DIR = ""
    spg.LABEL_SEED = -1  # seed of the prompt labels; -1: the run's SEED (the published labels have seed 1)
    # Stage I inside the trainer SPG: its OPTIM section comes from this file (the rest is shared with stage II), then
    # from these KEY VALUE pairs.
    spg.STAGE1_CONFIG_FILE = "configs/trainers/SPG_CoOp/default.yaml"
    spg.STAGE1_OPTS = ()


def default_cfg() -> CfgNode:
    """All keys, Dassl's and ours, at their defaults."""
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    extend_cfg(cfg)
    return cfg


def shared_folders(cfg: CfgNode) -> dict[str, str]:
    """The keys of folders that a config does not name, with those to take: a run goes on with what it began with."""
    try:
        begun = CfgNode.load_cfg(Path(cfg.OUTPUT_DIR, "config.yaml").read_text(encoding="utf-8"))
    except Exception:  # of a run that has not begun, or whatever YAML makes of a broken file
        begun = CfgNode()
    beside = Path(cfg.OUTPUT_DIR).parent
    return {
        key: str(value_of(begun, key, "") or beside / name)
        for key, name in SHARED_FOLDERS.items()
        if not value_of(cfg, key)
    }


def leaves(node: CfgNode, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a config with its value: ("OPTIM.LR", 0.002)."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def apply_settings(cfg: CfgNode, opts: Iterable[Any]) -> None:
    """Merge KEY VALUE pairs into a config, the later over the earlier.

    Raises:
        UserError: a key does not exist, has no value, or not one of its type.
    """
    opts = list(opts)
    if len(opts) % 2:
        raise UserError(f"Settings come in pairs KEY VALUE; {opts[-1]!r} has no value.")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        set_key(cfg, key, value)


def merge_file(cfg: CfgNode, path: str | PathLike, what: str = "Config file", any_type: bool = False) -> None:
    """Merge a YAML file into a config.

    Args:
        cfg: changed in place.
        path: the file.
        what: it is, for messages.
        any_type: take values of any type: those of a run that was done with them.

    Raises:
        UserError: it is not there, is no YAML, says something twice, has a key that does not exist, or a value that is
            not of its key's type.
    """
    path = Path(path)
    if not path.is_file():
        folder = path.parent
        found = sorted(name for name in os.listdir(folder) if name.endswith(".yaml")) if folder.is_dir() else []
        raise UserError(f"{what} {path} is not there. {folder} has: {', '.join(found) or 'no config files'}.")
    try:
        if path.suffix not in ("", ".yaml", ".yml"):
            raise ValueError("it is not YAML by its name; rename it to end in .yaml")
        text = read_text(path)
        tree = CfgNode.load_cfg(text)
        _check_said_once(yaml.compose(text, yaml.SafeLoader))
        for key, value in leaves(tree):
            # A section whose keys are all commented out is None.
            if value is not None or not isinstance(value_of(cfg, key, None), CfgNode):
                set_key(cfg, key, value, any_type)
    except Exception as error:  # whatever YAML and yacs make of a broken file
        raise UserError(f"{what} {path} cannot be used: {error}") from error


def merge_method_file(cfg: CfgNode, path: str | PathLike, trainer: str, what: str = "Config file") -> str:
    """Merge the config file of a method. A file of SPG's authors trains as their code does.

    Our as_run.yaml, or else our default.yaml, has the settings that are in their code and not in their file.

    Args:
        cfg: changed in place.
        path: the file.
        trainer: name of the trainer that the file is for.
        what: see `merge_file`.

    Returns:
        A line that names the values of the file that the authors' code overrides, or "".

    Raises:
        UserError: see `merge_file`.
    """
    given, method = cfg.clone(), method_of(trainer)
    merge_file(given, path, what)
    if method is None or not _is_authors_file(path):
        merge_file(cfg, path, what)
        return ""
    ours = next(file for file in map(method.config_file, ("as_run", "default")) if file.is_file())
    for file in (ours, path):
        merge_file(cfg, file, what)
    overriding = {key: value for key, value in _leaves_of(ours).items() if key in AUTHORS_OVERRIDE}
    apply_settings(cfg, [word for pair in overriding.items() for word in pair])
    cfg.TRAINER.SPG.GRAD_CLIP_OFF_TARGETS = ()  # the authors edit GRAD_CLIP for each target
    pairs = {key: (value_of(given, key), value_of(cfg, key)) for key in overriding}
    changes = [f"{key} {new} (not {old})" for key, (old, new) in pairs.items() if new != old]
    return f"Note: {path} is a config of SPG's authors. Their code sets {', '.join(changes)}." if changes else ""


def _is_authors_file(path: str | PathLike) -> bool:
    """Whether a config file is one of SPG's authors, by its keys."""
    keys = _leaves_of(path).keys()
    return not keys.isdisjoint(AUTHORS_KEYS) or (keys >= AUTHORS_HAVE and keys.isdisjoint(AUTHORS_LACK))


def _leaves_of(path: str | PathLike) -> dict[str, Any]:
    return dict(leaves(CfgNode.load_cfg(Path(path).read_text(encoding="utf-8-sig"))))


def set_key(cfg: CfgNode, key: str, given: Any, any_type: bool = False) -> None:
    """Set one key of a config.

    Args:
        cfg: changed in place.
        key: "OPTIM.LR", or one of AUTHORS_KEYS.
        given: a text of a command line, or an entry of a YAML file; an int is a float where one is meant.
        any_type: take a value of any type.

    Raises:
        UserError: the key does not exist, or the value is not of its type.
    """
    key = AUTHORS_KEYS.get(key, key)
    section, _, name = key.rpartition(".")
    default = value_of(cfg, key, NOWHERE)
    if default is NOWHERE:
        raise UserError(f"Non-existent key: {key}. {_hint(key, cfg)}")
    if isinstance(default, CfgNode):
        raise UserError(f"{key} is a section, not a key; it has {', '.join(f'{key}.{one}' for one in default)}.")
    kind = kind_for(key, default)
    value = kind.read(given)
    if kind.fits(value):
        if isinstance(default, (float, list, tuple)):
            value = type(default)(value)
    elif not any_type:
        raise UserError(refusal(key, value, kind, cfg, default))
    value_of(cfg, section)[name] = value


def _hint(key: str, cfg: CfgNode) -> str:
    """What may have been meant by a key that does not exist: one of the same name elsewhere, or of a similar one."""
    keys = [one for one, _ in leaves(cfg)]
    key = key.upper()
    same = [one for one in keys if one.rpartition(".")[2] == key.rpartition(".")[2]]
    near = difflib.get_close_matches(key, same or keys, n=1) or same[:1]
    return f"Did you mean {near[0]}?" if near else "See trainers/config.py for ours."


def _check_said_once(node: yaml.Node | None, above: str = "") -> None:
    """Raise ValueError if a mapping of a YAML file has a key twice, of which YAML would take the last."""
    if not isinstance(node, yaml.MappingNode):
        return
    names = [str(key.value) for key, _ in node.value]
    for name, (_, value) in zip(names, node.value, strict=True):
        if names.count(name) > 1:
            raise ValueError(f"{above}{name} stands there {names.count(name)} times; put what is below it together")
        _check_said_once(value, f"{above}{name}.")
