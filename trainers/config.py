"""Config keys: declared as sections, set by files and command lines, checked once for each run.

A method declares its keys as a `Section` in trainers/<method>.py. This file has the keys that methods share; those
without a default are Dassl's.
"""

import ast
import contextlib
import difflib
import re
from collections.abc import Iterator, Sequence
from enum import Enum
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from yacs.config import CfgNode

from common.errors import UserError
from common.files import read_text
from trainers.methods import method_of

if TYPE_CHECKING:
    from trainers.base.trainer import PromptTrainer
    from trainers.modules.clip.tokenizer import Tokenizer

SECTIONS: dict[str, type["Section"]] = {}


class Section(BaseModel):
    """The keys of a config node: class MyKeys(Section, node="TRAINER.MINE")."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    def __init_subclass__(cls, node: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        SECTIONS[node] = cls


def _is_listed(module: str, name: str) -> AfterValidator:
    """Accept the names that a module lists. Dassl.pytorch does not list all of them."""

    def check(value: str) -> str:
        names = getattr(__import__(module, fromlist=[name]), name, (value,))
        if value not in names:
            raise ValueError(", ".join(names))
        return value

    return AfterValidator(check)


def _has_words(value: str) -> str:
    if not any(map(str.isalnum, value)):
        raise ValueError("one or more words")
    return value


class ContextLength(Enum):
    """The tokens of CTX_INIT that initialise the context vectors. With ALL_TOKENS they also set their number."""

    ALL_TOKENS = 1
    FIRST_TOKENS = 2


PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
NCtx = Annotated[PositiveInt, ContextLength.ALL_TOKENS]
FirstNCtx = Annotated[PositiveInt, ContextLength.FIRST_TOKENS]
Words = Annotated[str, AfterValidator(_has_words)]
Precision = Literal["fp32", "fp16", "bf16", "amp"]
ClassTokenPosition = Literal["end", "middle", "front"]
Seed = Annotated[int, Field(ge=-1, lt=2**32)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Sampler = Annotated[str, _is_listed("dassl.data.samplers", "AVAI_SAMPLERS")]
Transform = Annotated[str, _is_listed("dassl.data.transforms.transforms", "AVAI_CHOICES")]


class RunKeys(Section, node=""):
    OUTPUT_DIR: str
    RESUME: str
    SEED: Seed  # -1: not seeded
    USE_CUDA: bool
    VERBOSE: bool


class InputKeys(Section, node="INPUT"):
    INTERPOLATION: Annotated[str, _is_listed("dassl.data.transforms", "INTERPOLATION_MODES")]
    TRANSFORMS: tuple[Transform, ...]
    NO_TRANSFORM: Literal[False]
    PIXEL_MEAN: Annotated[tuple[float, ...], Field(min_length=3, max_length=3)]
    PIXEL_STD: Annotated[tuple[PositiveFloat, ...], Field(min_length=3, max_length=3)]
    CROP_PADDING: NonNegativeInt
    RRCROP_SCALE: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=2, max_length=2)]


class DatasetKeys(Section, node="DATASET"):
    ROOT: str
    NAME: str
    SOURCE_DOMAINS: tuple[str, ...]
    TARGET_DOMAINS: tuple[str, ...]
    NUM_SHOTS: Annotated[int, Field(ge=-1)]  # -1 or 0: all images
    TEST_SUBSET: Literal["all", "published"] = "all"  # DomainNet: "published" is the 3 % that the authors tested on
    LABEL: str = ""  # name of the data set in tables; "": its own, or the folder's of a FolderDG
    SUBSAMPLE_CLASSES: Literal["all", "base", "new"] = "all"  # base: first half of the classes; new: the rest
    SKIP_UNREADABLE: bool = False  # True: decode each image once at the start, and skip the damaged ones


class LoaderKeys(Section, node="DATALOADER"):
    NUM_WORKERS: NonNegativeInt
    K_TRANSFORMS: Literal[1]
    CACHE_MB: Annotated[int, Field(ge=-1)] = -1  # memory for decoded images in MB; -1: a quarter of the free memory


class TrainLoaderKeys(Section, node="DATALOADER.TRAIN_X"):
    SAMPLER: Sampler
    BATCH_SIZE: PositiveInt
    N_DOMAIN: NonNegativeInt  # 0: all domains
    N_INS: PositiveInt


class TestLoaderKeys(Section, node="DATALOADER.TEST"):
    BATCH_SIZE: PositiveInt


class ModelKeys(Section, node="MODEL"):
    INIT_WEIGHTS: str


class BackboneKeys(Section, node="MODEL.BACKBONE"):
    NAME: str
    PRETRAINED: Literal[True]
    PATH: str = "~/.cache/clip"  # download folder of OpenAI's weights


class OptimKeys(Section, node="OPTIM"):
    NAME: Annotated[str, _is_listed("dassl.optim.optimizer", "AVAI_OPTIMS")]
    LR: NonNegativeFloat
    WEIGHT_DECAY: NonNegativeFloat
    MOMENTUM: BelowOne
    SGD_DAMPNING: Share = 0.0  # an int in Dassl
    SGD_NESTEROV: bool
    RMSPROP_ALPHA: BelowOne
    ADAM_BETA1: BelowOne
    ADAM_BETA2: BelowOne
    STAGED_LR: Literal[False]
    LR_SCHEDULER: Annotated[str, _is_listed("dassl.optim.lr_scheduler", "AVAI_SCHEDS")]
    STEPSIZE: Annotated[tuple[Annotated[int, Field(ge=-1)], ...], Field(min_length=1)]  # -1 or 0: MAX_EPOCH
    GAMMA: PositiveFloat
    MAX_EPOCH: PositiveInt
    WARMUP_EPOCH: Annotated[int, Field(ge=-1)]  # -1 or 0: no warm-up
    WARMUP_TYPE: Annotated[str, _is_listed("dassl.optim.lr_scheduler", "AVAI_WARMUPS")]
    WARMUP_CONS_LR: NonNegativeFloat
    WARMUP_MIN_LR: NonNegativeFloat
    WARMUP_RECOUNT: bool


class TrainKeys(Section, node="TRAIN"):
    CHECKPOINT_FREQ: NonNegativeInt
    PRINT_FREQ: PositiveInt


class TestKeys(Section, node="TEST"):
    EVALUATOR: str
    PER_CLASS_RESULT: bool
    COMPUTE_CMAT: bool
    NO_TEST: bool
    SPLIT: Literal["test"]
    FINAL_MODEL: Literal["last_step", "best_val"]
    N_PROMPTS: PositiveInt = 1  # SPG: contexts generated for each image; their logits are averaged
    SELECT_BY: str = "accuracy"  # metric of the evaluator that chooses the best epoch; higher is better
    KEEP_LOGITS: bool = True  # write logits.npy of the test images, 2 bytes for each image and class
    MEMORY_MB: NonNegativeInt = 0  # limit on intermediate results of the text tower in MB; 0: depends on the device


class TrainerKeys(Section, node="TRAINER"):
    NAME: str
    CONFIG: str = ""  # name of the method's config file in tables; train.py sets it
    FUSED_ADAMW: bool = True  # AdamW as one kernel, three times as fast; False: PyTorch's plain one, other last digits


class FeatureKeys(Section, node="TRAINER.FEATURES"):
    CACHE: bool = True  # cache features of images on disk, except features of augmented batches
    CACHE_DIR: str = ""  # "": feature_cache next to OUTPUT_DIR
    TRAIN_VIEWS: NonNegativeInt = 0  # 0: encode each augmented batch; K: draw from K views that are encoded once


METRICS = ("accuracy", "macro_f1", "perclass_accuracy")  # of Dassl's evaluator; higher is better
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
# Folders that runs share. By default, they are next to the folder of the run.
SHARED_FOLDERS = {
    "TRAINER.FEATURES.CACHE_DIR": "feature_cache",
    "TRAINER.SPG.LABEL_DIR": "prompt_labels",
    "TRAINER.DPSPG.LABEL_DIR": "prompt_labels",
}
# Keys in the configs and command lines of SPG's authors -> ours.
AUTHORS_KEYS = {
    "GRAD_CLIP": "TRAINER.SPG.GRAD_CLIP",
    "D_MAX_NORM_WEIGHT": "TRAINER.SPG.D_WEIGHT_NORM",
    "D_MAX_NORM_BIAS": "TRAINER.SPG.D_BIAS_NORM",
    "D_MAX_NORM_LAST": "TRAINER.SPG.D_ENDS_NORM",
    "G_MAX_NORM_WEIGHT": "TRAINER.SPG.G_WEIGHT_NORM",
    "G_MAX_NORM_BIAS": "TRAINER.SPG.G_BIAS_NORM",
    "G_MAX_NORM_BIAS_LAST": "TRAINER.SPG.G_LAST_BIAS_NORM",
}
# All config files of the authors have the first keys and lack the others. CoOp's files lack TEST.NO_TEST.
AUTHORS_HAVE, AUTHORS_LACK = {"TEST.NO_TEST", "INPUT.SIZE"}, {"OPTIM.WEIGHT_DECAY", "TEST.FINAL_MODEL"}
# The authors' code sets these keys and ignores their values in config files.
AUTHORS_OVERRIDE = (
    *("OPTIM.NAME", "OPTIM.LR", "OPTIM.WEIGHT_DECAY", "OPTIM.WARMUP_EPOCH", "TEST.FINAL_MODEL"),
    *(key for key in AUTHORS_KEYS.values() if key.endswith("_NORM")),
)


# ---- read and set ----


def extend_cfg(cfg: CfgNode) -> None:
    """Add our keys to a config of dassl.config.get_cfg_default(), in place."""
    import trainers.all  # noqa: F401 (each method declares its keys)

    for node, section in SECTIONS.items():
        above, _, name = node.rpartition(".")
        if node and name not in value_of(cfg, above):
            value_of(cfg, above)[name] = CfgNode()
        ours = {key: field.default for key, field in section.model_fields.items() if not field.is_required()}
        value_of(cfg, node).update(ours)


def default_cfg() -> CfgNode:
    """All keys, Dassl's and ours, at their defaults."""
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    extend_cfg(cfg)
    return cfg


def value_of(cfg: CfgNode, key: str, *default: Any) -> Any:
    """The value of a key or the section with this name ("": the config itself), else the default, else KeyError."""
    node: Any = cfg
    for part in filter(None, key.split(".")):
        if not isinstance(node, CfgNode) or part not in node:
            if default:
                return default[0]
            raise KeyError(key)
        node = node[part]
    return node


def field_of(key: str) -> FieldInfo | None:
    """The declaration of a key; None for Dassl's keys that we do not read."""
    node, _, name = key.rpartition(".")
    return SECTIONS[node].model_fields.get(name) if node in SECTIONS else None


def iterate_keys(node: CfgNode, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a config with its value: ("OPTIM.LR", 0.002)."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from iterate_keys(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def format_for_shell(value: Any) -> str:
    """A value as a shell's command line takes it."""
    is_quoted = isinstance(value, (list, tuple)) or value == "" or (isinstance(value, str) and " " in value)
    return f'"{value}"' if is_quoted else str(value)


def set_key(cfg: CfgNode, key: str, given: Any) -> None:
    """Set a key to a word of a command line or a value of a YAML file; raises UserError for another type."""
    key = AUTHORS_KEYS.get(key, key)
    section, _, name = key.rpartition(".")
    present, field = value_of(cfg, key, None), field_of(key)
    if present is None:
        raise UserError(f"Non-existent key: {key}. {_hint(key, cfg)}")
    if isinstance(present, CfgNode):
        raise UserError(f"{key} is a section, not a key; it has {', '.join(f'{key}.{one}' for one in present)}.")
    kind = field.annotation if field and field.annotation in KINDS else type(present)
    value = given
    if isinstance(given, str):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(given)
    if kind is str and type(given) in (str, int) and not isinstance(value, str):  # a folder may have the name 2024
        value = str(given)
    if field and field.annotation == tuple[str, ...] and isinstance(value, (list, tuple)):  # domains, too
        value = [str(one) for one in value]
    try:
        value_of(cfg, section)[name] = TypeAdapter(kind).validate_python(value, strict=kind in (bool, int, float))
    except ValidationError:
        raise UserError(_refusal(key, given, KINDS.get(kind, "a list such as \"['a', 'b']\""))) from None


def _hint(key: str, cfg: CfgNode) -> str:
    near = difflib.get_close_matches(key.upper(), [one for one, _ in iterate_keys(cfg)], n=1)
    return f"Did you mean {near[0]}?" if near else "The files in trainers/ declare our keys."


def _refusal(key: str, value: Any, accepted: str) -> str:
    default = value_of(default_cfg(), key, None)
    return f"{key} is {value!r}; accepted: {accepted}. The default is {key} {format_for_shell(default)}."


def apply_settings(cfg: CfgNode, opts: Sequence[Any]) -> None:
    """Set KEY VALUE pairs in a config; raises UserError as `set_key`."""
    if len(opts) % 2:
        raise UserError(f"Settings come in pairs KEY VALUE; {opts[-1]!r} has no value.")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        set_key(cfg, key, value)


def merge_file(cfg: CfgNode, path: str | PathLike, kind: str = "Config file") -> None:
    """Merge a YAML file into a config, in place; `kind` names the file in errors."""
    path = Path(path)
    if not path.is_file():
        found = sorted(one.name for one in path.parent.glob("*.yaml"))
        raise UserError(f"{kind} {path} is not there. {path.parent} has: {', '.join(found) or 'no config files'}.")
    try:
        text = read_text(path)
        tree = CfgNode.load_cfg(text)
        _check_repeated(yaml.compose(text, yaml.SafeLoader))
        for key, value in iterate_keys(tree):
            # YAML reads a section without keys as None.
            if value is not None or not isinstance(value_of(cfg, key, None), CfgNode):
                set_key(cfg, key, value)
    except Exception as error:  # yacs and YAML raise errors of any kind
        raise UserError(f"{kind} {path} cannot be used: {error}") from error


def _check_repeated(node: yaml.Node | None) -> None:
    """Raise ValueError if a YAML mapping has a key twice, since YAML would ignore the first."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    names = [str(key.value) for key, _ in pairs]
    for name, (_, value) in zip(names, pairs, strict=True):
        if names.count(name) > 1:
            raise ValueError(f"{name} is there {names.count(name)} times; join them")
        _check_repeated(value)


def merge_method_file(cfg: CfgNode, path: str | PathLike, trainer: str, kind: str = "Config file") -> str:
    """Merge the config file of a method, in place.

    For a file of SPG's authors, our as_run.yaml (or default.yaml) has the settings of the authors' code. Returns a line
    with the values of the file that this code overrides, or "".
    """
    given, method = cfg.clone(), method_of(trainer)
    merge_file(given, path, kind)
    if method is None or not _is_authors_file(path):
        merge_file(cfg, path, kind)
        return ""
    ours = next(file for file in map(method.config_file, ("as_run", "default")) if file.is_file())
    for file in (ours, path):
        merge_file(cfg, file, kind)
    changes = []
    for key, value in _read_keys(ours).items():
        if key in AUTHORS_OVERRIDE:
            set_key(cfg, key, value)
            if (new := value_of(cfg, key)) != (old := value_of(given, key)):
                changes.append(f"{key} {new} (not {old})")
    cfg.TRAINER.SPG.GRAD_CLIP_OFF_TARGETS = ()  # the authors edit GRAD_CLIP for each target
    return f"Note: {path} is a config of SPG's authors. Their code sets {', '.join(changes)}." if changes else ""


def _is_authors_file(path: str | PathLike) -> bool:
    keys = _read_keys(path).keys()
    return not keys.isdisjoint(AUTHORS_KEYS) or (keys >= AUTHORS_HAVE and keys.isdisjoint(AUTHORS_LACK))


def _read_keys(path: str | PathLike) -> dict[str, Any]:
    return dict(iterate_keys(CfgNode.load_cfg(Path(path).read_text(encoding="utf-8-sig"))))


# ---- check ----


def check_values(cfg: CfgNode) -> None:
    """Raise UserError with a line for each value that is not accepted."""
    problems = []
    for node, section in SECTIONS.items():
        values = value_of(cfg, node, {})
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        try:
            section.model_validate(given)
        except ValidationError as error:
            found = {one["loc"][0]: one["msg"] for one in reversed(error.errors()) if one["type"] != "missing"}
            for name, text in found.items():
                accepted = re.sub("^(Input should be|Tuple should have|Value error,) |'| after validation", "", text)
                accepted = f"numbers {accepted}" if accepted.startswith(("greater", "less")) else accepted
                problems.append(_refusal(f"{node}.{name}".lstrip("."), values[name], accepted))
    if problems:
        raise UserError("\n".join(problems))


def find_contradictions(cfg: CfgNode, trainer: "type[PromptTrainer]") -> Iterator[str]:
    """Yield an error message for each value that contradicts another one or the trainer."""
    name, optim, given = cfg.TRAINER.NAME, cfg.OPTIM, cfg.MODEL.INIT_WEIGHTS
    if (views := cfg.TRAINER.FEATURES.TRAIN_VIEWS) and trainer.image_tower_learns():
        key = "TRAINER.FEATURES.TRAIN_VIEWS"
        yield f"{key} is {views}, but the image tower of {name} learns, so its features change. Set {key} 0."
    for loader, (least, reason) in trainer.LEAST_BATCH.items():
        if (size := cfg.DATALOADER[loader].BATCH_SIZE) < least:
            yield f"DATALOADER.{loader}.BATCH_SIZE is {size}, but {reason}. Set it to {least} or more, for example 32."
    if given and not trainer.TAKES_INIT_WEIGHTS:
        yield f"MODEL.INIT_WEIGHTS is {given!r}, but {name} does not start from given prompts. Leave it out."
    elif given and not Path(given).expanduser().exists():
        yield f"MODEL.INIT_WEIGHTS is {given!r}; accepted: a checkpoint of a prompt learner or the folder of a run."
    if (final := cfg.TEST.FINAL_MODEL) not in trainer.FINAL_MODELS:
        yield f"TEST.FINAL_MODEL is {final!r}; accepted by {name}: {', '.join(trainer.FINAL_MODELS)}."
    if cfg.TEST.EVALUATOR == "Classification" and (metric := cfg.TEST.SELECT_BY) not in METRICS:
        yield f"TEST.SELECT_BY is {metric!r}; accepted: {', '.join(METRICS)}."
    low, high = cfg.INPUT.RRCROP_SCALE
    if low > high:
        yield f'INPUT.RRCROP_SCALE is {(low, high)}, which falls. Set INPUT.RRCROP_SCALE "{(high, low)}".'
    if "OPTIM" in trainer.UNREAD_KEYS:
        return
    if optim.NAME == "sgd" and optim.SGD_NESTEROV and (not optim.MOMENTUM or optim.SGD_DAMPNING):
        yield "OPTIM.SGD_NESTEROV needs momentum without dampening. Set OPTIM.MOMENTUM 0.9 OPTIM.SGD_DAMPNING 0."
    if optim.LR_SCHEDULER == "multi_step" and min(optim.STEPSIZE) < 1:
        steps = tuple(optim.STEPSIZE)
        yield f'OPTIM.STEPSIZE is {steps}, but multi_step needs epochs from 1 on. Set it for example to "(20, 40)".'


def check_context_lengths(cfg: CfgNode, trainer: "type[PromptTrainer]", tokenizer: "Tokenizer") -> dict[str, int]:
    """Compare numbers of context vectors with CTX_INIT; returns the keys that its number of tokens overrides."""
    node, own = f"TRAINER.{trainer.NODE}", cfg.TRAINER[trainer.NODE]
    words = {key: own[key] for key in trainer.CTX_INIT_KEYS if own.get(key)}
    lengths = {key: len(tokenizer.encode(text.replace("_", " "))) for key, text in words.items()}
    if len(set(lengths.values())) > 1:
        found = " and ".join(f"{node}.{key} {words[key]!r} has {n} tokens" for key, n in lengths.items())
        raise UserError(f"{found}. Give both the same number of tokens.")
    counted, n = dict[str, int](), lengths.get("CTX_INIT", 0)
    for name, field in SECTIONS[node].model_fields.items() if n and node in SECTIONS else ():
        begin = f"{node}.{name} is {own[name]}, but {node}.CTX_INIT is {words['CTX_INIT']!r} of {n} tokens. "
        if ContextLength.ALL_TOKENS in field.metadata and own[name] not in (n, field.default):
            raise UserError(f'{begin}Set {node}.{name} {n}, or {node}.CTX_INIT "" for {own[name]} random vectors.')
        if ContextLength.FIRST_TOKENS in field.metadata and own[name] > n:
            raise UserError(f'{begin}Set {node}.{name} to 1 to {n}, or {node}.CTX_INIT "" for random vectors.')
        if ContextLength.ALL_TOKENS in field.metadata:
            counted[f"{node}.{name}"] = n
    return counted


def has_effect(key: str, trainer: "type[PromptTrainer]") -> bool:
    node = key.rpartition(".")[0]
    if any(f"{key}.".startswith(f"{unread}.") for unread in trainer.UNREAD_KEYS):
        return False
    # Dassl's transforms read all of INPUT.
    if node in ("INPUT", "TRAINER.FEATURES", f"TRAINER.{trainer.NODE}"):
        return True
    return field_of(key) is not None and not node.startswith("TRAINER.")


def settings_notes(cfg: CfgNode, trainer: "type[PromptTrainer]") -> list[str]:
    """Notes on settings that the trainer does not read, and on a training that ends within its warm-up."""
    notes, name, optim = [], cfg.TRAINER.NAME, cfg.OPTIM
    defaults = {key: (default, value_of(cfg, key, default)) for key, default in iterate_keys(default_cfg())}
    changed = {key: value for key, (default, value) in defaults.items() if _plain(value) != _plain(default)}
    if unread := [f"{key} {format_for_shell(value)}" for key, value in changed.items() if not has_effect(key, trainer)]:
        notes.append(f"Note: without effect on {name}: {', '.join(unread)}.")
    if optim.WARMUP_EPOCH >= optim.MAX_EPOCH and has_effect("OPTIM.WARMUP_EPOCH", trainer):
        notes.append(
            f"Note: OPTIM.LR is never reached by {name}: OPTIM.MAX_EPOCH {optim.MAX_EPOCH} is within the warm-up of "
            f"{optim.WARMUP_EPOCH} epochs. Set OPTIM.WARMUP_EPOCH 0 to train without one."
        )
    return notes


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
