"""The table of methods, and a real run of each method on the 30 images."""

import re
import subprocess
import sys

import pytest
import torch
from quick_run import REPOSITORY

from common.image_results import read_predictions
from common.run import read_results
from trainers.base.checkpoints import find_checkpoint
from trainers.methods import METHODS, MethodError, find_method, trainer_name
from trainers.predictor import Predictor

LAUNCHED = [method.trainer for method in METHODS if (REPOSITORY / "scripts" / method.name).is_dir()]
COMPARED = [method.trainer for method in METHODS if method.compared]


# ---- the table ----


def test_every_trainer_of_ours_is_a_row_with_a_default_config():
    from dassl.engine import TRAINER_REGISTRY

    import trainers.all

    registered = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
    ours = {name for name, trainer in registered.items() if trainer.__module__.startswith(f"{trainers.__name__}.")}
    assert ours == {method.trainer for method in METHODS}
    assert len({method.name for method in METHODS}) == len(METHODS) == len(ours)
    folders = {path.parent.name for path in (REPOSITORY / "configs/trainers").glob("*/default.yaml")}
    assert {method.config_folder for method in METHODS} == folders


def test_find_method_accepts_short_name_and_trainer():
    assert find_method("spg") is find_method("SPG")
    assert trainer_name("linear_probe") == "LinearProbe"
    with pytest.raises(MethodError, match="Unknown trainer 'nonsense'; accepted: CoCoOp, "):
        find_method("nonsense")
    with pytest.raises(MethodError, match=r"Unknown trainer 'mapel'; .*\. Did you mean MaPLe\?"):
        find_method("mapel")


def test_methods_table_imports_nothing_heavy():
    code = "import sys, trainers.methods; sys.exit(bool({'torch', 'numpy', 'dassl', 'yaml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_readme_lists_every_launcher_and_the_methods_of_a_comparison():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .* \| (?:frozen|learned|learned \(ViT\)) \| .* \|$", readme, re.MULTILINE)
    assert rows == [method.name for method in METHODS if method.trainer in LAUNCHED]
    compared = ",".join(method.name for method in METHODS if method.compared)
    assert f"| `METHODS` | methods of `compare.sh` | `{compared}` |" in readme


# ---- runs ----


@pytest.mark.parametrize("trainer", COMPARED)
def test_run_of_each_method_is_repeated_by_its_test_and_its_predictor(
    trainer, finish_run, train, tmp_path, image_folder
):
    found = read_results(finish_run(trainer) / "results.json")
    assert (found["trainer"], found["config"], found["protocol"]) == (trainer, "default", "multi-source")
    assert (found["source_domains"], found["target_domains"]) == (["blue", "green"], ["red"])
    assert (found["selection"] is not None) == (not trainer.startswith("ZeroshotCLIP"))
    if found["selection"] == "best_val":
        assert found["best_epoch"] == 1 + found["val_history"].index(max(found["val_history"]))
        assert found["val_accuracy"] == max(found["val_history"])
    else:
        assert found["val_accuracy"] is found["best_epoch"] is None
    rows = read_predictions(tmp_path / "run/predictions.csv")
    assert len(rows) == found["n_test"] == 10
    assert found["accuracy"] == pytest.approx(10 * sum(row["label"] == row["prediction"] for row in rows))

    # With other batches and without the cache: a test depends on model and images alone.
    flags = ["--eval-only", "--model-dir", "run", "--output-dir", "tested", "--no-feature-cache"]
    size = "100" if find_method(trainer).depends_on_batch else "7"
    assert train(trainer, "red", "DATALOADER.TEST.BATCH_SIZE", size, flags=flags) == 0
    tested = read_results(tmp_path / "tested/results.json")
    assert (tested["accuracy"], tested["macro_f1"]) == (found["accuracy"], found["macro_f1"])

    (prediction,) = Predictor(tmp_path / "run")([image_folder / "red" / "down" / "0.png"])
    row = next(row for row in rows if row["path"].endswith("red/down/0.png"))
    assert sum(probability for _, probability in prediction) == pytest.approx(1)
    if not find_method(trainer).depends_on:  # else on something that a single image has otherwise
        assert prediction[0] == (row["prediction"], pytest.approx(row["confidence"], abs=1e-3))


@pytest.mark.parametrize("trainer", ["DPSPG", "LinearProbe", "PromptSRC", "SPG"])
def test_finished_run_is_skipped_and_with_other_settings_an_error(trainer, finish_run, train, expect_error, capsys):
    finish_run(trainer)
    capsys.readouterr()
    assert train(trainer, "red") == 0
    assert "holds a finished run; skipped" in capsys.readouterr().out
    start = "run holds a finished run with other settings or data: "
    assert f"{start}SEED 1 there and 7 here. Delete it" in expect_error(trainer, "red", flags=["--seed", "7"])
    view = "INPUT.INTERPOLATION", "bilinear"
    assert f"{start}INPUT.INTERPOLATION bicubic there and bilinear here." in expect_error(trainer, "red", *view)


@pytest.mark.parametrize("trainer", LAUNCHED)
def test_n_trained_counts_parameters_of_checkpoints_and_labels(trainer, finish_run, tmp_path):
    result = read_results(finish_run(trainer) / "results.json")
    names = {path.parent.name for path in (tmp_path / "run").glob("*/model*")}
    files = [find_checkpoint(str(tmp_path / "run"), name) for name in names]
    networks = [torch.load(path, weights_only=False)["state_dict"] for path in files]
    not_learned = ("sum_of_", "running_", "num_batches", "source_context", "_extra_state")
    sizes = [v.numel() for net in networks for k, v in net.items() if not any(part in k for part in not_learned)]
    labels = [torch.load(path, weights_only=True)["ctx"].numel() for path in (tmp_path / "prompt_labels").rglob("*.pt")]
    assert result["n_trained"] == [sum(stage) for stage in (labels, sizes) if stage]
    assert (result["train_seconds"] is None) == (not sizes)


def test_class_name_that_is_too_long_for_a_template_is_an_error(expect_error, images):
    words = " ".join("abcdefgh"[i % 8] for i in range(69))  # fits behind the learned context
    for domain in images.iterdir():
        (domain / "down").rename(domain / words)
    message = expect_error("PromptSRC", "red", flags=["--root", str(images)])
    assert "Class name '" in message and "left of 77. Shorten the name" in message


def test_model_is_tested_under_its_trainer_alone(finish_run, expect_error):
    finish_run("CoOp")
    test = ["--eval-only", "--model-dir", "run", "--output-dir", "tested"]
    assert "in run was trained by CoOp, not by KgCoOp" in expect_error("KgCoOp", "red", flags=test)


@pytest.mark.parametrize(
    ("trainer", "key", "trained"),
    [
        ("VP", "TRAINER.VP.METHOD", "fix"),
        ("LinearProbe", "TRAINER.LINEAR_PROBE.NORMALISED", "True"),
        ("CoOp", "TRAINER.COOP.CLASS_TOKEN_POSITION", "front"),
        ("MaPLe", "TRAINER.MAPLE.CTX_INIT", "a photo with some"),
    ],
)
def test_model_is_tested_with_its_settings_of_training(finish_run, expect_error, trainer, key, trained):
    """The checkpoint does not show these settings, and other settings would change its predictions."""
    finish_run(trainer, key, trained)
    message = expect_error(trainer, "red", flags=["--eval-only", "--model-dir", "run", "--output-dir", "tested"])
    assert f"was trained with {key} " in message and f", and here {key} is " in message
