"""Config keys: defaults, types, ranges, contradictions, notes, files of the authors, configs of runs."""

import contextlib
import json

import pytest
import torch
import yaml
from dassl.engine import TRAINER_REGISTRY
from quick_run import REPOSITORY

from common.errors import UserError
from common.run import read_results
from trainers.config import (
    apply_settings,
    check_context_lengths,
    default_cfg,
    iterate_keys,
    merge_file,
    merge_method_file,
    set_key,
    settings_notes,
    value_of,
)
from trainers.methods import METHODS
from trainers.modules.clip.tokenizer import CLIP_TOKENIZER
from trainers.saved_run import build_run

DEFAULTS = dict(iterate_keys(default_cfg()))


def configured(trainer, *opts):
    cfg = default_cfg()
    cfg.TEST.FINAL_MODEL = "best_val" if trainer == "LinearProbe" else "last_step"
    apply_settings(cfg, ["TRAINER.NAME", trainer, *opts])
    return cfg


def check(cfg):
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    trainer.check_config(cfg)
    check_context_lengths(cfg, trainer, CLIP_TOKENIZER)


@pytest.fixture
def merged(tmp_path):
    def read(text):
        (tmp_path / "given.yaml").write_text(text)
        merge_file(cfg := default_cfg(), tmp_path / "given.yaml")
        return cfg

    return read


@pytest.mark.parametrize("method", METHODS, ids=lambda one: one.trainer)
def test_defaults_and_every_config_file_are_accepted_without_a_note(method):
    check(configured(method.trainer))
    for path in sorted(method.config_file("default").parent.glob("*.yaml")):
        ours, theirs = configured(method.trainer), configured(method.trainer)
        merge_file(ours, path)
        theirs.merge_from_file(str(path))
        assert ours == theirs
        check(ours)
        assert settings_notes(ours, TRAINER_REGISTRY.get(method.trainer)) == []


def test_config_defaults_equal_the_papers():
    assert [DEFAULTS[f"TRAINER.{key}"] for key in ("KGCOOP.W", "PROMPTSRC.GPA_MEAN", "DPSPG.ALPHA")] == [8.0, 15.0, 0.2]
    assert [DEFAULTS[f"TRAINER.SPG.G_{key}_NORM"] for key in ("WEIGHT", "BIAS", "LAST_BIAS")] == [5e-3, 5e-8, 1.0]


@pytest.mark.parametrize(
    ("key", "accepted", "wrong_type", "out_of_range"),
    [
        ("OPTIM.LR", ["0", "1", "2e-3"], ["fast", "None", "True", "10" * 400], ["-1", "1e999"]),
        ("OPTIM.STEPSIZE", ["[3]", "(-1,)"], ["3"], ["()", "[-2]", "['a']"]),
        ("INPUT.TRANSFORMS", ["['normalize']", "()"], ["normalize"], ["['normalise']"]),
        ("INPUT.PIXEL_STD", ["(1, 1, 1)"], ["1"], ["(1, 1)", "(0, 1, 1)"]),
        ("INPUT.RRCROP_SCALE", ["(0.2, 1)"], ["1"], ["(0, 1)", "(0.9, 0.2)"]),
        ("OPTIM.NAME", ["sgd", "adamw"], [], ["SGD", ""]),
        ("TEST.SELECT_BY", ["macro_f1"], [], ["error_rate", ""]),
        ("TEST.FINAL_MODEL", ["last_step", "best_val"], [], ["best"]),
        ("SEED", ["-1", "4294967295"], ["1.5", "one"], ["-2", "4294967296"]),
        ("DATALOADER.TRAIN_X.BATCH_SIZE", ["1"], ["1.0", "True"], ["0", "-4"]),
        ("MODEL.INIT_WEIGHTS", ["", __file__], [], ["nowhere.pt"]),
        ("TRAINER.COOP.PREC", ["fp32", "amp"], [], ["fp8", "16"]),
        ("TRAINER.VPT.CTX_INIT", ["2024"], [], ["", " "]),
        ("TRAINER.LINEAR_PROBE.C", ["[1]", "(1, 0.5)"], ["0.5"], ["()", "(1, -2)"]),
    ],
)
def test_config_key_accepts_its_values_alone(key, accepted, wrong_type, out_of_range):
    for text in accepted:
        cfg = configured("CoOp", key, text)
        check(cfg)
        assert type(value_of(cfg, key)) in (type(DEFAULTS[key]), float)
    for text in wrong_type:
        with pytest.raises(UserError, match=f"^{key} is .*; accepted: .* The default is {key} "):
            configured("CoOp", key, text)
    for text in out_of_range:
        with pytest.raises(UserError, match=f"^{key} is "):
            check(configured("CoOp", key, text))


@pytest.mark.parametrize(
    ("trainer", "opts", "problem"),
    [
        ("CoOp", ("COOP.N_CTX", 7, "COOP.CTX_INIT", "a photo of a"), "N_CTX is 7, .*Set TRAINER.COOP.N_CTX 4"),
        ("CoOp", ("COOP.N_CTX", 16, "COOP.CTX_INIT", "a photo of a"), ""),  # the default
        ("MaPLe", ("MAPLE.N_CTX", 5), "Set TRAINER.MAPLE.N_CTX to 1 to 4"),
        ("DPSPG", ("DPSPG.NEG_CTX_INIT", "not a"), "the same number of tokens"),
        ("DPSPG_TRANSFORMER", ("DPSPG.NEG_CTX_INIT", "not a"), ""),
        ("VP", ("FEATURES.TRAIN_VIEWS", 3), "the image tower of VP learns"),
        ("SPG", ("SPG.STAGE1_OPTS", ["OPTIM.LR", -1]), "Stage I .*OPTIM.LR is -1"),
        ("SPG", ("SPG.STAGE1_OPTS", ["OPTIM.LRR", 1]), "Stage I .*Did you mean OPTIM.LR"),
        ("SPG", ("SPG.STAGE1_OPTS", ["TEST.SPLIT", 1]), "TEST.SPLIT is not a key of OPTIM"),
        ("SPG", ("SPG.STAGE1_OPTS", ["OPTIM.LR", 1, "OPTIM.MAX_EPOCH", 5]), ""),
        ("SPG", ("-DATALOADER.TRAIN_X.BATCH_SIZE", 1), "at least 2 images"),
        ("DPL", ("-DATALOADER.TEST.BATCH_SIZE", 1), "is 1, but its context is a mean over the images of a batch"),
        ("SPG", ("-MODEL.INIT_WEIGHTS", __file__), "SPG does not start from given prompts"),
        ("LinearProbe", ("-TEST.FINAL_MODEL", "last_step"), "accepted by LinearProbe: best_val"),
        ("CoOp", ("-OPTIM.NAME", "sgd", "-OPTIM.SGD_NESTEROV", True, "-OPTIM.MOMENTUM", 0), "Set OPTIM.MOMENTUM 0.9"),
        ("CoOp", ("-OPTIM.LR_SCHEDULER", "multi_step"), "multi_step needs epochs"),
        ("ZeroshotCLIP", ("-OPTIM.LR_SCHEDULER", "multi_step"), ""),
    ],
)
def test_config_contradictions_raise(trainer, opts, problem):
    opts = [f"TRAINER.{one}".replace("TRAINER.-", "") if i % 2 == 0 else one for i, one in enumerate(opts)]
    with pytest.raises(UserError, match=problem) if problem else contextlib.nullcontext():
        check(configured(trainer, *opts))


def test_config_error_lists_all_problems():
    with pytest.raises(UserError, match=r"(?s)OPTIM.LR is -0.5.*\n.*TRAIN.PRINT_FREQ is 0"):
        check(configured("CoOp", "OPTIM.LR", -0.5, "TRAIN.PRINT_FREQ", 0))


@pytest.mark.parametrize(
    ("trainer", "opts", "note"),
    [
        ("CoOp", ("TEST.N_PROMPTS", 3, "TRAINER.SPG.N_CTX", 5), "on CoOp: TEST.N_PROMPTS 3, TRAINER.SPG.N_CTX 5."),
        ("SPG", ("TEST.N_PROMPTS", 3, "TRAINER.SPG.N_CTX", 5, "TRAINER.SPG.LABEL_DIR", "a"), ""),
        ("CoOp", ("TRAINER.SPG.LABEL_DIR", "a", "OPTIM.LR", 1, "INPUT.GB_K", 3), "on CoOp: TRAINER.SPG.LABEL_DIR a."),
        ("LinearProbe", ("OPTIM.LR", 1, "TRAINER.LINEAR_PROBE.HALVINGS", 2), "on LinearProbe: OPTIM.LR 1.0."),
        ("ZeroshotCLIP", ("TRAINER.COOP.PREC", "fp32", "TRAINER.COOP.CSC", True), ": TRAINER.COOP.CSC True."),
        ("CoOp", ("DATASET.VAL_PERCENT", 0.5, "OPTIM.NEW_LAYERS", ["a"]), "DATASET.VAL_PERCENT 0.5, OPTIM.NEW_LAYERS"),
        ("CoOp", ("OPTIM.WARMUP_EPOCH", 4, "OPTIM.MAX_EPOCH", 4), "OPTIM.LR is never reached by CoOp"),
    ],
)
def test_config_notes_list_keys_without_effect(trainer, opts, note):
    found = settings_notes(configured(trainer, *opts), TRAINER_REGISTRY.get(trainer))
    assert note in "".join(found) and len(found) == bool(note)


def test_config_unknown_key_gets_a_hint():
    for wrong, hint in (
        ("OPTIM.LRR", "Did you mean OPTIM.LR?"),
        ("optim.lr", "Did you mean OPTIM.LR?"),
        ("TEST.BATCH_SIZE", "Did you mean DATALOADER.TEST.BATCH_SIZE?"),
        ("XYZZY", "The files in trainers/ declare our keys."),
    ):
        with pytest.raises(UserError) as caught:
            set_key(default_cfg(), wrong, "1")
        assert str(caught.value) == f"Non-existent key: {wrong}. {hint}"


def test_config_files_are_read_as_yaml_and_checked(merged):
    for text, problem in (
        ("OPTIM:\n  LR: null\n", "OPTIM.LR is None"),
        ("OPTIM: 5\n", "OPTIM is a section"),
        ("OPTIM: [", "given.yaml cannot be used"),
        ("OPTIMISER:\n  LR: 1\n", "given.yaml cannot be used: Non-existent key: OPTIMISER.LR. Did you mean OPTIM.LR"),
        ("OPTIM:\n  LR: 1\nTEST: {}\nOPTIM:\n  NAME: sgd\n", "OPTIM is there 2 times"),
    ):
        with pytest.raises(UserError, match=problem):
            merged(text)
    assert merged("OPTIM:\nTEST: {}\n") == merged("") == default_cfg()  # sections without keys
    cfg = merged("DATASET:\n  ROOT: 2024\n  TARGET_DOMAINS: [1, a]\nINPUT:\n  PIXEL_MEAN: (0, 0, 0)\n")
    assert (cfg.DATASET.ROOT, cfg.DATASET.TARGET_DOMAINS, cfg.INPUT.PIXEL_MEAN) == ("2024", ("1", "a"), [0, 0, 0])
    assert merged(cfg.dump()) == cfg
    for name in ("2024", "1e3", "None", "[1]", "it's"):  # texts that look like something else
        assert name == configured("CoOp", "DATASET.ROOT", name).DATASET.ROOT


AUTHORS = "INPUT:\n  SIZE: (224, 224)\nOPTIM: {NAME: sgd, LR: 2e-3, WARMUP_EPOCH: 1}\nTEST: {NO_TEST: False}\n"


def test_config_files_of_the_authors_train_as_their_code(tmp_path):
    path = tmp_path / "theirs.yaml"
    for trainer, text, expected in (
        ("SPG", "GRAD_CLIP: False\n", {"OPTIM.NAME": "adamw", "OPTIM.WARMUP_EPOCH": 4, "TRAINER.SPG.GRAD_CLIP": False}),
        ("SPG_CoOp", "", {"OPTIM.NAME": "sgd", "OPTIM.WARMUP_EPOCH": 4}),
        ("MaPLe", "", {"OPTIM.WARMUP_EPOCH": 1, "OPTIM.WEIGHT_DECAY": 1e-4, "TRAINER.MAPLE.PROMPT_DEPTH": 0}),
    ):
        path.write_text(text + AUTHORS)
        note = merge_method_file(cfg := default_cfg(), path, trainer)
        assert {key: value_of(cfg, key) for key in expected} == expected
        assert note.startswith(f"Note: {path} is a config of SPG's authors. Their code sets ")
        assert "TEST.FINAL_MODEL best_val (not last_step)" in note


def test_config_initial_words_override_the_default_number_of_vectors(train, tmp_path):
    flags = ["--config-file", str(REPOSITORY / "configs/trainers/CoOp/rn50_ctxv1.yaml")]
    assert train("CoOp", "red", "TEST.N_PROMPTS", "3", flags=flags) == 0
    log = (tmp_path / "run/log.txt").read_text()
    assert "Note: TRAINER.COOP.N_CTX is 4" in log and "Note: without effect on CoOp: TEST.N_PROMPTS 3" in log
    found = read_results(tmp_path / "run/results.json")  # the flag --backbone overrides the config's
    assert (found["backbone"], found["config"], found["selection"]) == ("tiny", "rn50_ctxv1", "last_step")
    config = tmp_path / "run/config.yaml"
    assert yaml.safe_load(config.read_text())["TRAINER"]["COOP"]["N_CTX"] == build_run(tmp_path / "run").encoder.n_ctx
    assert "TRAINER.COOP.N_CTX" not in json.loads((tmp_path / "run/run.json").read_text())["identity"]
    assert train("CoOp", "red", "TEST.N_PROMPTS", "3", flags=["--config-file", str(config)]) == 0  # skipped
    with pytest.raises(UserError, match="SEED is -7; accepted"):
        build_run(tmp_path / "run", opts=["SEED", "-7"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize(("trainer", "node"), [("CoOp", "COOP"), ("LinearProbe", "LINEAR_PROBE")])
def test_config_half_precision_on_a_cpu_falls_back_to_fp32(train, tmp_path, capsys, trainer, node):
    assert train(trainer, "red", f"TRAINER.{node}.PREC", "amp") == 0
    assert read_results(tmp_path / "run/results.json")["precision"] == "fp32"
    assert "Precision amp needs a GPU" in capsys.readouterr().out


# ---- published configs ----


def test_config_of_spg_on_pacs_has_the_published_norms():
    merge_file(cfg := default_cfg(), REPOSITORY / "configs/trainers/SPG_CGAN/pacs.yaml")
    spg = cfg.TRAINER.SPG
    assert (spg.D_WEIGHT_NORM, spg.D_BIAS_NORM, spg.D_ENDS_NORM) == (5e-1, 5e-1, 5.0)
    assert (spg.G_WEIGHT_NORM, spg.G_BIAS_NORM, spg.G_LAST_BIAS_NORM) == (5e-2, 5e-7, 5.0)
    assert list(spg.GRAD_CLIP_OFF_TARGETS) == ["cartoon", "photo"]
