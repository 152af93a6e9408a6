"""Settings, files and resumes of single methods; tests/contracts/test_numbers.py checks their numbers."""

import json

import pytest
import torch

from trainers.predictor import Predictor
from trainers.saved_run import build_run


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(
    ("trainer", "key", "value", "expected"),
    [
        ("MaPLe", "MAPLE.PROMPT_DEPTH", "13", "PROMPT_DEPTH is 13, but the text tower of "),
        ("VPT", "VPT.PROMPT_DEPTH_VISION", "13", "Set TRAINER.VPT.PROMPT_DEPTH_VISION 12."),
        ("DPSPG", "DPSPG.LATE_TARGETS", "['violet']", "DPSPG.LATE_TARGETS names violet, which FolderDG does"),
        ("DPSPG", "DPSPG.LATE", "2", "LATE is 2, so validation selects later epochs, but the last"),
        ("VP", "VP.PROMPT_SIZE", "33", "With TRAINER.VP.METHOD random, set it to 1 to 32"),
    ],
)
def test_settings_that_do_not_fit_backbone_or_data_are_errors(expect_error, trainer, key, value, expected):
    message = expect_error(trainer, "red", f"TRAINER.{key}", value)
    assert expected in message and message.count("\n") == 1


def test_vit_method_on_a_resnet_is_an_error(expect_error, clip_file):
    message = expect_error("VPT", "red", flags=["--backbone", str(clip_file)])
    assert "must be a ViT" in message and "ViT-B/16" in message and "vp" in message


def test_maple_projections_start_equal_and_separate(build):
    start = build("MaPLe", "TRAINER.MAPLE.PROMPT_DEPTH", "3").model
    first, second = (layer.weight for layer in start.compound_prompt_projections)
    assert first is not second and torch.equal(first, second) and not torch.equal(first, start.proj.weight)


# ---- DPL: predictions depend on the batch ----


def test_dpl_with_xavier_starts_from_its_weights(build):
    layer = build("DPL", "TRAINER.DPL.XAVIER", "True").model.input
    assert (layer.bias == 0.01).all() and layer.weight.abs().max() <= (6 / (32 + 512)) ** 0.5


def test_dpl_predicts_with_the_mean_context_of_the_source_images(finish_run, image_folder):
    folder = finish_run("DPL")
    trainer = build_run(folder, with_data=True)
    source = torch.tensor(trainer.image_features.of_split(trainer.source_loader, "train"))
    with torch.no_grad():
        torch.testing.assert_close(trainer.model.source_context, trainer.model(source).mean(dim=0), atol=1e-6, rtol=0)
    paths, predictor = sorted((image_folder / "red").rglob("*.png")), Predictor(folder)
    for path, expected in zip(paths[:3], predictor(paths), strict=False):
        assert dict(predictor([path])[0]) == pytest.approx(dict(expected), abs=1e-5)


@pytest.mark.parametrize(("trainer", "matters"), [("DPL", True), ("CoOp", False)])
def test_test_batch_size_is_a_setting_of_methods_that_depend_on_it(build, trainer, matters):
    found = [build(trainer, "DATALOADER.TEST.BATCH_SIZE", size).run_settings() for size in ("100", "7")]
    assert (found[0] != found[1]) == matters


# ---- DPSPG: labels of two signs, early and late epochs ----


def test_dpspg_labels_of_one_sign_are_learned_or_an_error(finish_run, train, expect_error, tmp_path, capsys):
    finish_run("DPSPG")
    (positive,) = (tmp_path / "prompt_labels/pos").rglob("blue.pt")
    (negative,) = (tmp_path / "prompt_labels/neg").rglob("blue.pt")
    ctx = torch.load(positive, weights_only=True)["ctx"]
    capsys.readouterr()
    positive.unlink()  # a run that was killed between its two labels leaves the negative one
    assert train("DPSPG", "red", flags=["--output-dir", "b"]) == 0
    assert capsys.readouterr().out.count("Stage I: learning the prompt label of ") == 1
    assert torch.equal(torch.load(positive, weights_only=True)["ctx"], ctx)

    positive.unlink()
    published = negative.rename(negative.with_name("stripes_CoOp_blue.pt"))
    message = expect_error("DPSPG", "red", flags=["--output-dir", "c"])
    assert f"for one sign alone: {published.relative_to(tmp_path)}, and no prompt_labels/pos" in message
    assert published.is_file()
    published.unlink()
    message = expect_error("DPSPG_TRANSFORMER", "red", flags=["--output-dir", "d"])
    assert "prompt label of source domain blue is missing: no prompt_labels/neg" in message


def test_dpspg_selects_late_epochs_alone_also_after_a_resume(train, tmp_path, monkeypatch, capsys):
    from trainers.dpspg import DPSPG_TRANSFORMER

    opts = "OPTIM.MAX_EPOCH", "4", "TRAINER.DPSPG.LATE", "2"
    assert train("DPSPG", "red", *opts) == 0
    found = results(tmp_path / "run")
    later = found["val_history"][2:]
    assert found["best_epoch"] == 3 + later.index(max(later)) and found["val_accuracy"] == max(later)
    before_epoch = DPSPG_TRANSFORMER.before_epoch

    def stop(self):
        if self.epoch == 3:
            raise KeyboardInterrupt
        before_epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(DPSPG_TRANSFORMER, "before_epoch", stop)
        assert train("DPSPG", "red", *opts, flags=["--output-dir", "cut"]) == 130
    assert train("DPSPG", "red", *opts, flags=["--output-dir", "cut"]) == 0
    assert "Resuming after epoch 3" in capsys.readouterr().out
    resumed = results(tmp_path / "cut")
    for key in ("accuracy", "best_epoch", "val_history", "loss_history"):
        assert resumed[key] == found[key], key


def test_dpspg_early_and_late_epochs_are_for_their_targets_alone(train, tmp_path):
    late = "OPTIM.MAX_EPOCH", "3", "TRAINER.DPSPG.LATE", "2", "TRAINER.DPSPG.LATE_TARGETS", "['blue']"
    assert train("DPSPG", "red", *late) == 0
    found = results(tmp_path / "run")
    assert found["best_epoch"] == 1 + found["val_history"].index(max(found["val_history"]))
    early = "OPTIM.MAX_EPOCH", "3", "TRAINER.DPSPG.EARLY", "1", "TRAINER.DPSPG.EARLY_TARGETS", "['red']"
    assert train("DPSPG", "red", *early, flags=["--output-dir", "b"]) == 0
    assert len(results(tmp_path / "b")["val_history"]) == 1
