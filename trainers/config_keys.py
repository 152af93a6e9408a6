"""The one table of config keys: which values each takes, and which trainers it has an effect on.

A key's default is not here: Dassl's have theirs in Dassl, ours in trainers/config.py. A new method brings the rows of
its own node, and where it takes less of a shared key than others a `narrower` one; the sets of trainers that read what
is shared follow from the table of methods.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from yacs.config import CfgNode

from trainers.config_values import (
    ANY_NUMBER,
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Choice,
    Flag,
    Found,
    Kind,
    Number,
    Only,
    Pairs,
    Place,
    Several,
    Text,
    Words,
    as_typed,
    kind_of,
    listed_in,
    one_of,
    whole,
)
from trainers.methods import METHODS


@dataclass(frozen=True)
class Condition:
    """What another setting has to be for a key to have an effect.

    Attributes:
        text: in words, "OPTIM.NAME sgd".
        holds: whether it is so in a config.
    """

    text: str
    holds: Callable[[CfgNode], bool]


@dataclass(frozen=True)
class Key:
    """A row of the table.

    Attributes:
        accepts: the values that it takes.
        readers: the trainers that it has an effect on.
        only_with: conditions, without which it has none on these either.
        narrower: of trainers that take less, what they accept.
        instead: where nobody reads it, what happens in its place.
        words: the key of words that a context starts from, whose number overrides this one.
        first_of: the key of words of which a context starts from the first so many.
    """

    accepts: Kind
    readers: Set[str]
    only_with: tuple[Condition, ...] = ()
    narrower: Mapping[str, Kind] = field(default_factory=dict)
    instead: str = ""
    words: str = ""
    first_of: str = ""

    def accepts_for(self, trainer: str) -> Kind:
        """The values that it takes where a trainer is run."""
        return self.narrower.get(trainer, self.accepts)


def value_of(cfg: CfgNode, key: str, *default: Any) -> Any:
    """The value of a key of a config, or the section of that name, "" being the whole; or a default where it has none.

    Raises:
        KeyError: it has none.
    """
    node: Any = cfg
    for part in filter(None, key.split(".")):
        if not isinstance(node, CfgNode) or part not in node:
            if default:
                return default[0]
            raise KeyError(key)
        node = node[part]
    return node


def among(key: str, *values: object) -> Condition:
    """The key has one of these values."""
    text = f"{key} {' or '.join(map(as_typed, values))}"
    return Condition(text, lambda cfg: value_of(cfg, key) in values)


def above_zero(key: str) -> Condition:
    """The key has a value above zero."""
    return Condition(f"{key} above 0", lambda cfg: value_of(cfg, key) > 0)


def transform(*names: str) -> Condition:
    """One of these transforms is chosen."""
    text = f"{' or '.join(names)} among INPUT.TRANSFORMS"
    return Condition(text, lambda cfg: not set(names).isdisjoint(cfg.INPUT.TRANSFORMS))


def _metrics(cfg: CfgNode) -> Sequence[str] | None:
    """Metrics of which more is better; None: those of an evaluator that we do not know."""
    if cfg.TEST.EVALUATOR != "Classification":
        return None
    return ("accuracy", "macro_f1", *(["perclass_accuracy"] if cfg.TEST.PER_CLASS_RESULT else []))


def _evaluators(cfg: CfgNode) -> Sequence[str]:
    from dassl.evaluation import EVALUATOR_REGISTRY

    return EVALUATOR_REGISTRY.registered_names()


def _is_tested_in_part(cfg: CfgNode) -> bool:
    from dassl.data.datasets import DATASET_REGISTRY

    name = cfg.DATASET.NAME
    if name not in DATASET_REGISTRY.registered_names():
        return True  # not known here
    return not getattr(DATASET_REGISTRY.get(name), "splits_cover_all", False)


EVERY = frozenset(method.trainer for method in METHODS)
LEARNING = frozenset(method.trainer for method in METHODS if method.learns)
STEPPING = LEARNING - {"LinearProbe"}  # learn by steps of an optimiser
PROMPTING = EVERY - {"LinearProbe"}  # classify by texts
NOBODY: frozenset[str] = frozenset()
ZERO_SHOT, COOP, COCOOP, PROBE = {"ZeroshotCLIP", "ZeroshotCLIP2"}, {"CoOp"}, {"CoCoOp"}, {"LinearProbe"}
DPSPG = {"DPSPG", "DPSPG_TRANSFORMER", "DPSPG_CoOp"}
TRANSFORMING = {"DPSPG", "DPSPG_TRANSFORMER"}
STARTING = frozenset({"CoOp", "CoCoOp", "KgCoOp", "MaPLe", "SPG_CoOp"})  # from given prompts, if asked
SPG, CGAN = {"SPG", "SPG_CGAN", "SPG_CoOp"}, {"SPG", "SPG_CGAN"}  # both or either stage; stage II

PRECISION = listed_in("trainers.modules.clip_backbone", "PRECISIONS")
POSITION = listed_in("trainers.modules.prompt_tokens", "CLASS_TOKEN_POSITIONS")
SAMPLER = listed_in("dassl.data.samplers", "AVAI_SAMPLERS")
DOMAINS = Several(Text())
DEPTH = whole(0, meaning="0: 12, of PromptSRC 9, or all layers of a tower that has fewer")

SGD, MOMENTUM = among("OPTIM.NAME", "sgd"), among("OPTIM.NAME", "sgd", "rmsprop")
ADAM = Condition("an OPTIM.NAME of Adam's family", lambda cfg: cfg.OPTIM.NAME not in ("sgd", "rmsprop"))
STEPS = among("OPTIM.LR_SCHEDULER", "single_step", "multi_step")
WARM_UP = above_zero("OPTIM.WARMUP_EPOCH")
AUGMENTED = Condition(
    "TRAINER.LINEAR_PROBE.AUGMENTED True",
    lambda cfg: cfg.TRAINER.NAME != "LinearProbe" or cfg.TRAINER.LINEAR_PROBE.AUGMENTED,
)
COLORJITTER = (AUGMENTED, transform("colorjitter"))
CLIPPING = (among("TRAINER.SPG.GRAD_CLIP", True),)
ONE_IMAGE = "CLIP's image tower takes one transformed image"

KEYS: dict[str, Key] = {
    "OUTPUT_DIR": Key(Place(), EVERY),
    "RESUME": Key(Place(), LEARNING),
    "SEED": Key(whole(-1, 2**32 - 1, meaning="-1: not seeded"), EVERY),
    "USE_CUDA": Key(Flag(), EVERY),
    "VERBOSE": Key(Flag(), EVERY),
    "INPUT.SIZE": Key(Several(whole(1), exactly=2), NOBODY, instead="images have the size that the backbone takes"),
    "INPUT.INTERPOLATION": Key(listed_in("dassl.data.transforms", "INTERPOLATION_MODES"), EVERY),
    "INPUT.TRANSFORMS": Key(Several(listed_in("dassl.data.transforms.transforms", "AVAI_CHOICES")), EVERY),
    "INPUT.NO_TRANSFORM": Key(Only(False, why=ONE_IMAGE), EVERY),
    "INPUT.PIXEL_MEAN": Key(Several(ANY_NUMBER, exactly=3), EVERY, (transform("normalize"),)),
    "INPUT.PIXEL_STD": Key(Several(POSITIVE, exactly=3), EVERY, (transform("normalize"),)),
    "INPUT.CROP_PADDING": Key(
        whole(0),
        LEARNING,
        (
            AUGMENTED,
            transform("random_crop"),
        ),
    ),
    "INPUT.RRCROP_SCALE": Key(
        Several(Number(0, 1, open_low=True), exactly=2, rising=True),
        LEARNING,
        (
            AUGMENTED,
            transform("random_resized_crop"),
        ),
    ),
    "INPUT.CUTOUT_N": Key(
        whole(0),
        LEARNING,
        (
            AUGMENTED,
            transform("cutout"),
        ),
    ),
    "INPUT.CUTOUT_LEN": Key(
        whole(0),
        LEARNING,
        (
            AUGMENTED,
            transform("cutout"),
        ),
    ),
    "INPUT.GN_MEAN": Key(
        ANY_NUMBER,
        LEARNING,
        (
            AUGMENTED,
            transform("gaussian_noise"),
        ),
    ),
    "INPUT.GN_STD": Key(
        NOT_NEGATIVE,
        LEARNING,
        (
            AUGMENTED,
            transform("gaussian_noise"),
        ),
    ),
    "INPUT.RANDAUGMENT_N": Key(
        whole(0),
        LEARNING,
        (
            AUGMENTED,
            transform("randaugment", "randaugment2", "randaugment_fixmatch"),
        ),
    ),
    "INPUT.RANDAUGMENT_M": Key(
        whole(0, 30),
        LEARNING,
        (
            AUGMENTED,
            transform("randaugment"),
        ),
    ),
    "INPUT.COLORJITTER_B": Key(NOT_NEGATIVE, LEARNING, COLORJITTER),
    "INPUT.COLORJITTER_C": Key(NOT_NEGATIVE, LEARNING, COLORJITTER),
    "INPUT.COLORJITTER_S": Key(NOT_NEGATIVE, LEARNING, COLORJITTER),
    "INPUT.COLORJITTER_H": Key(Number(0, 0.5), LEARNING, COLORJITTER),
    "INPUT.RGS_P": Key(
        SHARE,
        LEARNING,
        (
            AUGMENTED,
            transform("randomgrayscale"),
        ),
    ),
    "INPUT.GB_P": Key(
        SHARE,
        LEARNING,
        (
            AUGMENTED,
            transform("gaussian_blur"),
        ),
    ),
    "INPUT.GB_K": Key(
        whole(1, odd=True),
        LEARNING,
        (
            AUGMENTED,
            transform("gaussian_blur"),
        ),
    ),
    "DATASET.ROOT": Key(Place(), EVERY),
    "DATASET.NAME": Key(Text(), EVERY),
    "DATASET.LABEL": Key(Text(), EVERY),
    "DATASET.SOURCE_DOMAINS": Key(DOMAINS, EVERY),
    "DATASET.TARGET_DOMAINS": Key(DOMAINS, EVERY),
    "DATASET.NUM_SHOTS": Key(whole(-1, meaning="-1 or 0: all images"), LEARNING),
    "DATASET.TEST_SUBSET": Key(
        listed_in("datasets.base", "TEST_SUBSETS"),
        EVERY,
        (Condition("a data set that publishes splits of a part of it (SPG_DomainNet)", _is_tested_in_part),),
    ),
    "DATASET.SUBSAMPLE_CLASSES": Key(listed_in("datasets.base", "CLASS_SUBSETS"), EVERY),
    "DATASET.SKIP_UNREADABLE": Key(Flag(), EVERY),
    "DATALOADER.NUM_WORKERS": Key(whole(0), EVERY),
    "DATALOADER.K_TRANSFORMS": Key(Only(1, why=ONE_IMAGE), EVERY),
    "DATALOADER.TRAIN_X.SAMPLER": Key(SAMPLER, STEPPING),
    "DATALOADER.TRAIN_X.BATCH_SIZE": Key(
        whole(1),
        STEPPING,
        narrower=dict.fromkeys(
            CGAN,
            whole(
                2,
                why="the generator's batch normalisation takes at least 2 images at a time; 32 is the published size",
            ),
        )
        | {"DPL": whole(2, why="its context is a mean over the images of a batch; 32 is the size in SPG's comparison")},
    ),
    "DATALOADER.TRAIN_X.N_DOMAIN": Key(
        whole(0, meaning="0: all domains"), STEPPING, (among("DATALOADER.TRAIN_X.SAMPLER", "RandomDomainSampler"),)
    ),
    "DATALOADER.TRAIN_X.N_INS": Key(whole(1), STEPPING, (among("DATALOADER.TRAIN_X.SAMPLER", "RandomClassSampler"),)),
    "DATALOADER.TEST.SAMPLER": Key(SAMPLER, NOBODY, instead="each image is tested once, in the data set's order"),
    "DATALOADER.TEST.BATCH_SIZE": Key(
        whole(1),
        EVERY,
        narrower={
            "DPL": whole(2, why="its context is a mean over the images of a batch; predict.py takes single ones")
        },
    ),
    "MODEL.INIT_WEIGHTS": Key(
        Found("a checkpoint of a prompt learner (<run>/prompt_learner/model.pth.tar-50) or the folder of a run"),
        STARTING,
        narrower=dict.fromkeys(
            EVERY - STARTING,
            Only(
                "",
                why="CLIP's weights are those that MODEL.BACKBONE.NAME names, and given prompts to start from are "
                f"taken by {', '.join(sorted(STARTING))} alone",
            ),
        ),
    ),
    "MODEL.BACKBONE.NAME": Key(Place(), EVERY),
    "MODEL.BACKBONE.PRETRAINED": Key(Only(True, why="an untrained CLIP cannot be adapted"), EVERY),
    "MODEL.BACKBONE.PATH": Key(Place(), EVERY),
    "OPTIM.NAME": Key(listed_in("dassl.optim.optimizer", "AVAI_OPTIMS"), STEPPING),
    "OPTIM.LR": Key(NOT_NEGATIVE, STEPPING),
    "OPTIM.WEIGHT_DECAY": Key(NOT_NEGATIVE, STEPPING),
    "OPTIM.MOMENTUM": Key(BELOW_ONE, STEPPING, (MOMENTUM,)),
    "OPTIM.SGD_DAMPNING": Key(SHARE, STEPPING, (SGD,)),
    "OPTIM.SGD_NESTEROV": Key(Flag(), STEPPING, (SGD,)),
    "OPTIM.RMSPROP_ALPHA": Key(BELOW_ONE, STEPPING, (among("OPTIM.NAME", "rmsprop"),)),
    "OPTIM.ADAM_BETA1": Key(BELOW_ONE, STEPPING, (ADAM,)),
    "OPTIM.ADAM_BETA2": Key(BELOW_ONE, STEPPING, (ADAM,)),
    "OPTIM.STAGED_LR": Key(
        Flag(),
        STEPPING,
        narrower=dict.fromkeys(
            EVERY, Only(False, why="what is learned here has no pretrained layers that could learn more slowly")
        ),
    ),
    "OPTIM.LR_SCHEDULER": Key(listed_in("dassl.optim.lr_scheduler", "AVAI_SCHEDS"), STEPPING),
    "OPTIM.STEPSIZE": Key(Several(whole(-1, meaning="-1 or 0: MAX_EPOCH"), least=1), STEPPING, (STEPS,)),
    "OPTIM.GAMMA": Key(POSITIVE, STEPPING, (STEPS,)),
    "OPTIM.MAX_EPOCH": Key(whole(1), STEPPING),
    "OPTIM.WARMUP_EPOCH": Key(whole(-1, meaning="-1 or 0: no warm-up"), STEPPING),
    "OPTIM.WARMUP_TYPE": Key(listed_in("dassl.optim.lr_scheduler", "AVAI_WARMUPS"), STEPPING, (WARM_UP,)),
    "OPTIM.WARMUP_CONS_LR": Key(NOT_NEGATIVE, STEPPING, (WARM_UP, among("OPTIM.WARMUP_TYPE", "constant"))),
    "OPTIM.WARMUP_MIN_LR": Key(NOT_NEGATIVE, STEPPING, (WARM_UP, among("OPTIM.WARMUP_TYPE", "linear"))),
    "OPTIM.WARMUP_RECOUNT": Key(Flag(), STEPPING, (WARM_UP,)),
    "TRAIN.CHECKPOINT_FREQ": Key(whole(0, meaning="0: none is kept beside the last ones"), STEPPING),
    "TRAIN.PRINT_FREQ": Key(whole(1), STEPPING),
    "TEST.EVALUATOR": Key(Choice(_evaluators), EVERY),
    "TEST.PER_CLASS_RESULT": Key(Flag(), EVERY),
    "TEST.COMPUTE_CMAT": Key(Flag(), EVERY),
    "TEST.NO_TEST": Key(Flag(), EVERY),
    "TEST.SPLIT": Key(Only("test", why="results are those of the target domains' split"), EVERY),
    "TEST.FINAL_MODEL": Key(
        one_of("last_step", "best_val"),
        LEARNING,
        narrower={
            "LinearProbe": Only(
                "best_val",
                why="a linear probe has no epochs: its C is chosen on the source domains' val splits",
            )
        },
    ),
    "TEST.SELECT_BY": Key(Choice(_metrics), STEPPING, (among("TEST.FINAL_MODEL", "best_val"),)),
    "TEST.N_PROMPTS": Key(whole(1, why="it takes at least one prompt for each image"), CGAN),
    "TEST.KEEP_LOGITS": Key(Flag(), EVERY),
    "TEST.MEMORY_MB": Key(whole(0, meaning="0: by device"), PROMPTING),
    "TRAINER.NAME": Key(Text(), EVERY),
    "TRAINER.CONFIG": Key(Text(), EVERY),
    "TRAINER.FUSED_ADAMW": Key(Flag(), STEPPING, (among("OPTIM.NAME", "adamw"),)),
    "TRAINER.FEATURES.CACHE": Key(Flag(), EVERY),
    "TRAINER.FEATURES.CACHE_DIR": Key(Place(), EVERY),
    "TRAINER.FEATURES.TRAIN_VIEWS": Key(
        whole(0, meaning="0: each augmented batch is encoded"),
        STEPPING,
        narrower={
            method.trainer: Only(
                0, why=f"the image tower of {method.trainer} learns, so features cannot be encoded beforehand"
            )
            for method in METHODS
            if method.image_tower_learns
        },
    ),
    "TRAINER.COOP.N_CTX": Key(whole(1), COOP, words="TRAINER.COOP.CTX_INIT"),
    "TRAINER.COOP.CSC": Key(Flag(), COOP),
    "TRAINER.COOP.CTX_INIT": Key(Text(), COOP),
    "TRAINER.COOP.PREC": Key(PRECISION, COOP | ZERO_SHOT),
    "TRAINER.COOP.CLASS_TOKEN_POSITION": Key(POSITION, COOP),
    "TRAINER.COCOOP.N_CTX": Key(whole(1), COCOOP, words="TRAINER.COCOOP.CTX_INIT"),
    "TRAINER.COCOOP.CTX_INIT": Key(Text(), COCOOP),
    "TRAINER.COCOOP.PREC": Key(PRECISION, COCOOP),
    "TRAINER.LINEAR_PROBE.PREC": Key(PRECISION, PROBE),
    "TRAINER.LINEAR_PROBE.C": Key(Several(POSITIVE, least=1), PROBE),
    "TRAINER.LINEAR_PROBE.HALVINGS": Key(whole(0), PROBE),
    "TRAINER.LINEAR_PROBE.NORMALISED": Key(Flag(), PROBE),
    "TRAINER.LINEAR_PROBE.AUGMENTED": Key(Flag(), PROBE),
    "TRAINER.KGCOOP.N_CTX": Key(whole(1), {"KgCoOp"}, words="TRAINER.KGCOOP.CTX_INIT"),
    "TRAINER.KGCOOP.CSC": Key(Flag(), {"KgCoOp"}),
    "TRAINER.KGCOOP.CTX_INIT": Key(Text(), {"KgCoOp"}),
    "TRAINER.KGCOOP.PREC": Key(PRECISION, {"KgCoOp"}),
    "TRAINER.KGCOOP.CLASS_TOKEN_POSITION": Key(POSITION, {"KgCoOp"}),
    "TRAINER.KGCOOP.W": Key(NOT_NEGATIVE, {"KgCoOp"}),
    "TRAINER.VP.METHOD": Key(listed_in("trainers.vp", "KINDS"), {"VP"}),
    "TRAINER.VP.PROMPT_SIZE": Key(whole(1), {"VP"}),
    "TRAINER.VP.PREC": Key(PRECISION, {"VP"}),
    "TRAINER.VPT.N_CTX_VISION": Key(whole(1), {"VPT"}),
    "TRAINER.VPT.CTX_INIT": Key(
        Words(why="the fixed prompts begin with it, and only what is learned may start without words"), {"VPT"}
    ),
    "TRAINER.VPT.PREC": Key(PRECISION, {"VPT"}),
    "TRAINER.VPT.PROMPT_DEPTH_VISION": Key(DEPTH, {"VPT"}),
    "TRAINER.MAPLE.N_CTX": Key(whole(1), {"MaPLe"}, first_of="TRAINER.MAPLE.CTX_INIT"),
    "TRAINER.MAPLE.CTX_INIT": Key(Text(), {"MaPLe"}),
    "TRAINER.MAPLE.PREC": Key(PRECISION, {"MaPLe"}),
    "TRAINER.MAPLE.PROMPT_DEPTH": Key(DEPTH, {"MaPLe"}),
    "TRAINER.PROMPTSRC.N_CTX_VISION": Key(whole(1), {"PromptSRC"}),
    "TRAINER.PROMPTSRC.N_CTX_TEXT": Key(whole(1), {"PromptSRC"}, first_of="TRAINER.PROMPTSRC.CTX_INIT"),
    "TRAINER.PROMPTSRC.CTX_INIT": Key(Text(), {"PromptSRC"}),
    "TRAINER.PROMPTSRC.PREC": Key(PRECISION, {"PromptSRC"}),
    "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION": Key(DEPTH, {"PromptSRC"}),
    "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT": Key(DEPTH, {"PromptSRC"}),
    "TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT": Key(NOT_NEGATIVE, {"PromptSRC"}),
    "TRAINER.PROMPTSRC.IMAGE_LOSS_WEIGHT": Key(NOT_NEGATIVE, {"PromptSRC"}),
    "TRAINER.PROMPTSRC.GPA_MEAN": Key(ANY_NUMBER, {"PromptSRC"}),
    "TRAINER.PROMPTSRC.GPA_STD": Key(POSITIVE, {"PromptSRC"}),
    "TRAINER.DPL.N_CTX": Key(whole(1), {"DPL"}),
    "TRAINER.DPL.XAVIER": Key(Flag(), {"DPL"}),
    "TRAINER.DPL.BY_DOMAIN": Key(Flag(), {"DPL"}),
    "TRAINER.DPL.PREC": Key(PRECISION, {"DPL"}),
    "TRAINER.DPSPG.N_CTX": Key(whole(1), DPSPG, words="TRAINER.DPSPG.CTX_INIT"),
    "TRAINER.DPSPG.CTX_INIT": Key(Text(), DPSPG),
    "TRAINER.DPSPG.NEG_CTX_INIT": Key(Text(), {"DPSPG", "DPSPG_CoOp"}),
    "TRAINER.DPSPG.PREC": Key(PRECISION, DPSPG),
    "TRAINER.DPSPG.ALPHA": Key(NOT_NEGATIVE, TRANSFORMING),
    "TRAINER.DPSPG.EARLY": Key(whole(0, meaning="0: at the end"), TRANSFORMING),
    "TRAINER.DPSPG.EARLY_TARGETS": Key(DOMAINS, TRANSFORMING, (above_zero("TRAINER.DPSPG.EARLY"),)),
    "TRAINER.DPSPG.LATE": Key(whole(0, meaning="0: all count"), TRANSFORMING, (among("TEST.FINAL_MODEL", "best_val"),)),
    "TRAINER.DPSPG.LATE_TARGETS": Key(DOMAINS, TRANSFORMING, (above_zero("TRAINER.DPSPG.LATE"),)),
    "TRAINER.DPSPG.LABEL_DIR": Key(Place(), DPSPG),
    "TRAINER.DPSPG.LABEL_SEED": Key(whole(-1, 2**32 - 1, meaning="-1: SEED"), DPSPG),
    "TRAINER.DPSPG.STAGE1_CONFIG_FILE": Key(Text(), {"DPSPG"}),
    "TRAINER.DPSPG.STAGE1_OPTS": Key(Pairs("OPTIM", ("OPTIM.MAX_EPOCH", 5)), {"DPSPG"}),
    "TRAINER.SPG.N_CTX": Key(whole(1), SPG, words="TRAINER.SPG.CTX_INIT"),
    "TRAINER.SPG.CSC": Key(
        Only(False, why="a prompt label is one context for all classes (CoOp has TRAINER.COOP.CSC)"), SPG
    ),
    "TRAINER.SPG.CTX_INIT": Key(Text(), SPG),
    "TRAINER.SPG.PREC": Key(PRECISION, SPG),
    "TRAINER.SPG.CLASS_TOKEN_POSITION": Key(POSITION, SPG),
    "TRAINER.SPG.LATENT_DIM": Key(whole(1), CGAN),
    "TRAINER.SPG.GRAD_CLIP": Key(Flag(), CGAN),
    "TRAINER.SPG.D_WEIGHT_NORM": Key(NOT_NEGATIVE, CGAN, CLIPPING),
    "TRAINER.SPG.D_BIAS_NORM": Key(NOT_NEGATIVE, CGAN, CLIPPING),
    "TRAINER.SPG.D_ENDS_NORM": Key(NOT_NEGATIVE, CGAN, CLIPPING),
    "TRAINER.SPG.G_WEIGHT_NORM": Key(NOT_NEGATIVE, CGAN, CLIPPING),
    "TRAINER.SPG.G_BIAS_NORM": Key(NOT_NEGATIVE, CGAN, CLIPPING),
    "TRAINER.SPG.G_LAST_BIAS_NORM": Key(NOT_NEGATIVE, CGAN, CLIPPING),
    "TRAINER.SPG.GRAD_CLIP_OFF_TARGETS": Key(DOMAINS, CGAN, CLIPPING),
    "TRAINER.SPG.LABEL_DIR": Key(Place(), SPG),
    "TRAINER.SPG.LABEL_SEED": Key(whole(-1, 2**32 - 1, meaning="-1: SEED"), SPG),
    "TRAINER.SPG.STAGE1_CONFIG_FILE": Key(Text(), {"SPG"}),
    "TRAINER.SPG.STAGE1_OPTS": Key(Pairs("OPTIM", ("OPTIM.MAX_EPOCH", 5)), {"SPG"}),
}

# Dassl's keys and sections for other methods and data sets.
NOT_READ = (
    "VERSION",
    "DATASET.NUM_LABELED",
    "DATASET.VAL_PERCENT",
    "DATASET.STL10_FOLD",
    "DATASET.CIFAR_C_TYPE",
    "DATASET.CIFAR_C_LEVEL",
    "DATASET.ALL_AS_UNLABELED",
    "DATALOADER.RETURN_IMG0",
    "DATALOADER.TRAIN_U",
    "MODEL.HEAD",
    "OPTIM.NEW_LAYERS",
    "OPTIM.BASE_LR_MULT",
    "TRAIN.COUNT_ITER",
    "TRAINER.CDAC",
    "TRAINER.CROSSGRAD",
    "TRAINER.DAEL",
    "TRAINER.DAELDG",
    "TRAINER.DDAIG",
    "TRAINER.DOMAINMIX",
    "TRAINER.ENTMIN",
    "TRAINER.FIXMATCH",
    "TRAINER.M3SDA",
    "TRAINER.MCD",
    "TRAINER.MEANTEACHER",
    "TRAINER.MIXMATCH",
    "TRAINER.MME",
    "TRAINER.SE",
)


def is_not_read(key: str) -> bool:
    """Whether a key is one of NOT_READ, or of a section there."""
    return any(key == one or key.startswith(f"{one}.") for one in NOT_READ)


def kind_for(key: str, default: Any, trainer: str = "") -> Kind:
    """The kind of a key's values where a trainer is run, by its row, or where it has none by its default."""
    return KEYS[key].accepts_for(trainer) if key in KEYS else kind_of(default)


def refusal(key: str, value: Any, kind: Kind, cfg: CfgNode, default: Any) -> str:
    """That a key's value is none that is accepted, and what mends it.

    Args:
        key, value: what was given.
        kind: what is accepted.
        cfg: the other settings.
        default: of the key.
    """
    accepted = kind.accepted(cfg)
    said = f", but {kind.why}. Accepted: {accepted}." if kind.why else f"; accepted: {accepted}."
    return f"{key} is {value!r}{said} {_mend(key, value, kind, cfg, default)}"


def _mend(key: str, value: Any, kind: Kind, cfg: CfgNode, default: Any) -> str:
    if isinstance(kind, Several) and kind.item.holds(value, cfg):
        return f'Did you mean {key} "[{value!r}]"?'
    if isinstance(kind, Only):
        return f"Set {key} {as_typed(kind.value)}."
    item = kind.item if isinstance(kind, Several) else kind
    wrong = [one for one in value if not item.holds(one, cfg)] if isinstance(value, (list, tuple)) else [value]
    if isinstance(item, Choice) and wrong:
        names = {name.lower(): name for name in item.names(cfg) or ()}
        near = difflib.get_close_matches(str(wrong[0]).lower(), names, n=1, cutoff=0.5)
        if near:
            return f"Did you mean {names[near[0]]}?"
    return f"The default is {key} {as_typed(default)}."
