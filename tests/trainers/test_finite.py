"""NaN and infinity: the run stops with one message and saves no such number."""

import shutil

import numpy as np
import pytest
import torch
from dassl.engine import TRAINER_REGISTRY

import predict
import trainers.all  # noqa: F401 (registers trainers)
from common.errors import UserError
from common.image_results import read_predictions
from common.run import RunRecord, read_run_record
from trainers.base.image_features import ImageFeatures
from trainers.modules.prompt_labels import save_prompt_label

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def stopped(expect_error, tmp_path):
    """Run, expect one message about numbers that are not finite and no results; return the message."""

    def run(trainer, *opts):
        message = expect_error(trainer, "red", *opts)
        assert "not finite" in message and message.count("\n") == 1
        assert not list(tmp_path.rglob("results.json")) + list(tmp_path.rglob("predictions.csv"))
        return message

    return run


# ---- training ----


@pytest.mark.parametrize(("trainer", "final_model"), [("CoOp", "best_val"), ("SPG", "last_step")])
def test_epoch_with_a_broken_last_step_is_not_saved(trainer, final_model, stopped, tmp_path, monkeypatch):
    cls = TRAINER_REGISTRY.get(trainer)
    update = cls.model_update

    def break_it(self, names=None):
        update(self, names)
        last = self.epoch == 1 and self.batch_idx + 1 == self.num_batches and names in (None, "generator")
        if type(self) is cls and last:
            next(self._models[self.get_model_names()[0]].parameters()).data.view(-1)[0] = INF

    monkeypatch.setattr(cls, "model_update", break_it)
    message = stopped(trainer, "TEST.FINAL_MODEL", final_model)
    assert " after epoch 2 of 2: 1 of the " in message and "OPTIM.LR" in message
    assert "The checkpoint of epoch 1 remains." in message
    names = {"model.pth.tar-1", *(["model-best.pth.tar"] if final_model == "best_val" else [])}
    assert {path.name for path in (tmp_path / "run").glob("*/model*")} == names
    assert len(read_run_record(tmp_path / "run").history) == 1


@pytest.mark.parametrize(("trainer", "value"), [("CoOp", NAN), ("SPG", INF), ("LinearProbe", NAN)])
def test_logits_that_are_not_finite_name_split_and_domains(trainer, value, stopped, monkeypatch):
    cls = TRAINER_REGISTRY.get(trainer)
    classifier = cls.classifier

    def broken(self):
        classify = classifier(self)
        return lambda features, indices: classify(features, indices).index_fill(1, torch.tensor([1]), value)

    monkeypatch.setattr(cls, "classifier", broken)
    message = stopped(trainer)
    assert "The logits of images 1 to " in message and " of the val split (blue, green) after epoch 1" in message


@pytest.mark.parametrize("trainer", ["CoOp", "VP"])  # features that are cached, and features of a learned tower
def test_image_features_that_are_not_finite_are_not_cached(trainer, stopped, monkeypatch, tmp_path):
    encode = ImageFeatures.encode

    def broken(self, images, indices=None):
        features = encode(self, images, indices)
        return features if torch.is_grad_enabled() else torch.cat([features[:-1], INF * features[-1:]])

    monkeypatch.setattr(ImageFeatures, "encode", broken)
    assert "The image features of " in stopped(trainer)
    assert not list(tmp_path.rglob("*.npy"))


# ---- files ----


def test_files_of_results_with_a_number_that_is_not_finite_are_neither_written_nor_read(tmp_path, finish_run):
    with pytest.raises(UserError, match="1 of the 2 numbers of ctx are not finite"):
        save_prompt_label(tmp_path / "photo.pt", torch.tensor([[0.0, NAN]]), {})
    with pytest.raises(UserError, match=r"run\.json is not written, since a number is not finite"):
        RunRecord({}, history=[{"losses": {"loss": NAN}}]).write(tmp_path)
    assert not list(tmp_path.iterdir())
    path = finish_run("ZeroshotCLIP") / "predictions.csv"
    path.write_text(path.read_text().rstrip().rpartition(",")[0] + ",nan\n")
    with pytest.raises(UserError, match="holds no predictions: .* not finite"):
        read_predictions(path)


def test_probe_of_a_class_without_training_images_has_minus_infinity(train, images, tmp_path):
    for domain in ("blue", "green"):
        (images / domain / "spiral").mkdir()
    shutil.copytree(images / "red/down", images / "red/spiral")
    root = ["--root", str(images)]
    assert train("LinearProbe", "red", flags=root) == 0
    assert (np.load(tmp_path / "run/logits.npy")[:, 2] == -INF).all()
    assert train("LinearProbe", "red", flags=[*root, "--eval-only", "--model-dir", "run", "--output-dir", "c"]) == 0
    assert predict.main(["--model-dir", "run", str(images / "red/down/0.png")]) == 0


# ---- checks ----
