"""Every mistake on train.py's command line ends in one message and exit code 1."""

import contextlib
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from quick_run import REPOSITORY


def test_unknown_names(refused):
    message = refused("SPQ", "red")
    assert "TRAINER.NAME: unknown name 'SPQ'. Accepted: " in message
    names = ("CoCoOp", "CoOp", "LinearProbe", "SPG", "SPG_CGAN", "SPG_CoOp", "ZeroshotCLIP", "ZeroshotCLIP2")
    assert all(name in message for name in names)
    message = refused("SPG", "red", "DATASET.NAME", "Pacs")
    assert "DATASET.NAME: unknown name 'Pacs'. Accepted: " in message
    assert "SPG_PACS" in message
    assert "'RN51' is neither a file nor one of OpenAI's names: RN50" in refused(
        "SPG", "red", flags=["--backbone", "RN51"]
    )
    message = refused("SPG", "purple")
    assert "'purple'" in message
    assert "blue, green, red" in message
    assert "purple" in refused("SPG", "red", flags=["--source-domains", "blue", "purple"])


def test_nothing_named(refused):
    assert "TRAINER.NAME: unknown name ''" in refused("", "red")
    assert "no backbone is named" in refused("SPG", "red", "MODEL.BACKBONE.NAME", "")


def test_settings(refused):
    assert "Non-existent key: OPTIM.MAX_EPOCHS" in refused("SPG", "red", "OPTIM.MAX_EPOCHS", "3")
    assert "'OPTIM.LR' has no value" in refused("SPG", "red", "OPTIM.LR")
    assert "OPTIM.LR" in refused("SPG", "red", "OPTIM.LR", "fast")
    message = refused("SPG", "red", flags=["--config-file", str(REPOSITORY / "configs/trainers/SPG_CGAN/pcas.yaml")])
    assert "pcas.yaml is not there" in message
    assert "as_run.yaml, default.yaml" in message
    assert "needs --model-dir" in refused("SPG", "red", flags=["--eval-only"])
    assert "TEST.N_PROMPTS is 0" in refused("SPG", "red", "TEST.N_PROMPTS", "0")
    assert "TEST.MEMORY_MB is -5" in refused("SPG", "red", "TEST.MEMORY_MB", "-5")
    assert "TRAINER.SPG.CSC is True" in refused("SPG", "red", "TRAINER.SPG.CSC", "True")
    assert "'fp8'; accepted: fp32, fp16" in refused("SPG", "red", "TRAINER.SPG.PREC", "fp8")
    key = "TRAINER.SPG.STAGE1_CONFIG_FILE"
    assert f"{key} nowhere.yaml is not there" in refused("SPG", "red", key, "nowhere.yaml")


def test_more_settings(refused, tmp_path):
    assert "TEST.SPLIT is 'val'" in refused("SPG", "red", "TEST.SPLIT", "val")
    assert "at least 2 images" in refused("SPG", "red", "DATALOADER.TRAIN_X.BATCH_SIZE", "1")
    assert "K_TRANSFORMS" in refused("SPG", "red", "DATALOADER.K_TRANSFORMS", "2")
    assert "NO_TRANSFORM" in refused("SPG", "red", "INPUT.NO_TRANSFORM", "True")
    assert "Settings come in pairs KEY VALUE" in refused("SPG", "red", "TRAINER.SPG.STAGE1_OPTS", "['OPTIM.LR']")
    assert "Non-existent key: OPTIM.LRR" in refused("SPG", "red", "TRAINER.SPG.STAGE1_OPTS", "['OPTIM.LRR', 1]")
    (tmp_path / "file").write_text("")
    assert "file is a file; name a folder" in refused("SPG", "red", flags=["--output-dir", "file"])
    message = refused("SPG", "red", "DATASET.NUM_SHOTS", "1", "SEED", "-1")
    assert "without a seed would draw other images" in message


def test_no_validation_images(refused, tmp_path, own_images):
    folder, flags = own_images
    for path in folder.glob("*/*/[1-4].png"):
        path.unlink()
    assert "too small for a validation split to choose an epoch by" in refused("CoOp", "red", flags=flags)


def test_a_class_in_one_domain_only(refused, own_images):
    folder, flags = own_images
    (folder / "red" / "down").rename(folder / "red" / "dwon")
    message = refused("SPG", "red", flags=flags)
    assert "Missing: dwon" in message


def test_a_config_file_that_is_none(refused, tmp_path):
    (tmp_path / "broken.yaml").write_text("OPTIM: [")
    assert "broken.yaml cannot be used" in refused("SPG", "red", flags=["--config-file", "broken.yaml"])
    (tmp_path / "strange.yaml").write_text("OPTIMISER:\n  LR: 1\n")
    message = refused("SPG", "red", flags=["--config-file", "strange.yaml"])
    assert "strange.yaml cannot be used: Non-existent key: OPTIMISER.LR. Did you mean OPTIM.LR?" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none(refused):
    assert "USE_CUDA True asks for a GPU" in refused("SPG", "red", "USE_CUDA", "True")


def test_data_root(refused, tmp_path):
    assert "nowhere" in refused("SPG", "red", flags=["--root", "nowhere"])
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("SPG", "red", flags=["--root", "empty"])
    config = str(REPOSITORY / "configs/datasets/pacs.yaml")
    message = refused("SPG", "sketch", flags=["--root", "empty", "--dataset-config-file", config])
    assert "SPG_PACS" in message
    assert "empty" in message


def test_backbone_files(refused, tmp_path):
    (tmp_path / "notes.pt").write_text("no weights")
    assert "notes.pt cannot be read" in refused("SPG", "red", flags=["--backbone", "notes.pt"])
    torch.save({"weight": torch.zeros(3)}, tmp_path / "net.pt")
    assert "net.pt is not a CLIP in OpenAI's format" in refused("SPG", "red", flags=["--backbone", "net.pt"])


@pytest.fixture
def own_images(tmp_path, image_folder):
    """A copy of the images that a test may spoil, and the flags that use it."""
    shutil.copytree(image_folder, tmp_path / "own", ignore=shutil.ignore_patterns("spg_coop_splits"))
    return tmp_path / "own", ["--root", "own"]


def test_one_training_image_is_refused_by_methods_that_need_more(refused, own_images):
    folder, flags = own_images
    flags = [*flags, "--source-domains", "blue"]
    for path in sorted((folder / "blue").glob("*/*"))[1:]:
        path.unlink()
    message = refused("SPG", "red", "TEST.FINAL_MODEL", "last_step", flags=flags)
    assert "one training image, and the batch norm of SPG's generator" in message
    assert "too small for a validation split" in refused("LinearProbe", "red", flags=flags)


def test_image_of_one_row_is_named(refused, own_images):
    folder, flags = own_images
    for path in (folder / "blue" / "down").iterdir():
        Image.new("RGB", (60000, 1)).save(path)
    assert "has 60,000 x 1 pixels" in refused("CoOp", "red", flags=flags)


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_an_image_that_cannot_be_decoded(refused, own_images, num_workers):
    folder, flags = own_images
    for path in (folder / "blue" / "down").iterdir():
        path.write_bytes(b"no image")
    message = refused("SPG", "red", "DATALOADER.NUM_WORKERS", num_workers, flags=flags)
    assert "own/blue/down/" in message
    assert ".png" in message


def test_a_class_name_that_is_too_long(refused, own_images):
    folder, flags = own_images
    for domain in folder.iterdir():
        (domain / "down").rename(domain / ("very " * 40 + "long").strip().replace(" ", "_"))
    message = refused("CoOp", "red", "TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", "60", flags=flags)
    assert "very very" in message
    assert "left of 77" in message


def test_prompt_labels(refused, finished, tmp_path):
    message = refused("SPG_CGAN", "red")
    assert "The prompt label of source domain blue is missing" in message
    assert "--trainer SPG_CoOp --source-domains blue --target-domains blue" in message
    finished("SPG")
    message = refused("SPG", "red", "TRAINER.SPG.CTX_INIT", "a photo of", flags=["--output-dir", "b"])
    assert "blue.pt has shape (4, 64); this run needs (3, 64)" in message


def test_prompt_labels_of_a_quick_try_are_not_taken_for_the_real_ones(refused, finished):
    finished("SPG")
    message = refused("SPG", "red", "TRAINER.SPG.STAGE1_OPTS", "['OPTIM.MAX_EPOCH', 3]", flags=["--output-dir", "b"])
    assert "trained with other settings: OPTIM.MAX_EPOCH 2 (here 3)" in message


def test_prompt_labels_of_another_backbone(refused, finished, tmp_path, clip_file):
    finished("SPG")
    weights = torch.load(clip_file, weights_only=True)
    weights["logit_scale"] = weights["logit_scale"] + 1
    (tmp_path / "other").mkdir()
    torch.save(weights, tmp_path / "other" / "tiny.pt")
    message = refused("SPG", "red", flags=["--output-dir", "b", "--backbone", "other/tiny.pt"])
    assert "blue.pt was trained with other settings: backbone." in message


def test_one_domain_for_a_label(refused):
    message = refused("SPG_CoOp", "red", flags=["--source-domains", "blue", "green"])
    assert "SPG_CoOp learns the prompt label of one domain; DATASET.SOURCE_DOMAINS names 2: blue, green" in message


def test_a_model_dir_without_a_model(refused):
    assert "nowhere" in refused("SPG", "red", flags=["--eval-only", "--model-dir", "nowhere"])


def test_a_loss_that_is_not_finite(refused):
    message = refused("CoOp", "red", "OPTIM.LR", "1e38", "OPTIM.WARMUP_EPOCH", "-1")
    assert "loss became nan in epoch 1 of 2, step 2 of 2" in message
    assert "OPTIM.LR" in message


def test_help_needs_no_heavy_imports():
    code = (
        "import sys, train\ntry:\n train.parse_args(['--help'])\nexcept SystemExit:\n sys.exit('torch' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert finished.returncode == 0
    assert "--target-domains" in finished.stdout


def test_pairs_after_domains_are_settings():
    import train as command

    cfg = command.setup_cfg(command.parse_args(["--target-domains", "a", "b", "OPTIM.LR", "1", "SEED", "2"]))
    assert (cfg.DATASET.TARGET_DOMAINS, cfg.OPTIM.LR, cfg.SEED) == (("a", "b"), 1.0, 2)


# ---- folders that hold a run ----


def test_a_finished_folder_with_an_unknown_target_is_an_error(finished, refused):
    finished("CoOp")
    assert "has no domain 'purple'" in refused("CoOp", "purple")


def test_a_run_that_another_process_finishes_is_skipped(finished, train, tmp_path, monkeypatch, capsys):
    finished("CoOp")
    (tmp_path / "run").rename(tmp_path / "theirs")

    @contextlib.contextmanager
    def waited(folder):
        (tmp_path / "theirs").rename(tmp_path / "moved")
        shutil.copytree(tmp_path / "moved", folder, dirs_exist_ok=True)
        yield

    monkeypatch.setattr("train.run_lock", waited)
    assert train("CoOp", "red") == 0
    assert "run: skipped, finished by another process." in capsys.readouterr().out


def test_a_repeated_test_is_skipped_and_another_one_is_an_error(finished, train, refused, tmp_path, capsys):
    finished("CoOp")
    shutil.copytree(tmp_path / "run", tmp_path / "twin")
    test = ["--eval-only", "--output-dir", "tested", "--model-dir"]
    assert train("CoOp", "red", flags=[*test, "run"]) == 0
    written = (tmp_path / "tested/results.json").stat().st_mtime_ns
    assert train("CoOp", "red", flags=[*test, "run"]) == 0
    assert "tested holds a finished run; skipped" in capsys.readouterr().out
    for other in ([*test, "twin"], [*test, "run", "--load-epoch", "2"]):
        assert "tested holds the results of another run" in refused("CoOp", "red", flags=other)
    assert "source domains" in refused("CoOp", "red", flags=[*test, "run", "--source-domains", "blue"])
    assert "run holds the results of another run" in refused(
        "CoOp", "red", flags=["--eval-only", "--model-dir", "twin", "--output-dir", "run"]
    )
    assert (tmp_path / "tested/results.json").stat().st_mtime_ns == written


def test_a_label_folder_without_a_seed_is_a_warning(train, tmp_path, capsys):
    assert train("SPG", "red", "TRAINER.SPG.LABEL_DIR", "labels", "SEED", "-1") == 0
    assert "Warning: TRAINER.SPG.LABEL_DIR labels is not used" in capsys.readouterr().out
    assert not list(tmp_path.glob("labels/**/*.pt")) and list(tmp_path.glob("run/prompt_labels/**/*.pt"))
