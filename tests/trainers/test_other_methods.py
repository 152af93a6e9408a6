"""Settings, files and runs of other methods; tests/contracts/test_numbers.py checks their numbers."""

import json
import math
import shutil

import pytest
import torch
import yaml
from dassl.engine import TRAINER_REGISTRY, build_trainer
from quick_run import REPOSITORY, command_line
from reference import logits_of, plain_text_features, tiny_clip, unit

import train as command
from trainers.config import as_typed, default_cfg, value_of
from trainers.methods import METHODS, MethodError
from trainers.modules.clip.backbone import Backbone
from trainers.predictor import Predictor
from trainers.promptsrc import PromptSRC
from trainers.saved_run import build_run

CLASSES = ["across", "down"]


@pytest.fixture
def build(tmp_path, image_folder, clip_for, monkeypatch):
    """An untrained trainer with perturbed networks: build("KgCoOp", "KEY", "VALUE")."""
    import datasets  # noqa: F401 (registers)
    import trainers.all  # noqa: F401 (registers)

    monkeypatch.chdir(tmp_path)

    def make(trainer, *opts, flags=(), moved=True):
        args = command_line(trainer, "red", *opts, flags=flags, root=image_folder, clip=clip_for(trainer))
        built = build_trainer(command.setup_cfg(command.parse_args(args)))
        torch.manual_seed(2)
        for network in built._models.values() if moved else ():
            for parameter in network.parameters():
                parameter.data.add_(0.02 * torch.randn_like(parameter))
        return built

    return make


def test_maple_projections_start_equal_and_separate(build):
    start = build("MaPLe", "TRAINER.MAPLE.PROMPT_DEPTH", "3", moved=False).model
    first, second = (map.weight for map in start.compound_prompt_projections)
    assert first is not second and torch.equal(first, second) and not torch.equal(first, start.proj.weight)


def test_patch_places_in_evaluation_depend_on_seed_and_image(build):
    trainer, images = build("VP"), torch.randn(4, 3, 32, 32)
    expected = trainer.image_features.encode(images, [5, 6, 7, 8])
    alone = trainer.image_features.encode(images[2:3], [7])
    torch.testing.assert_close(alone, expected[2:3], atol=1e-6, rtol=0)
    assert len(set(map(tuple, trainer.places(range(20))))) > 10
    assert trainer.places([7]) == build("VP").places([7]) != build("VP", flags=["--seed", "2"]).places([7])


@pytest.mark.parametrize("trainer", ["VPT", "MaPLe", "PromptSRC"])
def test_resnet_raises_before_training(expect_error, clip_file, trainer):
    message = expect_error(trainer, "red", flags=["--backbone", str(clip_file)])
    assert "must be a ViT" in message and "ViT-B/16" in message and "vp" in message


@pytest.mark.parametrize(
    ("trainer", "opts", "expected"),
    [
        ("MaPLe", ["TRAINER.MAPLE.PROMPT_DEPTH", "13"], "PROMPT_DEPTH is 13, but the text tower of "),
        (
            "MaPLe",
            ["TRAINER.MAPLE.N_CTX", "5", "TRAINER.MAPLE.PROMPT_DEPTH", "1"],
            "MAPLE.N_CTX is 5, but TRAINER.MAPLE",
        ),
        ("VPT", ["TRAINER.VPT.PROMPT_DEPTH_VISION", "13"], "Set TRAINER.VPT.PROMPT_DEPTH_VISION 12."),
        ("VPT", ["TRAINER.VPT.CTX_INIT", ""], "is ''; accepted: one or more words."),
        ("PromptSRC", ["TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", "13"], "Set TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT 12."),
        ("PromptSRC", ["TRAINER.PROMPTSRC.N_CTX_TEXT", "6"], "Set TRAINER.PROMPTSRC.N_CTX_TEXT to 1 to 4"),
        ("KgCoOp", ["TRAINER.KGCOOP.N_CTX", "6"], "TRAINER.KGCOOP.N_CTX is 6, but TRAINER.KGCOOP.CTX_INIT is"),
        ("DPSPG", ["TRAINER.DPSPG.N_CTX", "6"], "Set TRAINER.DPSPG.N_CTX 4, or "),
        ("DPSPG", ["TRAINER.DPSPG.NEG_CTX_INIT", "not a"], "has 4 tokens and TRAINER.DPSPG.NEG_CTX_INIT 'not a' has 2"),
        ("VPT", ["TRAINER.VPT.PROMPT_DEPTH_VISION", "-1"], "accepted: numbers greater than or equal to 0"),
        ("DPSPG", ["TRAINER.DPSPG.LATE_TARGETS", "['violet']"], "DPSPG.LATE_TARGETS names violet, which FolderDG does"),
        ("DPSPG", ["TRAINER.DPSPG.EARLY_TARGETS", "['violet']"], 'Accepted: blue, green, red; or "()", all of them'),
        (
            "DPSPG",
            ["TRAINER.DPSPG.LATE", "2"],
            "LATE is 2, so validation selects later epochs, but the last",
        ),
        ("DPL", ["DATALOADER.TEST.BATCH_SIZE", "1"], "is 1, but its context is a mean over the images of a batch"),
        ("VP", ["TRAINER.FEATURES.TRAIN_VIEWS", "3"], "the image tower of VP learns"),
        ("VPT", ["TRAINER.FEATURES.TRAIN_VIEWS", "3"], "Set TRAINER.FEATURES.TRAIN_VIEWS 0."),
        ("MaPLe", ["TRAINER.FEATURES.TRAIN_VIEWS", "3"], "the image tower of MaPLe learns"),
        ("PromptSRC", ["TRAINER.FEATURES.TRAIN_VIEWS", "3"], "the image tower of PromptSRC learns"),
        ("VP", ["TRAINER.VP.PROMPT_SIZE", "33"], "With TRAINER.VP.METHOD random, set it to 1 to 32"),
        ("VP", ["TRAINER.VP.PROMPT_SIZE", "16", "TRAINER.VP.METHOD", "pad"], "METHOD pad, set it to 1 to 15"),
    ],
)
def test_settings_that_do_not_fit_raise(expect_error, trainer, opts, expected):
    message = expect_error(trainer, "red", *opts)
    assert expected in message and message.count("\n") == 1


@pytest.mark.parametrize(
    ("trainer", "key", "trained"),
    [
        ("VP", "TRAINER.VP.METHOD", "fix"),
        ("LinearProbe", "TRAINER.LINEAR_PROBE.NORMALISED", "True"),
        ("CoOp", "TRAINER.COOP.CLASS_TOKEN_POSITION", "front"),
        ("MaPLe", "TRAINER.MAPLE.CTX_INIT", "a photo with some"),
    ],
)
def test_model_is_tested_with_its_settings_of_training(train, expect_error, trainer, key, trained):
    """The checkpoint does not show these settings, and other settings would change its predictions."""
    assert train(trainer, "red", key, trained) == 0
    test = ["--eval-only", "--model-dir", "run", "--output-dir", "tested"]
    message = expect_error(trainer, "red", flags=test)
    setting = f"{key} {as_typed(trained)}"
    assert f"was trained with {setting}, and here {key} is " in message and message.endswith(f"Set {setting}.\n")
    assert train(trainer, "red", key, trained, flags=test) == 0


@pytest.mark.parametrize("trainer", [method.trainer for method in METHODS if method.learns and method.launchers])
def test_finished_run_with_other_settings_is_an_error(trainer, finish_run, train, expect_error, capsys):
    finish_run(trainer)
    capsys.readouterr()
    assert train(trainer, "red") == 0
    assert "holds a finished run; skipped" in capsys.readouterr().out
    start = "run holds a finished run with other settings or data: "
    assert f"{start}SEED 1 there and 7 here. Delete it" in expect_error(trainer, "red", flags=["--seed", "7"])
    assert "source domains ['blue', 'green'] there and [" in expect_error(trainer, "blue")
    view = "INPUT.INTERPOLATION", "bilinear"
    assert f"{start}INPUT.INTERPOLATION bicubic there and bilinear here." in expect_error(trainer, "red", *view)


def test_model_is_tested_under_its_trainer_alone(finish_run, expect_error, train):
    finish_run("CoOp")
    test = ["--eval-only", "--model-dir", "run", "--output-dir", "tested"]
    message = expect_error("KgCoOp", "red", flags=test)
    assert "in run was trained by CoOp, not by KgCoOp" in message
    assert train("CoOp", "red", flags=test) == 0


def test_comparison_skips_methods_without_a_given_setting(tmp_path, image_folder, vit_file, capsys, monkeypatch):
    from scripts import launch
    from scripts.launching.jobs import plan_all

    monkeypatch.chdir(tmp_path)
    words = ["coop,vp,maple", str(image_folder), str(vit_file), "TRAINER.FEATURES.TRAIN_VIEWS", "3"]
    plan = plan_all(launch.parse_args(words))
    assert list(plan.configs) == ["CoOp"] and list(plan.errors) == ["VP", "MaPLe"]
    assert "the image tower of VP learns" in capsys.readouterr().err


def test_comparison_skips_methods_that_need_another_backbone(tmp_path, image_folder, clip_file, capsys, monkeypatch):
    from scripts import launch
    from scripts.launching.jobs import plan_all

    monkeypatch.chdir(tmp_path)
    plan = plan_all(launch.parse_args(["zsclip,maple,vpt", str(image_folder), str(clip_file)]))
    assert list(plan.configs) == ["ZeroshotCLIP"] and list(plan.errors) == ["MaPLe", "VPT"]
    output = capsys.readouterr().err
    assert output.count("Left out: ") == 2 and "Left out: MaPLe puts prompts into the image tower" in output
    with pytest.raises(MethodError, match="must be a ViT"):
        plan_all(launch.parse_args(["vpt", str(image_folder), str(clip_file)]))


def test_promptsrc_ends_with_the_mean_over_its_epochs(train, tmp_path):
    opts = ["OPTIM.MAX_EPOCH", "3", "TRAINER.PROMPTSRC.GPA_MEAN", "2", "TRAINER.PROMPTSRC.GPA_STD", "1.5"]
    assert train("PromptSRC", "red", *opts, "TRAIN.CHECKPOINT_FREQ", "1") == 0
    paths = [tmp_path / f"run/VLPromptLearner/model.pth.tar-{epoch}" for epoch in (1, 2, 3)]
    states = [torch.load(path, weights_only=True)["state_dict"] for path in paths]
    first, second, last = (PromptSRC.learned_in(state) for state in states)
    side = math.exp(-1 / (2 * 1.5**2))
    weights = [weight / (1 + 2 * side) for weight in (side, 1, side)]
    for key in ("ctx", "vctx", "deep_ctx", "deep_vctx"):
        torch.testing.assert_close(second[f"sum_of_{key}"], weights[0] * first[key] + weights[1] * second[key])
        assert torch.equal(last[key], last[f"sum_of_{key}"])
        third = (last[key] - second[f"sum_of_{key}"]) / weights[2]  # as the third epoch left it
        assert 0 < (third - second[key]).abs().max() < 0.1
    assert json.loads((tmp_path / "run/results.json").read_text())["selection"] == "last_step"


def test_dpl_starts_from_xavier_weights(build, train):
    config = REPOSITORY / "configs/trainers/DPL/published.yaml"
    assert train("DPL", "red", flags=["--config-file", str(config)]) == 0
    layer = build("DPL", "TRAINER.DPL.XAVIER", "True", moved=False).model.input
    assert (layer.bias == 0.01).all() and layer.weight.abs().max() <= (6 / (32 + 512)) ** 0.5


def test_dpl_uses_the_batch_mean_in_tests_and_the_source_mean_in_predictions(finish_run, image_folder):
    folder = finish_run("DPL")
    trainer = build_run(folder, with_data=True)
    features = torch.tensor(trainer.image_features.of_split(trainer.test_loader, "test"))
    assert (features.norm(dim=-1) - 1).abs().min() > 1e-2  # not normalised
    with torch.no_grad():
        logits = trainer.classifier()(features, range(len(features)))
        text = plain_text_features(trainer.clip_model, CLASSES, trainer.model(features).mean(dim=0))
        expected = logits_of(trainer.clip_model, unit(features), text)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    source = torch.tensor(trainer.image_features.of_split(trainer.source_loader, "train"))
    with torch.no_grad():
        torch.testing.assert_close(trainer.model.source_context, trainer.model(source).mean(dim=0), atol=1e-6, rtol=0)

    paths = sorted((image_folder / "red").rglob("*.png"))
    predictor = Predictor(folder)
    alone = [dict(predictor([path])[0]) for path in paths]
    for one, other in zip(alone, predictor(paths), strict=True):
        assert one == pytest.approx(dict(other), abs=1e-5)


@pytest.mark.parametrize(("trainer", "matters"), [("DPL", True), ("CoOp", False)])
def test_test_batch_size_is_a_setting_of_methods_that_depend_on_it(build, trainer, matters):
    found = [build(trainer, "DATALOADER.TEST.BATCH_SIZE", size).run_settings() for size in ("100", "7")]
    assert (found[0] != found[1]) == matters


def test_dpl_with_batch_size_1_is_an_error(expect_error):
    message = expect_error("DPL", "red", "DATALOADER.TRAIN_X.BATCH_SIZE", "1")
    assert "BATCH_SIZE is 1" in message and "mean over the images of a batch" in message


def test_dpspg_labels_of_one_sign_are_an_error(finish_run, expect_error, tmp_path):
    finish_run("DPSPG")
    for path in (tmp_path / "prompt_labels/neg").rglob("*.pt"):
        path.unlink()
    message = expect_error("DPSPG_TRANSFORMER", "red", flags=["--output-dir", "b"])
    assert "prompt label of source domain blue is missing: no prompt_labels/neg" in message
    assert "DPSPG_CoOp" in message and "TRAINER.DPSPG.LABEL_DIR" in message
    message = expect_error("DPSPG", "red", flags=["--output-dir", "c"])
    assert "label of blue is there for one sign alone: prompt_labels/pos" in message and "or delete the one" in message


def test_dpspg_published_labels_of_one_sign_are_not_overwritten(finish_run, expect_error, tmp_path):
    finish_run("DPSPG")
    (positive,) = (tmp_path / "prompt_labels/pos").rglob("blue.pt")
    (negative,) = (tmp_path / "prompt_labels/neg").rglob("blue.pt")
    positive.unlink()
    theirs = negative.rename(negative.with_name("stripes_CoOp_blue.pt"))
    message = expect_error("DPSPG", "red", flags=["--output-dir", "b"])
    assert (
        f"for one sign alone: {theirs.relative_to(tmp_path)}, and no prompt_labels/pos" in message and theirs.is_file()
    )


def test_dpspg_resumes_after_one_of_two_labels(finish_run, train, tmp_path, capsys):
    finish_run("DPSPG")
    (path,) = (tmp_path / "prompt_labels/pos").rglob("blue.pt")
    path.unlink()
    capsys.readouterr()
    assert train("DPSPG", "red", flags=["--output-dir", "b"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("Stage I: learning the prompt label of blue") == 1 == printed.count("Stage I: learning")


def test_dpspg_stops_early(train, tmp_path):
    assert train("DPSPG", "red", "OPTIM.MAX_EPOCH", "4", "TRAINER.DPSPG.EARLY", "2") == 0
    assert len(json.loads((tmp_path / "run/results.json").read_text())["val_history"]) == 2


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_dpspg_selects_late_epochs_alone(train, tmp_path):
    opts = "OPTIM.MAX_EPOCH", "4", "TRAINER.DPSPG.LATE", "2"
    assert train("DPSPG", "red", *opts) == 0
    found = results_of(tmp_path / "run")
    later = found["val_history"][2:]
    assert found["best_epoch"] == 3 + later.index(max(later)) and found["val_accuracy"] == max(later)
    # Not where it is not meant for the target.
    opts = *opts, "TRAINER.DPSPG.LATE_TARGETS", "['blue']"
    assert train("DPSPG", "red", *opts, flags=["--output-dir", "b"]) == 0
    found = results_of(tmp_path / "b")
    assert found["best_epoch"] == 1 + found["val_history"].index(max(found["val_history"]))
    opts = "OPTIM.MAX_EPOCH", "4", "TRAINER.DPSPG.EARLY", "1", "TRAINER.DPSPG.EARLY_TARGETS", "['red']"
    assert train("DPSPG", "red", *opts, flags=["--output-dir", "c"]) == 0
    assert len(results_of(tmp_path / "c")["val_history"]) == 1


@pytest.mark.parametrize("stopped_after", [1, 3])
def test_dpspg_run_with_late_epochs_resumes(train, tmp_path, monkeypatch, capsys, stopped_after):
    from trainers.dpspg import DPSPG_TRANSFORMER

    opts = "OPTIM.MAX_EPOCH", "4", "TRAINER.DPSPG.LATE", "2"
    assert train("DPSPG", "red", *opts, flags=["--output-dir", "whole"]) == 0
    before_epoch = DPSPG_TRANSFORMER.before_epoch

    def stop(self):
        if self.epoch == stopped_after:
            raise KeyboardInterrupt
        before_epoch(self)

    monkeypatch.setattr(DPSPG_TRANSFORMER, "before_epoch", stop)
    assert train("DPSPG", "red", *opts) == 130
    monkeypatch.setattr(DPSPG_TRANSFORMER, "before_epoch", before_epoch)
    assert train("DPSPG", "red", *opts) == 0
    assert f"Resuming after epoch {stopped_after}" in capsys.readouterr().out
    expected, found = results_of(tmp_path / "whole"), results_of(tmp_path / "run")
    for key in ("accuracy", "best_epoch", "val_history", "loss_history"):
        assert found[key] == expected[key], key


def test_dpspg_accepts_batch_size_1(finish_run, train, tmp_path, image_folder):
    """A sequence of one token, whatever the batch."""
    assert train("DPSPG", "red", "DATALOADER.TRAIN_X.BATCH_SIZE", "1", "OPTIM.MAX_EPOCH", "1") == 0
    predictor = Predictor(tmp_path / "run")
    paths = sorted((image_folder / "red").rglob("*.png"))
    for path, expected in zip(paths, predictor(paths), strict=True):
        assert dict(predictor([path])[0]) == pytest.approx(dict(expected), abs=1e-5)


def long_name(n_tokens, folder, image_folder):
    """A copy of the 30 images with a class name of the given number of tokens, full stop included."""
    words = " ".join("abcdefgh"[i % 8] for i in range(n_tokens - 1))
    shutil.copytree(image_folder, folder, ignore=shutil.ignore_patterns("spg_coop_splits"))
    for domain in ("blue", "green", "red"):
        (folder / domain / "down").rename(folder / domain / words)
    return words


@pytest.mark.parametrize("trainer", [each.trainer for each in METHODS if each.trainer != "LinearProbe"])
def test_too_long_class_name_is_an_error(trainer, expect_error, tmp_path, image_folder):
    name = long_name(76, tmp_path / "data", image_folder)
    one_source = ["--source-domains", "blue"] if trainer.endswith("SPG_CoOp") else []
    output = expect_error(trainer, "red", flags=["--root", str(tmp_path / "data"), *one_source])
    assert f"Class name '{name}" in output and "left of 77. Shorten the name" in output


def test_too_long_class_name_for_a_template_is_an_error(expect_error, tmp_path, image_folder):
    long_name(70, tmp_path / "data", image_folder)  # fits behind the learned context
    assert "left of 77. Shorten the name" in expect_error("PromptSRC", "red", flags=["--root", str(tmp_path / "data")])


def test_ep10_configs_differ_from_defaults_in_epochs_alone():
    for path in (REPOSITORY / "configs/trainers").glob("*/ep10.yaml"):
        found, expected = (yaml.safe_load(one.read_text()) for one in (path, path.with_name("default.yaml")))
        assert (found["OPTIM"]["MAX_EPOCH"], expected["OPTIM"]["MAX_EPOCH"]) == (10, 50)
        expected["OPTIM"]["MAX_EPOCH"] = 10
        if "PROMPTSRC" in expected["TRAINER"]:
            expected["TRAINER"]["PROMPTSRC"] |= {"GPA_MEAN": 6.0, "GPA_STD": 10.0}
        assert found == expected


@pytest.mark.parametrize("config", ["default", "ep10"])
@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ("MaPLe", {"TRAINER.MAPLE.PROMPT_DEPTH": 3}),
        ("PromptSRC", {"TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT": 3, "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION": 5}),
    ],
)
def test_compared_depths_fit_a_clip_of_fewer_layers(trainer, expected, config):
    cfg = default_cfg()
    cfg.merge_from_file(str(REPOSITORY / f"configs/trainers/{trainer}/{config}.yaml"))
    cfg.TRAINER.NAME = trainer

    def depths(layers, vision):
        backbone = Backbone(tiny_clip(layers=layers, vision=vision), "tiny", "fp32", torch.device("cpu"))
        built = TRAINER_REGISTRY.get(trainer)(cfg, backbone, classnames=["cat", "dog"], is_rebuilt=True)
        return {key: value_of(built.cfg, key) for key in expected}

    assert depths(3, 5) == expected
    published = {"TRAINER.MAPLE.PROMPT_DEPTH": 12, "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT": 9}
    assert all(value == published.get(key, value) for key, value in depths(12, 12).items())
