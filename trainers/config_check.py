"""The one check of a config, before anything is loaded: no value that is out of its range, none that says nothing.

The rule for settings that have no effect. Two of the trainer's own that contradict each other are an error, and so is
what Dassl offers and is not done here though results would be taken for it (other weights, another split): a reader of
config.yaml would believe what is not so. Whatever else was set to other than its default and has no effect, being
another trainer's, or of use only with a setting that is not made, is told in a line (`settings_without_effect`).
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from yacs.config import CfgNode

from common.errors import UserError
from trainers.config import apply_settings, default_cfg, leaves
from trainers.config_keys import EVERY, KEYS, STEPPING, is_not_read, kind_for, refusal, value_of
from trainers.config_values import Pairs, Place, as_typed

if TYPE_CHECKING:
    from trainers.modules.tokenizers import Tokenizer


def check_settings(cfg: CfgNode, tokenizer: "Tokenizer | None" = None) -> None:
    """Check all keys of a config, by themselves and together.

    Args:
        tokenizer: of the backbone; None: OpenAI's, and words are not counted where the backbone may have another.

    Raises:
        UserError: what is wrong, each key with what was given, what is accepted, and what mends it.
    """
    problems = list(_refused(cfg, KEYS)) or list(_contradictions(cfg, tokenizer))
    if problems:
        raise UserError("\n".join(problems))


def check_values(cfg: CfgNode, keys: Iterable[str], what: str = "") -> None:
    """Raise UserError, its message beginning with `what`, where one of these keys has a value that is not accepted."""
    problems = list(_refused(cfg, keys))
    if problems:
        raise UserError(what + "\n".join(problems))


def settings_without_effect(*configs: CfgNode) -> list[str]:
    """Of all that is set to other than its default and has no effect on a config's trainer: lines.

    A line is about what has no effect on the same trainers for the same reason; of several configs each setting of one
    value is told once, unless there are several reasons.
    """
    trainers = dict[tuple[str, str], list[str]]()  # by setting and reason
    for cfg in configs:
        for key, default in leaves(default_cfg()) if cfg.TRAINER.NAME in EVERY else ():  # else we know nothing of it
            value = value_of(cfg, key, default)
            if not _same(value, default) and (reason := _no_effect(key, cfg.TRAINER.NAME, cfg)):
                trainers.setdefault((f"{key} {as_typed(value)}", reason), []).append(cfg.TRAINER.NAME)
    lines = dict[tuple[str, str], list[str]]()
    for (given, reason), names in trainers.items():
        lines.setdefault((", ".join(names), reason), []).append(given)
    return [f"Note: without effect on {on}: {', '.join(given)} ({why})." for (on, why), given in lines.items()]


def only_warm_up(*configs: CfgNode) -> list[str]:
    """That some trainers end within their warm-up, so that the learning rate that is set is never reached: lines."""
    trainers = dict[tuple[int, int], list[str]]()
    for cfg in configs:
        warm_up, epochs = cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.MAX_EPOCH
        if cfg.TRAINER.NAME in STEPPING and warm_up >= epochs:
            trainers.setdefault((warm_up, epochs), []).append(cfg.TRAINER.NAME)
    return [
        f"Note: {', '.join(names)}: all epochs are warm-up, so OPTIM.LR is never reached: OPTIM.MAX_EPOCH is {epochs} "
        f"and OPTIM.WARMUP_EPOCH {warm_up} (0: no warm-up)."
        for (warm_up, epochs), names in trainers.items()
    ]


def has_effect(key: str, cfg: CfgNode) -> bool:
    """Whether a key has an effect on a config's trainer, as far as that is known."""
    return cfg.TRAINER.NAME not in EVERY or not _no_effect(key, cfg.TRAINER.NAME, cfg)


def counted_contexts(cfg: CfgNode, tokenizer: "Tokenizer | None" = None) -> dict[str, int]:
    """The keys of the trainer that say how many context vectors there are, where words say it: {key: their number}.

    Args:
        tokenizer: of the backbone; None: OpenAI's, which nearly all have.
    """
    found = {}
    for key, row in KEYS.items():
        words = value_of(cfg, row.words, "") if row.words and cfg.TRAINER.NAME in row.readers else ""
        if words and (n := _n_tokens(words, tokenizer)):
            found[key] = n
    return found


def _n_tokens(words: str, tokenizer: "Tokenizer | None") -> int:
    from trainers.modules.prompt_tokens import tokenize_context
    from trainers.modules.tokenizers import CLIP_TOKENIZER

    return len(tokenize_context(words, tokenizer or CLIP_TOKENIZER))


def _refused(cfg: CfgNode, keys: Iterable[str]) -> Iterator[str]:
    """Messages about values that are not accepted."""
    defaults = default_cfg()
    for key in keys:
        default = value_of(defaults, key, None)
        value = value_of(cfg, key, default)  # another Dassl may have fewer keys
        kind = kind_for(key, default, cfg.TRAINER.NAME)
        if not kind.holds(value, cfg):
            yield refusal(key, value, kind, cfg, default)
        elif isinstance(kind, Pairs):
            yield from _refused_pairs(key, value)


def _refused_pairs(key: str, pairs: Any) -> Iterator[str]:
    cfg = default_cfg()
    try:
        apply_settings(cfg, pairs)
        check_values(cfg, pairs[::2])
    except UserError as error:
        yield f"{key} is {list(pairs)}: {error}"


def _words_differ(cfg: CfgNode, tokenizer: "Tokenizer | None") -> Iterator[str]:
    """Messages about words and numbers of context vectors that do not go together."""
    from trainers.modules.backbone_sources import source_of

    if tokenizer is None and source_of(cfg.MODEL.BACKBONE.NAME).prefix:
        return  # which may have another one: its words are counted when it is there
    defaults = default_cfg()
    for key, n in counted_contexts(cfg, tokenizer).items():
        given, words = value_of(cfg, key), KEYS[key].words
        if given not in (n, value_of(defaults, key)):
            yield (
                f"{key} is {given}, but {words} is {value_of(cfg, words)!r}, and a context that starts from words has "
                f'as many vectors, here {n}. For {given} random ones set {words} ""; for these words {key} {n}.'
            )
    for key, row in KEYS.items():
        words = value_of(cfg, row.first_of) if row.first_of and cfg.TRAINER.NAME in row.readers else ""
        given = value_of(cfg, key)
        if words and given > (n := _n_tokens(words, tokenizer)):
            yield (
                f"{key} is {given}, but {row.first_of} is {words!r}, of whose {n} tokens a context starts from the "
                f'first so many; accepted: 1 to {n}, or with {row.first_of} "" any number of random ones. Set {key} '
                f"{n}."
            )
    if cfg.TRAINER.NAME in KEYS["TRAINER.DPSPG.NEG_CTX_INIT"].readers:
        yield from _signs_differ(cfg.TRAINER.DPSPG, tokenizer)


def _contradictions(cfg: CfgNode, tokenizer: "Tokenizer | None") -> Iterator[str]:
    """Messages about settings that are each accepted, but not together."""
    yield from _words_differ(cfg, tokenizer)
    optim = cfg.OPTIM
    if cfg.TRAINER.NAME in EVERY - STEPPING:
        return
    if optim.NAME == "sgd" and optim.SGD_NESTEROV and not (optim.MOMENTUM and not optim.SGD_DAMPNING):
        yield (
            f"OPTIM.SGD_NESTEROV is True, which takes momentum and no dampening, but OPTIM.MOMENTUM is "
            f"{optim.MOMENTUM} and OPTIM.SGD_DAMPNING {optim.SGD_DAMPNING}. Set OPTIM.MOMENTUM 0.9 OPTIM.SGD_DAMPNING "
            "0, or OPTIM.SGD_NESTEROV False."
        )
    if optim.LR_SCHEDULER == "multi_step" and any(step < 1 for step in optim.STEPSIZE):
        yield (
            f"OPTIM.STEPSIZE is {tuple(optim.STEPSIZE)}, but OPTIM.LR_SCHEDULER multi_step takes the epochs after "
            'which the rate drops, whole numbers from 1: OPTIM.STEPSIZE "(20, 40)".'
        )


def _signs_differ(settings: CfgNode, tokenizer: "Tokenizer | None") -> Iterator[str]:
    """The message that the words of both signs have other numbers of tokens, if they have."""
    both = settings.CTX_INIT, settings.NEG_CTX_INIT
    positive, negative = (words and _n_tokens(words, tokenizer) for words in both)
    if positive and negative and positive != negative:
        yield (
            f"TRAINER.DPSPG.NEG_CTX_INIT {settings.NEG_CTX_INIT!r} has {negative} tokens, and CTX_INIT "
            f"{settings.CTX_INIT!r} {positive}; accepted: as many in both. The defaults are TRAINER.DPSPG.CTX_INIT "
            '"a photo of a" TRAINER.DPSPG.NEG_CTX_INIT "a photo without a".'
        )


def _no_effect(key: str, trainer: str, cfg: CfgNode) -> str:
    """Why a key has no effect on a trainer; "" where it has one, or says where something lies."""
    if key not in KEYS:
        return "no trainer and no data set here reads it" if is_not_read(key) else ""
    row = KEYS[key]
    if isinstance(row.accepts, Place):
        return ""
    if trainer not in row.readers:
        return row.instead or f"read by {', '.join(sorted(row.readers))}"
    missing = [condition.text for condition in row.only_with if not condition.holds(cfg)]
    return f"of use with {' and '.join(missing)}" if missing else ""


def _same(value: Any, default: Any) -> bool:
    return list(value) == list(default) if isinstance(default, (list, tuple)) else value == default
