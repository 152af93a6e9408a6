"""The methods that SPG is compared with, each in a real run on the 30 images."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import yaml
from dassl.config import get_cfg_default
from quick_run import REPOSITORY
from reference import tiny_clip
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from common.errors import UserError
from common.image_results import read_predictions
from trainers.config import extend_cfg
from trainers.linear_probe import SOLVER, linear_map
from trainers.methods import METHODS, find_method
from trainers.predictor import Predictor
from trainers.saved_run import build_run

COMPARED = [method.trainer for method in METHODS if method.compared]
LEARNING = [method.trainer for method in METHODS if method.compared and method.learns]


def own_config(trainer, name="default"):
    folder = REPOSITORY / "configs/trainers" / find_method(trainer).config_folder
    return ["--config-file", str(folder / f"{name}.yaml")]


def selects(trainer):
    """TEST.FINAL_MODEL of a trainer's default config."""
    config = yaml.safe_load(Path(own_config(trainer)[1]).read_text())
    return config.get("TEST", {}).get("FINAL_MODEL", "last_step")


def final_models(trainer, folder):
    """The tested checkpoints of a run of two epochs."""
    return sorted(folder.glob("*/model-best.pth.tar" if selects(trainer) == "best_val" else "*/model.pth.tar-2"))


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("trainer", COMPARED)
def test_baseline_run_writes_all_files(train, tmp_path, image_folder, trainer):
    assert train(trainer, "red", flags=own_config(trainer)) == 0
    found = results(tmp_path / "run")
    assert (found["trainer"], found["config"], found["protocol"]) == (trainer, "default", "multi-source")
    assert (found["source_domains"], found["target_domains"]) == (["blue", "green"], ["red"])
    rows = read_predictions(tmp_path / "run" / "predictions.csv")
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert len(rows) == found["n_test"] == 10
    assert found["accuracy"] == pytest.approx(10 * right)
    if trainer not in LEARNING:
        assert found["selection"] is found["val_accuracy"] is None
    else:
        assert found["selection"] == selects(trainer) and final_models(trainer, tmp_path / "run")
        best = max(found["val_history"]) if selects(trainer) == "best_val" else None
        assert found["val_accuracy"] == best

    flags = [*own_config(trainer), "--eval-only", "--model-dir", "run", "--output-dir", "tested"]
    assert train(trainer, "red", flags=flags) == 0
    tested = results(tmp_path / "tested")
    assert (tested["accuracy"], tested["macro_f1"]) == (found["accuracy"], found["macro_f1"])
    assert (tmp_path / "tested/predictions.csv").read_text() == (tmp_path / "run/predictions.csv").read_text()

    (found,) = Predictor(tmp_path / "run")([image_folder / "red" / "down" / "0.png"])
    row = next(row for row in rows if row["path"].endswith("red/down/0.png"))
    assert sum(probability for _, probability in found) == pytest.approx(1)
    if not find_method(trainer).depends_on:  # else on something that a single image has otherwise
        assert found[0] == (row["prediction"], pytest.approx(row["confidence"], abs=1e-3))


@pytest.mark.parametrize("trainer", LEARNING)
def test_baseline_repeated_command_gives_equal_model(train, tmp_path, trainer):
    states = []
    for name in ("a", "b"):
        assert train(trainer, "red", flags=[*own_config(trainer), "--output-dir", name]) == 0
        paths = final_models(trainer, tmp_path / name)
        states.append([torch.load(path, weights_only=True)["state_dict"] for path in paths])
    for state, other in zip(*states, strict=True):
        for key, value in state.items():
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]


# ---- settings of CoOp and CoCoOp ----


@pytest.mark.parametrize("csc", ["False", "True"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_class_token_positions_and_class_specific_contexts(train, tmp_path, position, csc):
    opts = ["TRAINER.COOP.CLASS_TOKEN_POSITION", position, "TRAINER.COOP.CSC", csc]
    opts += ["TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", "3"]
    assert train("CoOp", "red", *opts, "OPTIM.MAX_EPOCH", "1") == 0
    saved = torch.load(tmp_path / "run/prompt_learner/model.pth.tar-1", weights_only=True)["state_dict"]
    assert saved["ctx"].shape == ((2, 3, 64) if csc == "True" else (3, 64))
    assert {"accuracy", "val_accuracy"} <= set(results(tmp_path / "run"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "amp"])
@pytest.mark.parametrize("trainer", ["CoOp", "CoCoOp", "LinearProbe", "ZeroshotCLIP2"])
def test_every_precision_runs_on_a_cpu(train, tmp_path, capsys, trainer, precision):
    node = {"CoOp": "COOP", "CoCoOp": "COCOOP", "LinearProbe": "LINEAR_PROBE", "ZeroshotCLIP2": "COOP"}[trainer]
    assert train(trainer, "red", f"TRAINER.{node}.PREC", precision, "OPTIM.MAX_EPOCH", "1") == 0
    assert results(tmp_path / "run")["precision"] == "fp32"
    assert (f"Precision {precision} needs a GPU" in capsys.readouterr().out) == (precision != "fp32")


def test_coop_and_cocoop_configs_are_accepted():
    paths = [path for name in ("CoOp", "CoCoOp") for path in (REPOSITORY / "configs/trainers" / name).glob("*.yaml")]
    names = {path.stem for path in paths}
    assert {"rn50", "rn50_ep50", "rn50_ep50_ctxv1", "vit_b16", "vit_b16_ep50", "vit_b16_ctxv1"} <= names
    assert {f"vit_b16_c{n}_ep10_batch1" for n in (4, 8, 16)} | {"vit_b16_c4_ep10_batch1_ctxv1"} <= names
    backbones = {"rn50": "RN50", "rn101": "RN101", "vit_b16": "ViT-B/16", "vit_b32": "ViT-B/32"}
    for path in paths:
        cfg = get_cfg_default()
        extend_cfg(cfg)
        cfg.merge_from_file(str(path))
        words = path.stem.split("_")
        assert (cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.LR_SCHEDULER) == ("sgd", 0.002, "cosine"), path
        warmup = cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.WARMUP_TYPE, cfg.OPTIM.WARMUP_CONS_LR
        assert warmup == (1, "constant", 1e-5), path
        if words[0] in ("rn50", "rn101", "vit"):  # names of CoOp's own configs
            epochs = [int(word[2:]) for word in words if word.startswith("ep")]
            assert (epochs or [200]) == [cfg.OPTIM.MAX_EPOCH], path
            assert next(b for n, b in backbones.items() if path.stem.startswith(n)) == cfg.MODEL.BACKBONE.NAME
            node = cfg.TRAINER[path.parent.name.upper()]
            assert ("a photo of a" if "ctxv1" in words else "") == node.CTX_INIT, path
            context = [int(word[1:]) for word in words if word[0] == "c" and word[1:].isdigit()]
            assert (context or [16]) == [node.N_CTX], path
            assert (1 if "batch1" in words else 32) == cfg.DATALOADER.TRAIN_X.BATCH_SIZE, path
            assert cfg.TEST.FINAL_MODEL == "last_step", path


@pytest.mark.parametrize(("trainer", "name"), [("CoOp", "rn50_ep50_ctxv1"), ("CoCoOp", "vit_b16_c4_ep10_batch1")])
def test_backbone_flag_overrides_the_config(train, tmp_path, trainer, name):
    opts = ["OPTIM.MAX_EPOCH", "1"]
    assert train(trainer, "red", *opts, flags=own_config(trainer, name)) == 0
    found = results(tmp_path / "run")
    assert (found["backbone"], found["config"], found["selection"]) == ("tiny", name, "last_step")


# ---- zero-shot ----


@pytest.mark.parametrize(
    ("trainer", "templates"), [("ZeroshotCLIP", (reference.TEMPLATE,)), ("ZeroshotCLIP2", reference.ENSEMBLE)]
)
def test_zero_shot_takes_any_class_name(finish_run, tmp_path, trainer, templates):
    finish_run(trainer)
    names = ["dog", "guinea_pig", "St._Basil's", "24 o'clock!"]
    found = build_run(tmp_path / "run", classnames=names).text_features(None, None)
    expected = sum(reference.fixed_text_features(tiny_clip(), names, template) for template in templates)
    torch.testing.assert_close(found, reference.unit(expected), atol=1e-5, rtol=0)


# ---- linear probe ----


def test_linear_probe_equals_scikit_learn_with_the_best_c_on_val(train, tmp_path):
    flags = own_config("LinearProbe", "mini_digits")
    assert train("LinearProbe", "red", "TRAINER.LINEAR_PROBE.C", "(10, 0.1, 1000)", flags=flags) == 0
    trainer = build_run(tmp_path / "run", with_data=True)
    dataset = trainer.dm.dataset

    def encoded(items):
        images = torch.stack([trainer.val_loader.dataset.transform(_open(item.impath)) for item in items])
        return trainer.image_features.encode(images).double().numpy(), [item.label for item in items]

    scores, models = {}, {}
    for c in (0.1, 10, 1000):
        models[c] = LogisticRegression(C=c, max_iter=1000).fit(*encoded(dataset.train_x))
        x, y = encoded(dataset.val)
        scores[c] = models[c].score(x, y), -log_loss(y, models[c].predict_proba(x))
    best = max(scores, key=scores.get)  # of several with the same accuracy, that with the lowest loss
    assert f"C {best:g} is the best on" in (tmp_path / "run" / "log.txt").read_text()
    assert results(tmp_path / "run")["val_accuracy"] == pytest.approx(100 * scores[best][0])
    x, _ = encoded(dataset.test)
    ours = trainer.predict(torch.from_numpy(x).float(), range(len(x))).softmax(dim=-1)
    np.testing.assert_allclose(ours.detach().numpy(), models[best].predict_proba(x), atol=1e-3)


def test_linear_probe_search_halves_steps_around_the_best_c(train, tmp_path, capsys):
    opts = "TRAINER.LINEAR_PROBE.C", "(0.01, 1, 100)", "TRAINER.LINEAR_PROBE.HALVINGS", "2"
    assert train("LinearProbe", "red", *opts, flags=own_config("LinearProbe", "mini_digits")) == 0
    output = capsys.readouterr().out
    tried = [float(c) for c in re.findall(r"^C (\S+): .* on val", output, re.MULTILINE)]
    best = float(re.search(r"^C (\S+) is the best", output, re.MULTILINE)[1])
    # Steps of a decade, then of half a decade, from the best C so far. An end has one neighbour.
    assert tried[:3] == [0.01, 1, 100] and len(tried) in (5, 6, 7)
    assert min(abs(np.log10(c / best)) for c in tried if c != pytest.approx(best)) == pytest.approx(0.5)


def test_linear_probe_each_c_converges():
    """Also a weak penalty, where the solver starts close to the optimum."""
    rng = np.random.default_rng(0)
    y = np.arange(400) % 7
    x = 0.5 * rng.normal(size=(7, 64))[y] + 2 * rng.normal(size=(400, 64))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    regression = LogisticRegression(**SOLVER)
    for c in (1, 100, 1000, 10000):
        regression.set_params(C=c).fit(x, y)
        alone = LogisticRegression(C=c, tol=1e-8, max_iter=10000).fit(x, y)
        np.testing.assert_allclose(regression.predict_proba(x), alone.predict_proba(x), atol=2e-3)


def _open(path):
    from dassl.utils import read_image

    return read_image(path)


@pytest.mark.parametrize("classes", [(0, 1), (0, 2, 3), (1, 3)])
def test_linear_probe_never_predicts_a_class_without_images(classes):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)), np.array(classes)[np.arange(60) % len(classes)]
    regression = LogisticRegression(C=10).fit(x, y)
    weight, bias = linear_map(regression, n_classes=4)
    probabilities = torch.nn.functional.linear(torch.from_numpy(x), weight, bias).softmax(dim=-1).numpy()
    np.testing.assert_allclose(probabilities[:, list(classes)], regression.predict_proba(x), atol=1e-9)
    others = [c for c in range(4) if c not in classes]
    assert (probabilities[:, others] == 0).all()


def test_linear_probe_sees_neither_target_nor_augmented_images(train, opened, tmp_path):
    own = own_config("LinearProbe", "mini_digits")
    flags = [*own, "--no-feature-cache", "--transforms", "random_resized_crop", "normalize"]
    assert train("LinearProbe", "red", "TRAINER.FEATURES.TRAIN_VIEWS", "3", flags=flags) == 0
    paths = [path for path, _ in opened]
    assert len(paths) == len(set(paths)) == 30  # each image once
    assert ["/red/" in path for path in paths] == [False] * 20 + [True] * 10
    assert opened[20][1]  # C has been chosen by then
    accuracy = results(tmp_path / "run")["accuracy"]
    flags = [*own, "--transforms", "random_flip", "normalize", "--output-dir", "b"]
    assert train("LinearProbe", "red", "DATALOADER.TRAIN_X.BATCH_SIZE", "3", flags=[*flags, "--seed", "1"]) == 0
    assert results(tmp_path / "b")["accuracy"] == accuracy


def test_linear_probe_of_comparison_fits_one_unnormalised_augmented_view(train, tmp_path):
    """The seed selects the view. Batch size and workers do not matter."""
    assert train("LinearProbe", "red") == 0
    trainer = build_run(tmp_path / "run", with_data=True)
    items, dataset = trainer.train_loader_x.dataset, trainer.dm.dataset
    with torch.no_grad():
        looks = torch.stack([items[0, 0, index]["img"] for index in range(len(items))])
        x = trainer.clip_model.encode_image(looks).double().numpy()
        test = torch.stack([trainer.test_loader.dataset.transform(_open(item.impath)) for item in dataset.test])
        features = trainer.image_features.encode(test)
        torch.testing.assert_close(features, trainer.clip_model.encode_image(test))
    expected = LogisticRegression(C=0.316, max_iter=1000).fit(x, [item.label for item in dataset.train_x])
    found = trainer.predict(features, range(len(features))).softmax(dim=-1)
    np.testing.assert_allclose(found.numpy(), expected.predict_proba(features.double().numpy()), atol=1e-3)
    opts = "DATALOADER.TEST.BATCH_SIZE", "3", "DATALOADER.NUM_WORKERS", "2"
    assert train("LinearProbe", "red", *opts, flags=["--output-dir", "b"]) == 0
    assert train("LinearProbe", "red", flags=["--output-dir", "c", "--seed", "2"]) == 0
    weights = [
        torch.load(tmp_path / name / "linear_probe/model-best.pth.tar", weights_only=True)["state_dict"]["weight"]
        for name in ("run", "b", "c")
    ]
    size = weights[0].abs().max()
    assert (weights[0] - weights[1]).abs().max() < 1e-3 * size < 0.1 * size < (weights[0] - weights[2]).abs().max()


def test_linear_probe_interrupted_restarts_and_finished_is_skipped(train, tmp_path, monkeypatch, capsys):
    from trainers.linear_probe import LinearProbe

    assert train("LinearProbe", "red", flags=["--output-dir", "whole"]) == 0
    fit_all = LinearProbe.fit_all
    monkeypatch.setattr(LinearProbe, "fit_all", _interrupted)
    assert train("LinearProbe", "red") == 130
    monkeypatch.setattr(LinearProbe, "fit_all", fit_all)
    assert train("LinearProbe", "red") == 0
    assert results(tmp_path / "run")["accuracy"] == results(tmp_path / "whole")["accuracy"]
    # Killed between the fit and the test: the classifier is not fitted again.
    (tmp_path / "run" / "results.json").unlink()
    monkeypatch.setattr(LinearProbe, "fit_all", _interrupted)
    assert train("LinearProbe", "red") == 0
    assert results(tmp_path / "run")["accuracy"] == results(tmp_path / "whole")["accuracy"]
    capsys.readouterr()
    assert train("LinearProbe", "red") == 0
    assert "holds a finished run" in capsys.readouterr().out


def _interrupted(self):
    raise KeyboardInterrupt


def test_linear_probe_with_wrong_settings_is_an_error(expect_error):
    key = "TRAINER.LINEAR_PROBE.C"
    assert "TRAINER.LINEAR_PROBE.C is ()" in expect_error("LinearProbe", "red", key, "()")
    assert "(1, -2); accepted: numbers greater than 0" in expect_error("LinearProbe", "red", key, "(1, -2)")
    assert "('a',); accepted" in expect_error("LinearProbe", "red", key, "('a',)")
    assert key in expect_error("LinearProbe", "red", key, "0.5")
    message = expect_error("LinearProbe", "red", "TEST.FINAL_MODEL", "last_step")
    assert "is 'last_step'; accepted by LinearProbe: best_val." in message
    assert "'fp8'; accepted: fp32" in expect_error("LinearProbe", "red", "TRAINER.LINEAR_PROBE.PREC", "fp8")


def test_linear_probe_with_other_class_names_is_an_error(finish_run, expect_error, tmp_path, image_folder):
    finish_run("LinearProbe")
    for names in (["cat", "dog"], ["across", "down", "slanted"], ["down", "across"]):
        with pytest.raises(UserError, match="knows only .* across, down, not " + ", ".join(names)):
            Predictor(tmp_path / "run", classnames=names)
    shutil.copytree(image_folder, tmp_path / "other", ignore=shutil.ignore_patterns("spg_coop_splits"))
    for domain in (tmp_path / "other").iterdir():
        (domain / "down").rename(domain / "zigzag")
    flags = ["--eval-only", "--model-dir", "run", "--output-dir", "b", "--root", "other"]
    assert "across, down, not across, zigzag" in expect_error("LinearProbe", "red", flags=flags)


def test_linear_probe_folder_without_model_is_an_error(expect_error, train, tmp_path):
    flags = ["--eval-only", "--model-dir", "nowhere"]
    assert "nowhere/linear_probe/model-best.pth.tar" in expect_error("LinearProbe", "red", flags=flags)
    folder = tmp_path / "theirs" / "linear_probe"
    folder.mkdir(parents=True)
    torch.save({"state_dict": torch.nn.Linear(16, 2).state_dict(), "epoch": 1}, folder / "model-best.pth.tar")
    flags = ["--eval-only", "--model-dir", "theirs"]
    assert "it holds weight (2, 16) where LinearProbe has weight (2, 32)" in expect_error(
        "LinearProbe", "red", flags=flags
    )


def test_linear_probe_on_one_class_is_an_error(expect_error, tmp_path, image_folder):
    shutil.copytree(image_folder, tmp_path / "own", ignore=shutil.ignore_patterns("spg_coop_splits"))
    for domain in ("blue", "green"):
        for path in (tmp_path / "own" / domain / "down").iterdir():
            path.unlink()
    assert "all of one class" in expect_error("LinearProbe", "red", flags=["--root", "own"])
