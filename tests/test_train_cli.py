"""Every mistake on train.py's command line ends in one message and exit code 1."""

import shutil

import pytest
import torch

WRONG = [
    ("SPQ", [], [], "TRAINER.NAME: unknown name 'SPQ'. Accepted: "),
    ("SPG", ["DATASET.NAME", "Pacs"], [], "DATASET.NAME: unknown name 'Pacs'. Accepted: "),
    ("SPG", ["DATASET.NAME", ""], [], "DATASET.NAME: no name is given. Accepted: "),
    ("SPG", [], ["--backbone", "RN51"], "'RN51' is neither a file nor one of OpenAI's names: RN50"),
    ("SPG", ["MODEL.BACKBONE.NAME", ""], [], "no backbone is named"),
    ("SPG", [], ["--backbone", "net.pt"], "net.pt is not a CLIP in OpenAI's format"),
    ("SPG", [], ["--target-domains", "purple"], "has no domain 'purple'. Accepted: blue, green, red."),
    ("CoOp", ["OPTIM.LR", "1e30"], [], "The loss became nan in epoch"),
    ("CoOp", ["OPTIM.LR", "1e30", "TRAINER.COOP.PREC", "amp"], [], "The loss became nan in epoch"),
    ("SPG", ["OPTIM.LR"], [], "'OPTIM.LR' has no value"),
    ("SPG", [], ["--config-file", "pcas.yaml"], "pcas.yaml is not there"),
    ("SPG", [], ["--config-file", "broken.yaml"], "broken.yaml cannot be used"),
    ("SPG", [], ["--eval-only"], "needs --model-dir"),
    ("SPG", [], ["--eval-only", "--model-dir", "nowhere"], "nowhere"),
    ("SPG", [], ["--output-dir", "broken.yaml"], "broken.yaml is a file; name a folder"),
    ("SPG", ["TRAINER.SPG.STAGE1_CONFIG_FILE", "no.yaml"], [], "STAGE1_CONFIG_FILE no.yaml is not there"),
    ("SPG", ["DATASET.NUM_SHOTS", "1", "SEED", "-1"], [], "without one seed for both"),
    ("SPG", [], ["--root", "nowhere"], "nowhere"),
    ("SPG", [], ["--root", "empty"], "empty"),
    ("SPG_CGAN", [], [], "The prompt label of source domain blue is missing"),
    ("SPG_CoOp", [], ["--source-domains", "blue", "green"], "DATASET.SOURCE_DOMAINS names 2: blue, green"),
]


@pytest.mark.parametrize(("trainer", "opts", "flags", "message"), WRONG)
def test_train_with_mistake_prints_one_message(expect_error, tmp_path, trainer, opts, flags, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.yaml").write_text("OPTIM: [")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "net.pt")
    assert message in expect_error(trainer, "red", *opts, flags=flags)


@pytest.fixture
def own_images(tmp_path, image_folder):
    return shutil.copytree(image_folder, tmp_path / "own", ignore=shutil.ignore_patterns("spg_coop_splits"))


def test_train_with_too_few_images_is_an_error(expect_error, own_images):
    for path in own_images.glob("*/*/[1-4].png"):
        path.unlink()
    small = "too small for a validation split"
    assert f"{small} to choose an epoch by" in expect_error("CoOp", "red", flags=["--root", "own"])
    (own_images / "blue/down/0.png").unlink()
    shutil.rmtree(own_images / "spg_coop_splits")
    flags = ["--root", "own", "--source-domains", "blue"]
    message = expect_error("SPG", "red", "TEST.FINAL_MODEL", "last_step", flags=flags)
    assert "one training image, and the batch norm of SPG's generator" in message
    assert small in expect_error("LinearProbe", "red", flags=flags)


def test_train_with_prompt_labels_of_other_settings_is_an_error(expect_error, finish_run, tmp_path, clip_file):
    finish_run("SPG")
    weights = torch.load(clip_file, weights_only=True)
    (tmp_path / "other").mkdir()
    torch.save({**weights, "logit_scale": weights["logit_scale"] + 1}, tmp_path / "other/tiny.pt")
    for opts, message in (
        (["TRAINER.SPG.CTX_INIT", "a photo of"], "blue.pt has shape (4, 64); this run needs (3, 64)"),
        (["TRAINER.SPG.STAGE1_OPTS", "['OPTIM.MAX_EPOCH', 3]"], "stage I: OPTIM.MAX_EPOCH 2 there and 3 here"),
        (["MODEL.BACKBONE.NAME", "other/tiny.pt"], "blue.pt was trained with other settings: other backbone weights."),
    ):
        assert message in expect_error("SPG", "red", *opts, flags=["--output-dir", "b"])


# ---- folders that hold a run ----


def test_eval_only_repeated_is_skipped_and_changed_is_an_error(finish_run, train, expect_error, tmp_path, capsys):
    shutil.copytree(finish_run("CoOp"), tmp_path / "twin")
    test = ["--eval-only", "--output-dir", "tested", "--model-dir"]
    assert train("CoOp", "red", flags=[*test, "run"]) == 0
    written = (tmp_path / "tested/results.json").stat().st_mtime_ns
    assert train("CoOp", "red", flags=[*test, "run"]) == 0
    assert "tested holds a finished run; skipped" in capsys.readouterr().out
    for other, message in (
        (["twin"], "tested holds the results of another run"),
        (["run", "--load-epoch", "2"], "tested holds the results of another run"),
        (["run", "--source-domains", "blue"], "source domains"),
        (["twin", "--output-dir", "run"], "run holds the results of another run"),
    ):
        assert message in expect_error("CoOp", "red", flags=[*test, *other])
    assert (tmp_path / "tested/results.json").stat().st_mtime_ns == written


def test_runs_without_seed_learn_separate_labels(train, tmp_path, capsys):
    for name in ("one", "two"):
        opts = ["TRAINER.SPG.LABEL_DIR", "labels", "SEED", "-1"]
        assert train("SPG", "red", *opts, flags=["--output-dir", name, "--config-file", ""]) == 0
        printed = capsys.readouterr().out
        assert "Note: without --config-file" in printed
        assert "Warning: TRAINER.SPG.LABEL_DIR labels is not used" in printed
        assert len(list((tmp_path / name / "prompt_labels").rglob("*.pt"))) == 2
    assert not list(tmp_path.glob("labels/**/*.pt"))
