"""Checks of a complete config: values out of range, contradictions between keys, keys without effect."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from yacs.config import CfgNode

from common.errors import UserError
from trainers.config import (
    COUNTED,
    FIRST,
    SECTIONS,
    SHARED_FOLDERS,
    as_typed,
    default_cfg,
    field_of,
    invalid_values,
    leaves,
    value_of,
)
from trainers.modules.prompt_tokens import tokenize_context

if TYPE_CHECKING:
    from trainers.base.trainer import PromptTrainer
    from trainers.modules.clip.tokenizer import Tokenizer

METRICS = ("accuracy", "macro_f1", "perclass_accuracy")  # of Dassl's evaluator; higher is better


def check_settings(cfg: CfgNode, trainer: "type[PromptTrainer]") -> None:
    """Check values and contradictions; raises UserError with a line for each problem."""
    if problems := list(invalid_values(cfg)) or list(_contradictions(cfg, trainer)):
        raise UserError("\n".join(problems))


def _contradictions(cfg: CfgNode, trainer: "type[PromptTrainer]") -> Iterator[str]:
    """Settings that exclude each other or that the trainer cannot have."""
    name, optim, given = cfg.TRAINER.NAME, cfg.OPTIM, cfg.MODEL.INIT_WEIGHTS
    if (views := cfg.TRAINER.FEATURES.TRAIN_VIEWS) and trainer.IMAGE_TOWER_LEARNS:
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
    if "OPTIM" in trainer.UNREAD:
        return
    if optim.NAME == "sgd" and optim.SGD_NESTEROV and (not optim.MOMENTUM or optim.SGD_DAMPNING):
        yield "OPTIM.SGD_NESTEROV needs momentum without dampening. Set OPTIM.MOMENTUM 0.9 OPTIM.SGD_DAMPNING 0."
    if optim.LR_SCHEDULER == "multi_step" and min(optim.STEPSIZE) < 1:
        steps = tuple(optim.STEPSIZE)
        yield f'OPTIM.STEPSIZE is {steps}, but multi_step needs epochs from 1 on. Set it for example to "(20, 40)".'


def check_words(cfg: CfgNode, trainer: "type[PromptTrainer]", tokenizer: "Tokenizer") -> dict[str, int]:
    """Compare numbers of context vectors with CTX_INIT; returns the keys that its number of tokens overrides."""
    node, own = f"TRAINER.{trainer.SETTINGS}", cfg.TRAINER[trainer.SETTINGS]
    words = {key: own[key] for key in trainer.WORDS if own.get(key)}
    lengths = {key: len(tokenize_context(text, tokenizer)) for key, text in words.items()}
    if len(set(lengths.values())) > 1:
        found = " and ".join(f"{node}.{key} {words[key]!r} has {n} tokens" for key, n in lengths.items())
        raise UserError(f"{found}. Give both the same number of tokens.")
    counted, n = {}, lengths.get("CTX_INIT", 0)
    for name, field in SECTIONS[node].model_fields.items() if n and node in SECTIONS else ():
        begin = f"{node}.{name} is {own[name]}, but {node}.CTX_INIT is {words['CTX_INIT']!r} of {n} tokens. "
        if COUNTED in field.metadata and own[name] not in (n, field.default):
            raise UserError(f'{begin}Set {node}.{name} {n}, or {node}.CTX_INIT "" for {own[name]} random vectors.')
        if FIRST in field.metadata and own[name] > n:
            raise UserError(f'{begin}Set {node}.{name} to 1 to {n}, or {node}.CTX_INIT "" for random vectors.')
        if COUNTED in field.metadata:
            counted[f"{node}.{name}"] = n
    return counted


def has_effect(key: str, cfg: CfgNode) -> bool:
    """Whether the trainer of a config reads a key; True for a trainer or a folder of others."""
    trainer, node = _trainer_of(cfg), key.rpartition(".")[0]
    if trainer is None or key in SHARED_FOLDERS:
        return True
    if any(f"{key}.".startswith(f"{unread}.") for unread in trainer.UNREAD):
        return False
    if node in ("INPUT", f"TRAINER.{trainer.SETTINGS}"):  # Dassl's transforms read all of INPUT
        return True
    return field_of(key) is not None and (not node.startswith("TRAINER.") or node == "TRAINER.FEATURES")


def _trainer_of(cfg: CfgNode) -> "type[PromptTrainer] | None":
    from dassl.engine import TRAINER_REGISTRY

    name = cfg.TRAINER.NAME
    trainer = TRAINER_REGISTRY.get(name) if name in TRAINER_REGISTRY.registered_names() else None
    return trainer if hasattr(trainer, "UNREAD") else None


def settings_notes(*configs: CfgNode) -> list[str]:
    """Notes on settings that trainers do not read, and on trainings that end within their warm-up."""
    trainers = dict[str, list[str]]()  # by setting
    warm_ups = dict[str, list[str]]()
    defaults = default_cfg()
    for cfg in configs:
        for key, default in leaves(defaults):
            value = value_of(cfg, key, default)
            same = list(value) == list(default) if isinstance(default, (list, tuple)) else value == default
            if not same and not has_effect(key, cfg):
                trainers.setdefault(f"{key} {as_typed(value)}", []).append(cfg.TRAINER.NAME)
        warm_up, epochs = cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.MAX_EPOCH
        if warm_up >= epochs and _trainer_of(cfg) and has_effect("OPTIM.WARMUP_EPOCH", cfg):
            text = f"OPTIM.MAX_EPOCH {epochs} is within the warm-up, OPTIM.WARMUP_EPOCH {warm_up} (0: no warm-up)"
            warm_ups.setdefault(text, []).append(cfg.TRAINER.NAME)
    settings = dict[str, list[str]]()
    for setting, names in trainers.items():
        settings.setdefault(", ".join(names), []).append(setting)
    return [f"Note: without effect on {names}: {', '.join(given)}." for names, given in settings.items()] + [
        f"Note: OPTIM.LR is never reached by {', '.join(names)}: {text}." for text, names in warm_ups.items()
    ]
