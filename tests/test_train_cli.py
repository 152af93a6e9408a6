"""Every mistake on train.py's command line ends in one message and exit code 1."""

import contextlib
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from quick_run import REPOSITORY

CONFIGS = REPOSITORY / "configs"
WRONG = [
    ("SPQ", [], [], "TRAINER.NAME: unknown name 'SPQ'. Accepted: "),
    ("", [], [], "TRAINER.NAME: unknown name ''"),
    ("SPG", ["DATASET.NAME", "Pacs"], [], "DATASET.NAME: unknown name 'Pacs'. Accepted: "),
    ("SPG", [], ["--backbone", "RN51"], "'RN51' is neither a file nor one of OpenAI's names: RN50"),
    ("SPG", ["MODEL.BACKBONE.NAME", ""], [], "no backbone is named"),
    ("SPG", [], ["--target-domains", "purple"], "has no domain 'purple'. Accepted: blue, green, red."),
    ("SPG", [], ["--source-domains", "blue", "purple"], "purple"),
    ("SPG", ["OPTIM.MAX_EPOCHS", "3"], [], "Non-existent key: OPTIM.MAX_EPOCHS"),
    ("SPG", ["OPTIM.LR"], [], "'OPTIM.LR' has no value"),
    ("SPG", ["OPTIM.LR", "fast"], [], "OPTIM.LR"),
    ("SPG", [], ["--config-file", f"{CONFIGS}/trainers/SPG_CGAN/pcas.yaml"], "pcas.yaml is not there"),
    ("SPG", [], ["--config-file", "broken.yaml"], "broken.yaml cannot be used"),
    ("SPG", [], ["--config-file", "strange.yaml"], "Non-existent key: OPTIMISER.LR. Did you mean OPTIM.LR?"),
    ("SPG", [], ["--eval-only"], "needs --model-dir"),
    ("SPG", [], ["--eval-only", "--model-dir", "nowhere"], "nowhere"),
    ("SPG", [], ["--output-dir", "broken.yaml"], "broken.yaml is a file; name a folder"),
    ("SPG", ["TEST.N_PROMPTS", "0"], [], "TEST.N_PROMPTS is 0"),
    ("SPG", ["TEST.MEMORY_MB", "-5"], [], "TEST.MEMORY_MB is -5"),
    ("SPG", ["TRAINER.SPG.CSC", "True"], [], "TRAINER.SPG.CSC is True"),
    ("SPG", ["TRAINER.SPG.PREC", "fp8"], [], "'fp8'; accepted: fp32, fp16"),
    ("SPG", ["TRAINER.SPG.STAGE1_CONFIG_FILE", "no.yaml"], [], "STAGE1_CONFIG_FILE no.yaml is not there"),
    ("SPG", ["TRAINER.SPG.STAGE1_OPTS", "['OPTIM.LR']"], [], "Settings come in pairs KEY VALUE"),
    ("SPG", ["TRAINER.SPG.STAGE1_OPTS", "['OPTIM.LRR', 1]"], [], "Non-existent key: OPTIM.LRR"),
    ("SPG", ["TEST.SPLIT", "val"], [], "TEST.SPLIT is 'val'"),
    ("SPG", ["DATALOADER.TRAIN_X.BATCH_SIZE", "1"], [], "at least 2 images"),
    ("SPG", ["DATALOADER.K_TRANSFORMS", "2"], [], "K_TRANSFORMS"),
    ("SPG", ["INPUT.NO_TRANSFORM", "True"], [], "NO_TRANSFORM"),
    ("SPG", ["DATASET.NUM_SHOTS", "1", "SEED", "-1"], [], "without one seed for both"),
    ("SPG", [], ["--root", "nowhere"], "nowhere"),
    ("SPG", [], ["--root", "empty"], "empty"),
    ("SPG", [], ["--backbone", "broken.yaml"], "broken.yaml cannot be read"),
    ("SPG", [], ["--backbone", "net.pt"], "net.pt is not a CLIP in OpenAI's format"),
    ("SPG_CGAN", [], [], "The prompt label of source domain blue is missing"),
    ("SPG_CoOp", [], ["--source-domains", "blue", "green"], "DATASET.SOURCE_DOMAINS names 2: blue, green"),
    ("CoOp", ["OPTIM.LR", "1e38", "OPTIM.WARMUP_EPOCH", "-1"], [], "loss became nan in epoch 1 of 2, step 2 of 2"),
]


@pytest.mark.parametrize(("trainer", "opts", "flags", "message"), WRONG)
def test_train_with_mistake_prints_one_message(expect_error, tmp_path, trainer, opts, flags, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.yaml").write_text("OPTIM: [")
    (tmp_path / "strange.yaml").write_text("OPTIMISER:\n  LR: 1\n")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "net.pt")
    assert message in expect_error(trainer, "red", *opts, flags=flags)


def test_train_with_unknown_trainer_lists_the_trainers(expect_error):
    message = expect_error("SPQ", "red")
    names = ("CoCoOp", "CoOp", "LinearProbe", "SPG", "SPG_CGAN", "SPG_CoOp", "ZeroshotCLIP", "ZeroshotCLIP2")
    assert all(name in message for name in names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_train_with_use_cuda_without_gpu_is_an_error(expect_error):
    assert "USE_CUDA True asks for a GPU" in expect_error("SPG", "red", "USE_CUDA", "True")


@pytest.fixture
def own_images(tmp_path, image_folder):
    """A copy of the images that a test may change, and the flags that use it."""
    shutil.copytree(image_folder, tmp_path / "own", ignore=shutil.ignore_patterns("spg_coop_splits"))
    return tmp_path / "own", ["--root", "own"]


def test_train_without_validation_images_is_an_error(expect_error, own_images):
    folder, flags = own_images
    for path in folder.glob("*/*/[1-4].png"):
        path.unlink()
    assert "too small for a validation split to choose an epoch by" in expect_error("CoOp", "red", flags=flags)


def test_train_with_class_in_one_domain_is_an_error(expect_error, own_images):
    folder, flags = own_images
    (folder / "red" / "down").rename(folder / "red" / "dwon")
    assert "Missing: dwon" in expect_error("SPG", "red", flags=flags)


def test_train_with_one_image_is_an_error_of_methods_that_need_more(expect_error, own_images):
    folder, flags = own_images
    flags = [*flags, "--source-domains", "blue"]
    for path in sorted((folder / "blue").glob("*/*"))[1:]:
        path.unlink()
    message = expect_error("SPG", "red", "TEST.FINAL_MODEL", "last_step", flags=flags)
    assert "one training image, and the batch norm of SPG's generator" in message
    assert "too small for a validation split" in expect_error("LinearProbe", "red", flags=flags)


def test_train_with_image_of_one_row_names_it(expect_error, own_images):
    folder, flags = own_images
    for path in (folder / "blue" / "down").iterdir():
        Image.new("RGB", (60000, 1)).save(path)
    assert "has 60,000 x 1 pixels" in expect_error("CoOp", "red", flags=flags)


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_train_with_undecodable_image_names_it(expect_error, own_images, num_workers):
    folder, flags = own_images
    for path in (folder / "blue" / "down").iterdir():
        path.write_bytes(b"no image")
    message = expect_error("SPG", "red", "DATALOADER.NUM_WORKERS", num_workers, flags=flags)
    assert "own/blue/down/" in message and ".png" in message


def test_train_with_too_long_class_name_is_an_error(expect_error, own_images):
    folder, flags = own_images
    for domain in folder.iterdir():
        (domain / "down").rename(domain / ("very " * 40 + "long").strip().replace(" ", "_"))
    message = expect_error("CoOp", "red", "TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", "60", flags=flags)
    assert "very very" in message and "left of 77" in message


def test_train_with_prompt_labels_of_other_settings_is_an_error(expect_error, finish_run, tmp_path, clip_file):
    finish_run("SPG")
    message = expect_error("SPG", "red", "TRAINER.SPG.CTX_INIT", "a photo of", flags=["--output-dir", "b"])
    assert "blue.pt has shape (4, 64); this run needs (3, 64)" in message
    message = expect_error(
        "SPG", "red", "TRAINER.SPG.STAGE1_OPTS", "['OPTIM.MAX_EPOCH', 3]", flags=["--output-dir", "b"]
    )
    assert "trained with other settings: OPTIM.MAX_EPOCH 2 there and 3 here" in message
    weights = torch.load(clip_file, weights_only=True)
    weights["logit_scale"] = weights["logit_scale"] + 1
    (tmp_path / "other").mkdir()
    torch.save(weights, tmp_path / "other" / "tiny.pt")
    message = expect_error("SPG", "red", flags=["--output-dir", "b", "--backbone", "other/tiny.pt"])
    assert "blue.pt was trained with other settings: other backbone weights." in message


def test_help_imports_no_heavy_packages():
    code = (
        "import sys, train\ntry:\n train.parse_args(['--help'])\nexcept SystemExit:\n sys.exit('torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert process.returncode == 0
    assert "--target-domains" in process.stdout


def test_domain_flags_leave_later_pairs_as_settings():
    import train as command

    cfg = command.setup_cfg(command.parse_args(["--target-domains", "a", "b", "OPTIM.LR", "1", "SEED", "2"]))
    assert (cfg.DATASET.TARGET_DOMAINS, cfg.OPTIM.LR, cfg.SEED) == (("a", "b"), 1.0, 2)


# ---- folders that hold a run ----


def test_train_finished_with_unknown_target_is_an_error(finish_run, expect_error):
    finish_run("CoOp")
    assert "has no domain 'purple'" in expect_error("CoOp", "purple")


def test_train_finished_by_another_process_is_skipped(finish_run, train, tmp_path, monkeypatch, capsys):
    finish_run("CoOp")
    (tmp_path / "run").rename(tmp_path / "theirs")

    @contextlib.contextmanager
    def waited(folder):
        (tmp_path / "theirs").rename(tmp_path / "moved")
        shutil.copytree(tmp_path / "moved", folder, dirs_exist_ok=True)
        yield

    monkeypatch.setattr("train.run_lock", waited)
    assert train("CoOp", "red") == 0
    assert "run: skipped, finished by another process." in capsys.readouterr().out


def test_eval_only_repeated_is_skipped_and_changed_is_an_error(finish_run, train, expect_error, tmp_path, capsys):
    finish_run("CoOp")
    shutil.copytree(tmp_path / "run", tmp_path / "twin")
    test = ["--eval-only", "--output-dir", "tested", "--model-dir"]
    assert train("CoOp", "red", flags=[*test, "run"]) == 0
    written = (tmp_path / "tested/results.json").stat().st_mtime_ns
    assert train("CoOp", "red", flags=[*test, "run"]) == 0
    assert "tested holds a finished run; skipped" in capsys.readouterr().out
    for other in ([*test, "twin"], [*test, "run", "--load-epoch", "2"]):
        assert "tested holds the results of another run" in expect_error("CoOp", "red", flags=other)
    assert "source domains" in expect_error("CoOp", "red", flags=[*test, "run", "--source-domains", "blue"])
    assert "run holds the results of another run" in expect_error(
        "CoOp", "red", flags=["--eval-only", "--model-dir", "twin", "--output-dir", "run"]
    )
    assert (tmp_path / "tested/results.json").stat().st_mtime_ns == written


def test_train_with_label_dir_without_seed_warns(train, tmp_path, capsys):
    assert train("SPG", "red", "TRAINER.SPG.LABEL_DIR", "labels", "SEED", "-1") == 0
    assert "Warning: TRAINER.SPG.LABEL_DIR labels is not used" in capsys.readouterr().out
    assert not list(tmp_path.glob("labels/**/*.pt")) and list(tmp_path.glob("run/prompt_labels/**/*.pt"))
