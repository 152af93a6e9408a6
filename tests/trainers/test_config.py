"""What sets config keys, files and KEY VALUE pairs; and the config of a run, from before and from now."""

import json

import pytest
import yaml
from quick_run import REPOSITORY

from common.errors import UserError
from trainers.config import (
    apply_settings,
    default_cfg,
    leaves,
    merge_file,
    merge_method_file,
    set_key,
    shared_folders,
    value_of,
)
from trainers.saved_run import build_run, read_config


@pytest.fixture
def merged(tmp_path):
    """The config after a file with some text."""

    def read(text, **how):
        (tmp_path / "given.yaml").write_text(text)
        cfg = default_cfg()
        merge_file(cfg, tmp_path / "given.yaml", **how)
        return cfg

    return read


# ---- files and pairs ----


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("OPTIM.LRR", "OPTIM.LR"),
        ("OPTIMISER.LR", "OPTIM.LR"),
        ("optim.lr", "OPTIM.LR"),
        ("TEST.BATCH_SIZE", "DATALOADER.TEST.BATCH_SIZE"),
        ("TRAIN.MAX_EPOCH", "OPTIM.MAX_EPOCH"),
        ("TRAINER.SPG.LABELS_DIR", "TRAINER.SPG.LABEL_DIR"),
        ("OPTIM.LR.VALUE", "OPTIM.LR"),
    ],
)
def test_a_wrong_key_is_told_the_right_one(merged, wrong, near):
    message = f"Non-existent key: {wrong}. Did you mean {near}?"
    with pytest.raises(UserError) as typed:
        apply_settings(default_cfg(), [wrong, "1"])
    assert str(typed.value) == message
    *sections, name = wrong.split(".")
    text = "".join("  " * depth + f"{part}:\n" for depth, part in enumerate(sections))
    with pytest.raises(UserError) as read:
        merged(text + "  " * len(sections) + f"{name}: 1\n")
    assert "given.yaml cannot be used: " in str(read.value) and str(read.value).endswith(message)


def test_a_key_like_no_other_is_told_where_keys_are():
    with pytest.raises(UserError, match="Non-existent key: XYZZY. See trainers/config.py"):
        apply_settings(default_cfg(), ["XYZZY", "1"])


def test_a_value_of_another_type_names_file_key_and_what_is_accepted(merged):
    with pytest.raises(UserError) as caught:
        merged("OPTIM:\n  LR: fast\n")
    message = "OPTIM.LR is 'fast'; accepted: a number from 0. The default is OPTIM.LR 0.0003."
    assert f"given.yaml cannot be used: {message}" in str(caught.value)
    with pytest.raises(UserError, match="OPTIM.LR is None"):
        merged("OPTIM:\n  LR: null\n")
    with pytest.raises(UserError, match="OPTIM is a section"):
        merged("OPTIM: 5\n")


def test_a_section_with_nothing_in_it_sets_nothing(merged):
    assert merged("OPTIM:\nTEST: {}\nTRAINER:\n  SPG:\n") == default_cfg()
    assert merged("") == default_cfg()


def test_what_stands_twice_in_a_file_is_refused(merged):
    with pytest.raises(UserError, match="given.yaml cannot be used: TRAINER.SPG stands there 2 times"):
        merged("TRAINER:\n  SPG:\n    N_CTX: 4\n  SPG:\n    PREC: fp32\n")
    with pytest.raises(UserError, match="OPTIM stands there 2 times; put what is below it together"):
        merged("OPTIM:\n  LR: 1\nTEST:\n  SPLIT: test\nOPTIM:\n  NAME: sgd\n")


def test_a_list_is_one_whatever_brackets_it_has(merged):
    assert merged("INPUT:\n  SIZE: [32, 32]\n  PIXEL_MEAN: (0, 0, 0)\n").INPUT.SIZE == (32, 32)
    cfg = default_cfg()
    apply_settings(cfg, ["INPUT.PIXEL_MEAN", "(0, 0, 0)", "INPUT.TRANSFORMS", "['normalize']"])
    assert cfg.INPUT.PIXEL_MEAN == [0, 0, 0] and cfg.INPUT.TRANSFORMS == ("normalize",)
    with pytest.raises(UserError, match=r"""Did you mean INPUT.TRANSFORMS "\['normalize'\]"\?"""):
        apply_settings(cfg, ["INPUT.TRANSFORMS", "normalize"])


@pytest.mark.parametrize("name", ["2024", "1e3", "None", "True", "[1]", "it's"])
def test_a_name_that_looks_like_something_else_is_a_name(merged, name):
    cfg = default_cfg()
    apply_settings(cfg, ["DATASET.ROOT", name])
    read = merged(yaml.safe_dump({"DATASET": {"ROOT": name}}))
    assert {cfg.DATASET.ROOT, read.DATASET.ROOT} == {name}
    assert merged("DATASET:\n  ROOT: 2024\n").DATASET.ROOT == "2024"


def test_flags_that_look_like_numbers_are_names():
    import train

    words = ["--root", "2024", "--output-dir", "1", "--target-domains", "1", "2", "--transforms", "normalize"]
    cfg = train.setup_cfg(train.parse_args(words))
    assert (cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.DATASET.TARGET_DOMAINS) == ("2024", "1", ("1", "2"))
    assert cfg.INPUT.TRANSFORMS == ("normalize",)


def test_what_a_config_file_says_is_what_yacs_reads(tmp_path):
    for path in sorted({*(REPOSITORY / "configs").rglob("*.yaml")} - {*(REPOSITORY / "configs/published").iterdir()}):
        ours, theirs = default_cfg(), default_cfg()
        merge_file(ours, path)
        theirs.merge_from_file(str(path))
        assert ours == theirs, path
        assert [type(value) for _, value in leaves(ours)] == [type(value) for _, value in leaves(theirs)]


def test_a_file_of_another_kind_is_refused(refused, tmp_path):
    for name in ("notes.txt", "code.py"):
        (tmp_path / name).write_text("OPTIM: {}")
        assert f"{name} cannot be used" in refused("CoOp", "red", flags=["--config-file", name])


def test_a_config_is_written_as_it_is_read(merged):
    cfg = default_cfg()
    for key, value in (("OPTIM.SGD_DAMPNING", 0.5), ("DATASET.ROOT", "2024"), ("OPTIM.LR", 1), ("OPTIM.STEPSIZE", [2])):
        set_key(cfg, key, value)
    assert merged(cfg.dump(), any_type=True) == merged(cfg.dump()) == cfg


# ---- runs ----


def test_a_run_of_before_is_read_whatever_its_config_holds(train, tmp_path):
    assert train("CoOp", "red", "TEST.FINAL_MODEL", "last_step") == 0
    path = tmp_path / "run/config.yaml"
    content = yaml.safe_load(path.read_text())
    content["TEST"]["FINAL_MODEL"], content["TRAIN"]["PRINT_FREQ"], content["OPTIM"]["LR"] = "val", 0, None
    content["DATALOADER"]["TEST"]["SAMPLER"], content["SEED"] = "SequentialSampler", -5
    path.write_text(yaml.safe_dump(content))
    cfg = read_config(tmp_path / "run")
    assert (cfg.TEST.FINAL_MODEL, cfg.TRAIN.PRINT_FREQ, cfg.OPTIM.LR, cfg.SEED) == ("val", 0, None, -5)
    content["OPTIM"]["LR"] = 0.002
    path.write_text(yaml.safe_dump(content))
    assert build_run(tmp_path / "run").model.ctx.shape == (4, 64)
    with pytest.raises(UserError, match="SEED is -7; accepted"):
        build_run(tmp_path / "run", opts=["SEED", "-7"])


@pytest.mark.parametrize(("trainer", "n_ctx"), [("CoOp", "16"), ("SPG", "4")])  # the defaults
def test_the_config_of_a_run_has_the_number_of_its_words(train, tmp_path, trainer, n_ctx):
    node = trainer.upper()
    words = f"TRAINER.{node}.CTX_INIT", "a picture of", f"TRAINER.{node}.N_CTX", n_ctx
    assert train(trainer, "red", *words) == 0
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["TRAINER"][node]["N_CTX"] == 3
    assert build_run(tmp_path / "run").encoder.n_ctx == 3


def test_more_context_vectors_than_words_are_refused(refused):
    message = refused("SPG", "red", "TRAINER.SPG.N_CTX", "16")
    assert "TRAINER.SPG.N_CTX is 16, but TRAINER.SPG.CTX_INIT is 'a photo of a'" in message
    assert 'set TRAINER.SPG.CTX_INIT ""' in message


def test_coops_config_with_words_runs_as_in_coop(train, tmp_path, capsys):
    """Which leaves N_CTX at 16, and takes the four words all the same."""
    from scripts import rerun

    flags = ["--config-file", str(REPOSITORY / "configs/trainers/CoOp/rn50_ctxv1.yaml")]
    assert train("CoOp", "red", flags=flags) == 0
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["TRAINER"]["COOP"]["N_CTX"] == 4
    line = "Note: TRAINER.COOP.N_CTX is 4, as many as the words of TRAINER.COOP.CTX_INIT"
    assert line in (tmp_path / "run/log.txt").read_text()
    # Runs from before note what was asked for, and have to go on and compare.
    assert json.loads((tmp_path / "run/identity.json").read_text())["TRAINER.COOP.N_CTX"] == 16
    capsys.readouterr()
    assert rerun.main([str(tmp_path / "run"), "--output", str(tmp_path / "again")]) == 0
    assert "Agrees in every number" in capsys.readouterr().out


def test_prompt_labels_that_a_run_without_a_seed_leaves_aside_are_told(train, tmp_path):
    assert train("SPG", "red", "SEED", "-1", "TRAINER.SPG.LABEL_DIR", "mine") == 0
    line = "Note: the prompt labels in TRAINER.SPG.LABEL_DIR mine are left aside"
    assert line in (tmp_path / "run/log.txt").read_text()
    assert (tmp_path / "run/prompt_labels").is_dir()


def test_folders_of_several_runs_lie_beside_the_run_unless_they_are_named(tmp_path):
    cfg = default_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "out/run")
    labels, features = "TRAINER.SPG.LABEL_DIR", "TRAINER.FEATURES.CACHE_DIR"
    beside = {features: str(tmp_path / "out/feature_cache"), labels: str(tmp_path / "out/prompt_labels")}
    signed = {"TRAINER.DPSPG.LABEL_DIR": beside[labels]}
    beside |= signed
    assert shared_folders(cfg) == beside
    (tmp_path / "out/run").mkdir(parents=True)
    config = tmp_path / "out/run/config.yaml"
    config.write_text("TRAINER:\n  SPG:\n    LABEL_DIR: output/prompt_labels\n")
    assert shared_folders(cfg) == {**beside, labels: "output/prompt_labels"}  # a run goes on with what it began with
    config.write_text("TRAINER: [")
    assert shared_folders(cfg) == beside
    cfg.TRAINER.SPG.LABEL_DIR = "mine"
    assert shared_folders(cfg) == {features: beside[features], **signed}


def test_a_run_goes_on_from_its_own_config(train, tmp_path, monkeypatch):
    """Where it says how many vectors the words made, which the first command left at the default."""
    words = ("TRAINER.COOP.CTX_INIT", "a photo of a", "TRAINER.COOP.N_CTX", "16")
    assert train("CoOp", "red", *words, "OPTIM.MAX_EPOCH", "2") == 0
    (tmp_path / "run" / "results.json").unlink()
    config = tmp_path / "run" / "config.yaml"
    assert "N_CTX: 4" in config.read_text()
    import train as command

    assert command.main(["--config-file", str(config), "--output-dir", "run"]) == 0


def test_domains_may_be_called_by_numbers():
    from trainers.config import apply_settings, default_cfg

    cfg = default_cfg()
    apply_settings(cfg, ["DATASET.TARGET_DOMAINS", "[2024, 'red']"])
    assert list(cfg.DATASET.TARGET_DOMAINS) == ["2024", "red"]


def test_a_config_of_the_authors(tmp_path):
    path = tmp_path / "spg.yaml"
    path.write_text(
        "GRAD_CLIP: False\nD_MAX_NORM_WEIGHT: 5e-1\nD_MAX_NORM_BIAS: 5e-2\nD_MAX_NORM_LAST: 5\n"
        "G_MAX_NORM_WEIGHT: 5e-3\nG_MAX_NORM_BIAS: 5e-7\nG_MAX_NORM_BIAS_LAST: 2\n"
        "TRAINER:\n  SPG:\n    CTX_INIT: 'a photo of a'\n"
    )
    cfg = default_cfg()
    merge_file(cfg, path)
    spg = cfg.TRAINER.SPG
    assert (spg.GRAD_CLIP, spg.D_WEIGHT_NORM, spg.D_BIAS_NORM, spg.D_ENDS_NORM) == (False, 0.5, 0.05, 5.0)
    assert (spg.G_WEIGHT_NORM, spg.G_BIAS_NORM, spg.G_LAST_BIAS_NORM) == (5e-3, 5e-7, 2.0)
    apply_settings(cfg, ["GRAD_CLIP", "True"])
    assert spg.GRAD_CLIP is True


# The keys and values of the authors' files that matter here.
OF_AUTHORS = """
INPUT:
  SIZE: (224, 224)
OPTIM: {NAME: "sgd", LR: 2e-3, MAX_EPOCH: 50, WARMUP_EPOCH: 1, WARMUP_TYPE: "constant"}
TEST: {NO_TEST: False}
"""
NORMS = "GRAD_CLIP: True\nD_MAX_NORM_WEIGHT: 5e-1\nG_MAX_NORM_BIAS: 5e-7\nG_MAX_NORM_BIAS_LAST: 5\n"
BEST, DECAY = ("TEST.FINAL_MODEL", "best_val"), ("OPTIM.WEIGHT_DECAY", 1e-4)
ADAMW = {"OPTIM.NAME": "adamw", "OPTIM.WARMUP_EPOCH": 4, "TRAINER.SPG.GRAD_CLIP_OFF_TARGETS": ()}
DEFAULT_NORMS = {f"TRAINER.SPG.{key}": value for key, value in (("D_WEIGHT_NORM", 5e-2), ("G_BIAS_NORM", 5e-8))}
SGD = {"OPTIM.NAME": "sgd", "OPTIM.WARMUP_EPOCH": 1}


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ("SPG_CGAN", {**ADAMW, **DEFAULT_NORMS}),
        ("SPG", {**ADAMW, **DEFAULT_NORMS, "TRAINER.SPG.STAGE1_CONFIG_FILE": "configs/trainers/SPG_CoOp/as_run.yaml"}),
        ("SPG_CoOp", {"OPTIM.NAME": "sgd", "OPTIM.WARMUP_EPOCH": 4}),
        ("CoOp", {**SGD, "TRAINER.COOP.CTX_INIT": "a photo of a"}),
        ("CoCoOp", {**SGD, "TRAINER.COCOOP.CTX_INIT": "a photo of a"}),
        ("DPL", SGD),
        ("VP", SGD),
        ("VPT", SGD),
        ("MaPLe", {**SGD, "TRAINER.MAPLE.PROMPT_DEPTH": 0}),
        ("LinearProbe", {"TRAINER.LINEAR_PROBE.AUGMENTED": True}),
    ],
)
def test_a_config_of_the_authors_trains_as_their_code_does(tmp_path, trainer, expected):
    path = tmp_path / "theirs.yaml"
    path.write_text((NORMS if trainer in ("SPG_CGAN", "SPG") else "") + OF_AUTHORS)
    cfg = default_cfg()
    said = merge_method_file(cfg, path, trainer)
    for key, value in {**expected, **dict([BEST] if trainer == "LinearProbe" else [BEST, DECAY])}.items():
        assert value_of(cfg, key) == value, key
    assert said.startswith(f"Note: {path} is a config of SPG's authors. Their code sets ")
    assert "TEST.FINAL_MODEL best_val (not last_step)" in said
    assert (value_of(cfg, "OPTIM.MAX_EPOCH"), list(value_of(cfg, "INPUT.SIZE"))) == (50, [224, 224])


@pytest.mark.parametrize("name", ["CoOp/rn50_ep50", "CoCoOp/vit_b16_c4_ep10_batch1", "SPG_CGAN/pacs", "DPSPG/default"])
def test_other_configs_train_as_they_say(name):
    path, plain, cfg = REPOSITORY / f"configs/trainers/{name}.yaml", default_cfg(), default_cfg()
    merge_file(plain, path)
    assert merge_method_file(cfg, path, path.parent.name) == ""
    assert cfg == plain


def test_a_run_prints_which_values_the_code_of_the_authors_overrides(train, tmp_path, capsys):
    (tmp_path / "theirs.yaml").write_text(OF_AUTHORS)
    key = "TRAINER.DPSPG.STAGE1_CONFIG_FILE"
    assert train("DPSPG", "red", key, "theirs.yaml", flags=["--config-file", "theirs.yaml"]) == 0
    printed = capsys.readouterr().out.replace(f"{tmp_path}/", "")
    assert printed.count("Note: theirs.yaml is a config of SPG's authors. Their code sets ") == 2
    assert "OPTIM.WARMUP_EPOCH 4 (not 1)" in printed


def test_configs_have_the_settings_of_the_authors():
    for method in ("CoOp", "CoCoOp", "DPL", "VP", "VPT", "MaPLe"):
        for name in ("default", "ep10"):
            assert setting(f"{method}/{name}", "OPTIM.WEIGHT_DECAY") == 1e-4
    rates = {name: setting(f"SPG_CGAN/{name}", "OPTIM.LR") for name in ("default", "pacs", "vlcs", "as_run")}
    assert rates == {"default": 2e-4, "pacs": 2e-3, "vlcs": 2e-3, "as_run": 2e-3}
    stage1 = [setting("DPSPG_CoOp/default", f"OPTIM.{key}") for key in ("WARMUP_EPOCH", "WEIGHT_DECAY")]
    assert (stage1, setting("DPSPG/published", "TRAINER.DPSPG.LATE")) == ([4, 1e-4], 0)


def setting(config, key):
    cfg = default_cfg()
    merge_file(cfg, REPOSITORY / f"configs/trainers/{config}.yaml")
    return value_of(cfg, key)
