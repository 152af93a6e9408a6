"""The table of config keys: every key is in it, every bound and choice of it is kept, and it says who reads what."""

import contextlib
import math
from pathlib import Path

import pytest
from quick_run import REPOSITORY

import datasets  # noqa: F401 (registers the data sets)
from common.errors import UserError
from trainers.config import apply_settings, default_cfg, leaves, merge_file
from trainers.config_check import check_settings, check_values, only_warm_up, settings_without_effect
from trainers.config_keys import EVERY, KEYS, NOT_READ, is_not_read, value_of
from trainers.config_values import Choice, Flag, Found, Number, Only, Pairs, Place, Several, Text, as_typed
from trainers.methods import METHODS
from trainers.modules.tokenizers import CLIP_TOKENIZER, ClipTokenizer

DEFAULTS = dict(leaves(default_cfg()))
TINY = 1e-9


def item_of(row):
    """The kind of a key's values, or of their entries."""
    return row.accepts.item if isinstance(row.accepts, Several) else row.accepts


def keys_of(*kinds):
    return [key for key, row in KEYS.items() if isinstance(item_of(row), kinds)]


def as_value(kind, entry):
    """An entry as a key's value: itself, or as many of it as a list takes."""
    return (entry,) * (kind.exactly or 1) if isinstance(kind, Several) else entry


def config(trainer="CoOp"):
    """The defaults, but for what a trainer alone has otherwise."""
    cfg = default_cfg()
    cfg.TRAINER.NAME = trainer
    for key, row in KEYS.items():
        if trainer in row.narrower and isinstance(row.narrower[trainer], Only):
            put(cfg, key, row.narrower[trainer].value)
    return cfg


def put(cfg, key, value):
    """Set a key, whatever the value."""
    section, _, name = key.rpartition(".")
    value_of(cfg, section)[name] = value


def accepts(key, value, trainer="CoOp"):
    """Whether a value passes; one that does not is told in a message that begins with it and says what is accepted."""
    cfg = config(trainer)
    put(cfg, key, value)
    try:
        check_values(cfg, KEYS)
    except UserError as error:
        assert str(error).startswith(f"{key} is {value!r}"), error
        assert "accepted: " in str(error).lower()
        return False
    return True


# ---- the table ----


def test_every_key_is_in_the_table_or_read_by_nobody():
    """A key that is added to Dassl's or to extend_cfg gets a row in KEYS: what it accepts, and who reads it."""
    assert {key for key in DEFAULTS if (key in KEYS) == is_not_read(key)} == set()
    assert set(KEYS) <= set(DEFAULTS)
    for name in NOT_READ:
        assert value_of(default_cfg(), name, None) is not None


def test_readers_are_trainers_of_ours():
    for key, row in KEYS.items():
        assert row.readers <= EVERY and set(row.narrower) <= EVERY, key
        assert bool(row.readers) != bool(row.instead), key
        assert not row.words or row.words in KEYS


@pytest.mark.parametrize("key", KEYS)
def test_the_default_is_accepted(key):
    assert accepts(key, DEFAULTS[key])


@pytest.mark.parametrize("trainer", sorted(EVERY))
def test_what_no_setting_says_is_accepted_by_every_trainer(trainer):
    check_settings(config(trainer))
    assert settings_without_effect(config(trainer)) == []


# ---- numbers ----


def bounds(kind):
    """(accepted, refused) numbers at, above and below the bounds of a kind."""
    step = (2 if kind.odd else 1) if kind.whole else TINY
    good, bad = [], [-math.inf, math.inf, math.nan] if not kind.whole else []
    if kind.low is not None:
        (bad if kind.open_low else good).append(kind.low)
        good.append(kind.low + step)
        bad += [kind.low - step, kind.low - 4 * step, -(10**6)]
    else:
        good.append(-(10**6))
    if kind.high is not None:
        (bad if kind.open_high else good).append(kind.high)
        good.append(kind.high - step)
        bad += [kind.high + step, 10**12]
    else:
        good.append(10**6 + 1)
    return good, bad + ([2, 20] if kind.odd else [])


@pytest.mark.parametrize("key", keys_of(Number))
def test_numbers_are_accepted_up_to_their_bounds_and_not_beyond(key):
    kind = KEYS[key].accepts
    good, bad = bounds(item_of(KEYS[key]))
    for number in good:
        assert accepts(key, as_value(kind, number)), number
    for number in bad:
        assert not accepts(key, as_value(kind, number)), number


@pytest.mark.parametrize("key", keys_of(Number))
def test_what_is_no_number_is_refused(key):
    kind = KEYS[key].accepts
    for value in (None, True, "many", (), *([1.5] if item_of(KEYS[key]).whole else [10**400])):
        assert not accepts(key, as_value(kind, value)), value
    if isinstance(kind, Several):
        good = bounds(kind.item)[0][0]
        assert not accepts(key, good)
        for length in {0, 1, 4} - ({kind.exactly} if kind.exactly else {1, 4}):
            assert not accepts(key, (good,) * length), length


def test_a_range_rises():
    assert accepts("INPUT.RRCROP_SCALE", [0.2, 0.9])
    assert not accepts("INPUT.RRCROP_SCALE", (0.9, 0.2))


@pytest.mark.parametrize("key", [key for key, value in DEFAULTS.items() if isinstance(value, float)])
def test_an_int_is_accepted_where_a_float_is_meant(key, tmp_path):
    typed, read = default_cfg(), default_cfg()
    apply_settings(typed, [key, "1"])
    *sections, name = key.split(".")
    text = "".join("  " * depth + f"{part}:\n" for depth, part in enumerate(sections))
    (tmp_path / "one.yaml").write_text(text + "  " * len(sections) + f"{name}: 1\n")
    merge_file(read, tmp_path / "one.yaml")
    for cfg in (typed, read):
        value = value_of(cfg, key)
        assert value == 1 and isinstance(value, float)


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("TRAIN.PRINT_FREQ", "0"),
        ("DATALOADER.TRAIN_X.BATCH_SIZE", "0"),
        ("DATALOADER.TRAIN_X.BATCH_SIZE", "-4"),
        ("DATALOADER.TEST.BATCH_SIZE", "0"),
        ("DATALOADER.NUM_WORKERS", "-1"),
        ("OPTIM.LR", "-0.1"),
        ("OPTIM.MAX_EPOCH", "0"),
        ("OPTIM.LR", "1e999"),
        ("OPTIM.LR", "None"),
        ("SEED", "99999999999"),
        ("TEST.FINAL_MODEL", "best"),
        ("TEST.FINAL_MODEL", "val"),
        ("TEST.FINAL_MODEL", "Best_Val"),
        ("TEST.SELECT_BY", "error_rate"),
        ("OPTIM.STAGED_LR", "True"),
        ("MODEL.INIT_WEIGHTS", "weights.pth"),
    ],
)
@pytest.mark.parametrize("trainer", ["CoOp", "SPG"])
def test_a_run_is_refused_before_anything_is_made(refused, tmp_path, trainer, key, given):
    message = refused(trainer, "red", key, given)
    assert f"Error: {key} is " in message and "ccepted: " in message
    assert not (tmp_path / "run").exists()


def test_an_int_as_the_learning_rate(train):
    assert train("CoOp", "red", "OPTIM.LR", "1", "OPTIM.MAX_EPOCH", "1") == 0


# ---- choices ----


@pytest.mark.parametrize("key", keys_of(Choice))
def test_a_choice_is_one_of_its_names_as_it_is_written(key):
    kind, names = KEYS[key].accepts, item_of(KEYS[key]).names(config())
    assert len(names) and DEFAULTS[key] in (*names, ())
    for name in names:
        assert accepts(key, as_value(kind, name)), name
        for wrong in {name.upper(), name.lower(), name.title(), f"{name} ", name[:-1], "nonsense", ""} - set(names):
            assert not accepts(key, as_value(kind, wrong)), wrong
    for value in (None, 1, True, "names"):
        assert not accepts(key, value)


@pytest.mark.parametrize("key", keys_of(Flag))
def test_a_flag_is_true_or_false(key):
    assert accepts(key, not DEFAULTS[key], "Theirs")
    for value in (None, 0, 1, "true", "yes", ""):
        assert not accepts(key, value), value


@pytest.mark.parametrize("key", keys_of(Only))
def test_what_is_fixed_stays(key):
    kind = KEYS[key].accepts
    for value in (None, "other", 2, *([not kind.value] if isinstance(kind.value, bool) else [])):
        assert not accepts(key, value, "SPG")


NARROWER = [(trainer, key, row.narrower[trainer]) for key, row in KEYS.items() for trainer in sorted(row.narrower)]


@pytest.mark.parametrize(("trainer", "key", "kind"), NARROWER)
def test_some_trainers_take_less(trainer, key, kind):
    good = kind.value if isinstance(kind, Only) else kind.low
    wider = [value for value in (True, False, "last_step", 1, __file__) if KEYS[key].accepts.holds(value, config())]
    assert accepts(key, good, trainer)
    refused = [value for value in wider if not kind.holds(value, config())]
    assert refused and not any(accepts(key, value, trainer) for value in refused)


@pytest.mark.parametrize("key", [key for key in keys_of(Text) if key not in keys_of(Choice, Found)])
def test_a_text_is_any_text(key):
    kind = KEYS[key].accepts
    assert accepts(key, as_value(kind, "any text"))
    for value in (None, 1, True):
        assert not accepts(key, as_value(kind, value)), value


@pytest.mark.parametrize("key", keys_of(Found))
def test_a_place_that_has_to_be_there(key):
    assert accepts(key, __file__) and accepts(key, "")
    for value in (None, 1, True, "nowhere"):
        assert not accepts(key, value), value


def test_metrics_of_another_evaluator_are_its_own():
    from dassl.evaluation import EVALUATOR_REGISTRY, Classification

    class Ours(Classification):
        pass

    EVALUATOR_REGISTRY.register(Ours, force=True)
    cfg = config()
    cfg.TEST.EVALUATOR, cfg.TEST.SELECT_BY = "Ours", "whatever it measures"
    check_settings(cfg)


def test_the_metrics_are_those_of_the_evaluator_but_for_the_one_of_which_less_is_better():
    import torch
    from dassl.evaluation import build_evaluator

    cfg = config()
    cfg.TEST.PER_CLASS_RESULT = True
    evaluator = build_evaluator(cfg, lab2cname={0: "a", 1: "b"})
    evaluator.process(torch.eye(2), torch.arange(2))
    assert {*KEYS["TEST.SELECT_BY"].accepts.names(cfg), "error_rate"} == set(evaluator.evaluate())


# ---- settings that do not go together ----


def test_words_of_another_tokenizer_are_counted_when_it_is_there():
    class Letters(ClipTokenizer):
        def encode(self, text):
            return [*range(len(text))]

    cfg = config("CoOp")
    cfg.TRAINER.COOP.N_CTX, cfg.TRAINER.COOP.CTX_INIT = 12, "a photo of a"
    for name, problem in (("ViT-B/16", "here 4"), ("hf:org/name", ""), ("open_clip:ViT-B-32@x.pt", "")):
        cfg.MODEL.BACKBONE.NAME = name
        with pytest.raises(UserError, match=problem) if problem else contextlib.nullcontext():
            check_settings(cfg)
        check_settings(cfg, Letters())
        with pytest.raises(UserError, match="here 4"):
            check_settings(cfg, CLIP_TOKENIZER)


@pytest.mark.parametrize("node", ["COOP", "COCOOP", "SPG"])
def test_the_number_of_context_vectors_beside_words(node):
    trainer = {"COOP": "CoOp", "COCOOP": "CoCoOp", "SPG": "SPG"}[node]
    cfg = config(trainer)
    own = cfg.TRAINER[node]
    own.N_CTX, own.CTX_INIT = 7, "a photo of a"
    with pytest.raises(UserError) as caught:
        check_settings(cfg)
    message = str(caught.value)
    assert f"TRAINER.{node}.N_CTX is 7, but TRAINER.{node}.CTX_INIT is 'a photo of a'" in message
    assert f'TRAINER.{node}.CTX_INIT ""' in message and f"TRAINER.{node}.N_CTX 4" in message
    for n, words in ((4, "a photo of a"), (DEFAULTS[f"TRAINER.{node}.N_CTX"], "a photo of a"), (7, "")):
        own.N_CTX, own.CTX_INIT = n, words
        check_settings(cfg)
    own.N_CTX, own.CTX_INIT = 7, "a photo of a"
    cfg.TRAINER.NAME = "ZeroshotCLIP"  # which has no context
    check_settings(cfg)


def test_nesterov_takes_momentum_without_dampening():
    cfg = config()
    apply_settings(cfg, ["OPTIM.NAME", "sgd", "OPTIM.SGD_NESTEROV", "True"])
    check_settings(cfg)
    for key, value in (("OPTIM.MOMENTUM", "0"), ("OPTIM.SGD_DAMPNING", "0.5")):
        other = cfg.clone()
        apply_settings(other, [key, value])
        with pytest.raises(UserError, match="OPTIM.SGD_NESTEROV is True.*OPTIM.MOMENTUM 0.9"):
            check_settings(other)


def test_multi_step_takes_epochs():
    cfg = config()
    cfg.OPTIM.LR_SCHEDULER = "multi_step"
    with pytest.raises(UserError, match=r'OPTIM.STEPSIZE is \(-1,\).*OPTIM.STEPSIZE "\(20, 40\)"'):
        check_settings(cfg)
    cfg.TRAINER.NAME = "ZeroshotCLIP"  # which takes no steps
    check_settings(cfg)
    cfg.TRAINER.NAME, cfg.OPTIM.STEPSIZE = "CoOp", (2, 5)
    check_settings(cfg)


def test_settings_of_stage_one(tmp_path):
    for opts, problem in (
        (["OPTIM.LR", -1], "OPTIM.LR is -1"),
        (["OPTIM.MAX_EPOCH", 0], "OPTIM.MAX_EPOCH is 0"),
        (["OPTIM.NAME", "SGD"], "Did you mean sgd?"),
        (["OPTIM.MAX_EPOCHS", 3], "Did you mean OPTIM.MAX_EPOCH?"),
        (["OPTIM.MAX_EPOCH"], "pairs of an OPTIM key and a value"),
        (["TRAIN.PRINT_FREQ", 1], "pairs of an OPTIM key and a value"),
    ):
        cfg = config("SPG")
        cfg.TRAINER.SPG.STAGE1_OPTS = opts
        with pytest.raises(UserError) as caught:
            check_settings(cfg)
        assert f"TRAINER.SPG.STAGE1_OPTS is {opts}" in str(caught.value) and problem in str(caught.value)
    cfg.TRAINER.SPG.STAGE1_OPTS = ["OPTIM.LR", 1, "OPTIM.MAX_EPOCH", 5]
    check_settings(cfg)


def test_the_config_file_of_stage_one_is_checked_too(refused, tmp_path):
    (tmp_path / "one.yaml").write_text("OPTIM:\n  LR: -1\n")
    message = refused("SPG", "red", "TRAINER.SPG.STAGE1_CONFIG_FILE", "one.yaml")
    assert "Stage I" in message and "OPTIM.LR is -1" in message


def test_all_that_is_wrong_is_said_at_once():
    cfg = config()
    cfg.OPTIM.LR, cfg.TRAIN.PRINT_FREQ = -0.5, 0
    with pytest.raises(UserError, match="(?s)OPTIM.LR is -0.5.*\n.*TRAIN.PRINT_FREQ is 0"):
        check_settings(cfg)


# ---- settings without effect ----


def another(key):
    """A value of a key that is accepted and not its default, in the way that a list of it is written; None: none is."""
    kind = KEYS[key].accepts
    item = item_of(KEYS[key])
    if isinstance(item, Number):
        entries = bounds(item)[0]
    elif isinstance(item, Choice):
        entries = item.names(config())
    elif isinstance(item, Flag):
        entries = [True, False]
    elif isinstance(item, Pairs):
        entries = [item.example]
    elif isinstance(item, Only):
        entries = [item.value]
    else:
        entries = ["a text"]
    values = [as_value(kind, entry) for entry in entries]
    default = DEFAULTS[key]
    return next(
        (value for value in values if value != (tuple(default) if isinstance(default, list) else default)), None
    )


def changed(trainer, key, value):
    """A config of a trainer in which a key has a value, and all that it is of use with is set, too."""
    cfg = config(trainer)
    cfg.INPUT.TRANSFORMS = KEYS["INPUT.TRANSFORMS"].accepts.item.names(cfg)
    cfg.DATASET.NAME, cfg.OPTIM.WARMUP_EPOCH, cfg.TEST.FINAL_MODEL = "SPG_DomainNet", 1, "best_val"
    cfg.TRAINER.LINEAR_PROBE.AUGMENTED, cfg.TRAINER.DPSPG.EARLY, cfg.TRAINER.DPSPG.LATE = True, 5, 5
    for way in ("DATALOADER.TRAIN_X.SAMPLER", "OPTIM.NAME", "OPTIM.WARMUP_TYPE"):
        for choice in KEYS[way].accepts.names(cfg):
            if all(condition.holds(cfg) for condition in KEYS[key].only_with):
                break
            put(cfg, way, choice)
    put(cfg, key, value)
    return cfg


TRAINERS_AND_KEYS = [(trainer, key) for trainer in sorted(EVERY) for key in KEYS if another(key) is not None]


@pytest.mark.parametrize("trainer", sorted(EVERY))
def test_what_a_trainer_does_not_read_is_told(trainer):
    for key in [key for one, key in TRAINERS_AND_KEYS if one == trainer and trainer not in KEYS[key].narrower]:
        value = another(key)
        said = [line for line in settings_without_effect(changed(trainer, key, value)) if f" {key} " in line]
        row = KEYS[key]
        if trainer in row.readers or isinstance(row.accepts, Place):
            assert said == [], key
        else:
            assert len(said) == 1 and f"Note: without effect on {trainer}: " in said[0]
            assert f"{key} {as_typed(value)}" in said[0]
            assert all(reader in said[0] for reader in row.readers) and row.instead in said[0]


@pytest.mark.parametrize("key", [key for key, row in KEYS.items() if row.only_with])
def test_what_waits_for_another_setting_is_told(key):
    (trainer, *_) = sorted(KEYS[key].readers - {"LinearProbe"})
    cfg = config(trainer)
    cfg.DATASET.NAME, cfg.OPTIM.LR_SCHEDULER = "SPG_PACS", "cosine"
    cfg.OPTIM.NAME = "sgd" if key.startswith(("OPTIM.ADAM", "OPTIM.RMSPROP")) else "adam"
    cfg.TRAINER.SPG.GRAD_CLIP = False
    put(cfg, key, another(key))
    (line,) = [line for line in settings_without_effect(cfg) if key in line]
    assert any(condition.text in line for condition in KEYS[key].only_with)


@pytest.mark.parametrize("key", [key for key in DEFAULTS if is_not_read(key)])
def test_what_nobody_reads_is_told(key):
    default = DEFAULTS[key]
    cfg = config()
    put(cfg, key, (not default) if isinstance(default, bool) else (*default, "a") if isinstance(default, tuple) else 7)
    (line,) = settings_without_effect(cfg)
    assert key in line and "no trainer and no data set here reads it" in line


def test_a_trainer_that_is_not_ours_is_not_judged():
    cfg = config()
    cfg.TRAINER.NAME, cfg.TEST.N_PROMPTS = "Theirs", 3
    assert settings_without_effect(cfg) == []
    cfg.OPTIM.STAGED_LR = True  # its networks may have pretrained layers
    check_settings(cfg)


def test_of_several_trainers_each_setting_is_told_once():
    configs = [changed(trainer, "TRAINER.COOP.CSC", True) for trainer in ("CoOp", "MaPLe", "DPSPG", "Theirs")]
    (line,) = [line for line in settings_without_effect(*configs) if "TRAINER.COOP.CSC" in line]
    assert line == "Note: without effect on MaPLe, DPSPG: TRAINER.COOP.CSC True (read by CoOp)."


@pytest.mark.parametrize(
    ("trainer", "warm_up", "epochs", "told"),
    [
        ("CoOp", 4, 2, True),
        ("CoOp", 2, 2, True),
        ("CoOp", 1, 2, False),
        ("CoOp", -1, 2, False),
        ("LinearProbe", 4, 2, False),
        ("ZeroshotCLIP", 4, 2, False),
        ("Theirs", 4, 2, False),
    ],
)
def test_a_training_that_is_warm_up_alone_is_told(trainer, warm_up, epochs, told):
    cfg = config(trainer)
    cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.MAX_EPOCH = warm_up, epochs
    others = config("KgCoOp")  # of Dassl's defaults
    lines = only_warm_up(others, cfg, cfg)
    assert len(lines) == told
    if told:
        assert lines[0].startswith(f"Note: {trainer}, {trainer}: all epochs are warm-up, so OPTIM.LR is never reached")
        assert f"OPTIM.MAX_EPOCH is {epochs} and OPTIM.WARMUP_EPOCH {warm_up} " in lines[0]


CONFIGS = [
    (method.trainer, path)
    for method in METHODS
    for path in sorted((REPOSITORY / "configs/trainers" / method.config_folder).glob("*.yaml"))
]


@pytest.mark.parametrize(("trainer", "path"), CONFIGS, ids=lambda one: one.stem if isinstance(one, Path) else one)
def test_every_config_is_accepted_and_read_as_a_whole(trainer, path):
    cfg = config(trainer)
    merge_file(cfg, path)
    check_settings(cfg)
    said = " ".join(settings_without_effect(cfg))
    # They share their configs with the trainer of both stages.
    both = {"SPG_CGAN": "SPG", "DPSPG_TRANSFORMER": "DPSPG"}.get(trainer)
    assert said == "" or (both and said.count(f": TRAINER.{both}.STAGE1_") == 1 and f"(read by {both})" in said)


def test_it_is_told_before_the_run_and_in_its_log(train, tmp_path, capsys):
    assert train("CoOp", "red", "TEST.N_PROMPTS", "3", "OPTIM.MAX_EPOCH", "1") == 0
    log = (tmp_path / "run/log.txt").read_text()
    line = "Note: without effect on CoOp: TEST.N_PROMPTS 3"
    assert line in log and log.index(line) < log.index("epoch [1/1]")
    assert capsys.readouterr().out.count(line) == 1


def test_a_trainer_that_is_built_by_hand_checks_its_config(tmp_path, clip_file, image_folder):
    from dassl.engine import build_trainer

    import trainers.all  # noqa: F401

    cfg = config("SPG_CGAN")
    cfg.TRAIN.PRINT_FREQ = 0
    cfg.MODEL.BACKBONE.NAME = "not even looked for"
    with pytest.raises(UserError, match="TRAIN.PRINT_FREQ is 0"):
        build_trainer(cfg)
