"""NaN and infinity, wherever a number leaves a network or comes from a file: the run stops and keeps nothing of it."""

import json
import shutil
import zlib

import numpy as np
import pytest
import torch
from dassl.engine import TRAINER_REGISTRY
from hypothesis import given
from hypothesis import strategies as st
from reference import tiny_clip

import predict
import trainers.all
from common.errors import UserError
from common.run.history import read_history, write_history
from common.run.predictions import read_logits, read_predictions, write_logits
from common.run.records import write_record
from common.run.results import read_results, write_results
from scripts.reporting.finished import find_results
from scripts.reporting.variability import measure
from trainers.base.evaluation import Predictions
from trainers.base.image_features import ImageFeatures
from trainers.methods import METHODS
from trainers.modules.clip.backbone import weights_sha256
from trainers.modules.features import FeatureCache
from trainers.modules.finite import all_finite, require_finite
from trainers.modules.prompt_labels import LabelOrigin, save_prompt_label
from trainers.saved_run import build_run

NAN, INF = float("nan"), float("inf")
TRAINERS = [method.trainer for method in METHODS]
LEARNING = [method.trainer for method in METHODS if method.learns]
STEPPING = [trainer for trainer in LEARNING if trainer != "LinearProbe"]
FLAGS = {trainer: ["--source-domains", "red"] for trainer in ("SPG_CoOp", "DPSPG_CoOp")}
LABELS = {"SPG_CGAN": [""], "DPSPG_TRANSFORMER": ["pos", "neg"]}  # that stage II alone needs: folders by sign
UNSELECTED = ("PromptSRC",)  # its model is a mean over the epochs: none is chosen on val


@pytest.fixture
def begin(train, tmp_path):
    """train(), with the flags that a trainer needs, and prompt labels for stage II alone."""

    def run(trainer, *opts, flags=()):
        for sign in LABELS.get(trainer, ()):
            labels = tmp_path / "prompt_labels" / sign / "stripes/tiny/seed_1"
            labels.mkdir(parents=True, exist_ok=True)
            for number, domain in enumerate(("blue", "green")):
                label = torch.randn(4, 64, generator=torch.Generator().manual_seed(number))
                torch.save(0.02 * label, labels / f"{domain}.pt")
        return train(trainer, "red", *opts, flags=[*FLAGS.get(trainer, ()), *flags])

    return run


@pytest.fixture
def stopped(begin, tmp_path, capsys):
    """Run, expect that it stops with one message, and that nothing that is not finite was written; the message."""

    def run(*args, **kwargs):
        capsys.readouterr()
        assert begin(*args, **kwargs) == 1
        message = capsys.readouterr().err
        assert message.startswith("Error: ") and message.count("\n") == 1 and "Traceback" not in message
        assert "not finite" in message
        assert not list(tmp_path.rglob("results.json")) + list(tmp_path.rglob("predictions.csv"))
        everything_is_finite(tmp_path)
        return message

    return run


def everything_is_finite(folder):
    for path in folder.rglob("*"):
        if path.suffix == ".npy":
            assert np.isfinite(np.load(path)).all(), path
        elif path.suffix == ".json":
            assert not {"NaN", "Infinity", "-Infinity"} & set(path.read_text().replace(",", " ").split()), path
        elif ".pth" in path.name or path.suffix == ".pt":
            require_finite(torch.load(path, weights_only=True), str(path), "", ("state_dict.bias",))


# ---- the two of a public report ----


def spoiled_clip(tmp_path, clip_file):
    state = torch.load(clip_file, weights_only=True)
    state["ln_final.weight"][5] = NAN
    torch.save(state, tmp_path / "broken.pt")
    return ["--backbone", str(tmp_path / "broken.pt")]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_backbone_with_one_weight_that_is_no_number(trainer, begin, clip_for, tmp_path, capsys):
    assert begin(trainer, flags=spoiled_clip(tmp_path, clip_for(trainer))) == 1
    message = capsys.readouterr().err
    assert "broken.pt: 1 of the 64 numbers of ln_final.weight are not finite" in message
    assert not (tmp_path / "run/results.json").exists() and not (tmp_path / "feature_cache").exists()


@pytest.mark.parametrize("final_model", ["best_val", "last_step"])
@pytest.mark.parametrize("trainer", STEPPING)
def test_the_last_step_of_an_epoch_breaks_the_model(trainer, final_model, stopped, tmp_path, monkeypatch):
    """A broken epoch is neither the best one nor kept at all."""
    cls = TRAINER_REGISTRY.get(trainer)
    update = cls.model_update

    def break_it(self, names=None):
        update(self, names)
        last = self.epoch == 1 and self.batch_idx + 1 == self.num_batches and names in (None, "generator")
        if type(self) is cls and last:
            for network in self._models.values():
                next(network.parameters()).data.view(-1)[0] = INF

    monkeypatch.setattr(cls, "model_update", break_it)
    message = stopped(trainer, "TEST.FINAL_MODEL", final_model)
    assert " after epoch 2 of 2: 1 of the " in message
    assert "most likely the learning rate is too high (OPTIM.LR, now " in message
    assert "The checkpoint of epoch 1 is kept. Changed settings need another --output-dir." in message
    kept = {"model.pth.tar-1", *(["model-best.pth.tar"] if final_model == "best_val" else [])}
    assert {path.name for path in (tmp_path / "run").glob("*/model*")} == kept
    assert len(read_history(tmp_path / "run", 1)) == 1 and read_history(tmp_path / "run", 2) is None


@pytest.mark.parametrize("final_model", ["best_val", "last_step"])
def test_a_learning_rate_that_breaks_coop_in_the_last_step_of_an_epoch(final_model, stopped, tmp_path):
    """Its context is finite yet, but too large for the text tower."""
    opts = ["OPTIM.LR", "1e38", "OPTIM.WARMUP_EPOCH", "-1", "OPTIM.MAX_EPOCH", "1", "TEST.FINAL_MODEL", final_model]
    message = stopped("CoOp", *opts, "DATALOADER.TRAIN_X.BATCH_SIZE", "16")  # one step an epoch
    what = (
        "to 4 of the val split (blue, green) after epoch 1" if final_model == "best_val" else "to 10 of the test split"
    )
    assert f"The logits of images 1 {what}" in message
    assert " are not finite, since the text features of every class are not. Most likely training broke" in message
    assert not list(tmp_path.rglob("model-best*"))


# ---- out of networks ----


def poisoned(value, one_class=False):
    """Has the logits of some images be `value`; of one class, or of all."""

    def poison(classifier):
        def classify(features, indices):
            logits = classifier(features, indices).clone()
            logits[-1, -1 if one_class else slice(None)] = value
            return logits

        return classify

    return poison


@pytest.mark.parametrize(("value", "one_class"), [(NAN, True), (INF, True), (-INF, False)])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_logits(trainer, value, one_class, stopped, monkeypatch):
    cls = TRAINER_REGISTRY.get(trainer)
    classifier = cls.classifier
    monkeypatch.setattr(cls, "classifier", lambda self: poisoned(value, one_class)(classifier(self)))
    message = stopped(trainer)
    chosen = trainer in LEARNING and trainer not in UNSELECTED
    split, domains = ("val", "blue, green") if chosen else ("test", "red")
    domains = "red" if trainer in FLAGS else domains
    assert "Error: The logits of images 1 to " in message and f" of the {split} split ({domains})" in message
    assert ("after epoch 1 are" in message) == (split == "val")
    assert ("(OPTIM.LR)" in message) == (trainer in LEARNING)


WITH_TEXTS = [
    trainer
    for trainer in TRAINERS
    if trainer != "LinearProbe" and not trainer.startswith("DPSPG")  # whose logits are of texts of both signs
]


@pytest.mark.parametrize("trainer", WITH_TEXTS)
def test_one_logit_of_minus_infinity_is_wrong_where_there_are_texts(trainer, stopped, monkeypatch):
    cls = TRAINER_REGISTRY.get(trainer)
    classifier = cls.classifier
    monkeypatch.setattr(cls, "classifier", lambda self: poisoned(-INF, one_class=True)(classifier(self)))
    assert "though image and text features are." in stopped(trainer)


@pytest.mark.parametrize("trainer", WITH_TEXTS)
def test_text_features_name_the_class(trainer, stopped, monkeypatch):
    cls = TRAINER_REGISTRY.get(trainer)
    text_features = cls.text_features

    def broken(self, *args, **kwargs):
        found = text_features(self, *args, **kwargs)
        # In training the loss would stop the run first.
        return found if torch.is_grad_enabled() else found * torch.tensor([[1.0], [NAN]])

    monkeypatch.setattr(cls, "text_features", broken)
    assert " are not finite, since the text features of down are not. " in stopped(trainer)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_image_features_are_named_and_not_cached(trainer, views, stopped, monkeypatch, tmp_path):
    learns = TRAINER_REGISTRY.get(trainer).IMAGE_TOWER_LEARNS
    encode, of_batch = ImageFeatures.encode, ImageFeatures.of_batch

    def broken(self, images, indices=None):
        features = encode(self, images, indices)
        if self.training:  # where the loss would stop the run first
            return features
        return torch.cat([features[:-1], INF * features[-1:]])

    def of_training(self, batch):
        self.training = True
        try:
            return of_batch(self, batch)
        finally:
            self.training = False

    monkeypatch.setattr(ImageFeatures, "training", False, raising=False)
    monkeypatch.setattr(ImageFeatures, "encode", broken)
    monkeypatch.setattr(ImageFeatures, "of_batch", of_training)
    message = stopped(trainer, *(["TRAINER.FEATURES.TRAIN_VIEWS", "2"] if views and not learns else []))
    assert "Error: The image features of " in message and " are not finite, among images 1 to " in message
    assert not list(tmp_path.rglob("*.npy"))


# ---- from files ----


def spoil(path, key=None, value=NAN):
    checkpoint = torch.load(path, weights_only=True)
    key = key or next(iter(checkpoint["state_dict"]))
    checkpoint["state_dict"][key].view(-1)[0] = value
    torch.save(checkpoint, path)
    return key


@pytest.mark.parametrize("trainer", LEARNING)
def test_checkpoints_to_classify_by(trainer, begin, tmp_path, image_folder, capsys):
    assert begin(trainer) == 0
    saved = sorted((tmp_path / "run").glob("*/model-best.pth.tar")) or sorted(
        (tmp_path / "run").glob("*/model.pth.tar-2")
    )
    best = next(path for path in saved if path.parent.name != "discriminator")
    key = spoil(best)
    capsys.readouterr()
    assert begin(trainer, flags=["--eval-only", "--model-dir", "run", "--output-dir", "b"]) == 1
    message = capsys.readouterr().err
    assert "run" in message and best.parent.name in message and f" numbers of {key} are not finite" in message
    assert not (tmp_path / "b/results.json").exists()
    assert predict.main(["--model-dir", "run", str(image_folder / "red/down/0.png")]) == 1
    assert f" numbers of {key} are not finite" in capsys.readouterr().err


@pytest.mark.parametrize("trainer", STEPPING)
def test_a_run_goes_on_from_before_a_checkpoint_that_is_not_finite(trainer, begin, tmp_path, capsys):
    opts = ["OPTIM.MAX_EPOCH", "3"]
    assert begin(trainer, *opts) == 0
    whole = read_results(tmp_path / "run/results.json")["accuracy_by_class"]
    (tmp_path / "run/results.json").unlink()
    for path in (tmp_path / "run").rglob("model.pth.tar-3"):
        if "stage1" not in path.parts:
            shutil.copy(path, path.with_name("model.pth.tar-2"))
            spoil(path)
    capsys.readouterr()
    code = begin(trainer, *opts)
    printed = capsys.readouterr().out
    assert code == 0 and "A checkpoint cannot be used, going on from one before: " in printed
    assert "are not finite (NaN or infinite)" in printed
    assert whole.keys() == read_results(tmp_path / "run/results.json")["accuracy_by_class"].keys()
    everything_is_finite(tmp_path / "run")


def test_a_best_model_that_is_not_finite_is_trained_anew(begin, tmp_path, capsys):
    assert begin("CoOp") == 0
    (tmp_path / "run/results.json").unlink()
    spoil(tmp_path / "run/prompt_learner/model-best.pth.tar", value=INF)
    assert begin("CoOp") == 0
    assert "The best model so far cannot be used: " in capsys.readouterr().out
    everything_is_finite(tmp_path / "run")


def test_a_cached_entry_is_computed_again(tmp_path, capsys):
    def compute(out):
        out[:] = 1

    FeatureCache(tmp_path).get("k", (4, 3), compute, "val")
    array = np.load(tmp_path / "k.npy")
    array[2, 1] = NAN
    np.save(tmp_path / "k.npy", array)
    about = json.loads((tmp_path / "k.json").read_text())
    (tmp_path / "k.json").write_text(json.dumps({**about, "crc32": zlib.crc32(array.tobytes())}))
    assert (FeatureCache(tmp_path).get("k", (4, 3), compute, "val") == 1).all()
    assert "k.npy: not finite; computed again." in capsys.readouterr().out


def test_a_prompt_label_is_not_written(tmp_path):
    origin = LabelOrigin("weights", ("a", "b"), "end", "data")
    with pytest.raises(UserError, match="photo.pt, which is not written: 1 of the 8 numbers of ctx are not finite"):
        save_prompt_label(tmp_path / "photo.pt", torch.tensor([[0.0, 1, 2, NAN], [0, 0, 0, 0]]), origin)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_history_and_results(number, begin, tmp_path):
    with pytest.raises(UserError, match=r"history.json is not written, since epochs\[1\].losses.loss is "):
        write_history(tmp_path, [{"losses": {"loss": 1.0}}, {"losses": {"loss": number}}])
    assert not list(tmp_path.iterdir())
    write_record(tmp_path / "history.json", {"epochs": [{"val_accuracy": 50.0}, {"val_accuracy": number}]})
    assert read_history(tmp_path, 1) and read_history(tmp_path, 2) is None
    assert begin("ZeroshotCLIP") == 0
    results = read_results(tmp_path / "run/results.json")
    write_results(tmp_path / "run", {**results, "calibration_error": number})
    with pytest.raises(UserError, match="calibration_error is .*, so its model was broken. Delete it and run"):
        find_results([tmp_path / "run"])


def test_predictions_and_logits_of_a_broken_model_are_refused(begin, tmp_path):
    assert begin("ZeroshotCLIP") == 0
    path = tmp_path / "run/predictions.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1].rpartition(",")[0] + ",nan"]) + "\n")
    with pytest.raises(UserError, match="a confidence in it is no number, so its model was broken"):
        read_predictions(path)
    for wrong in ([NAN, 0], [INF, 0], [-INF, -INF]):
        write_logits(tmp_path, np.array([[1, 2], wrong]))
        with pytest.raises(UserError, match="some are no numbers, so its model was broken"):
            read_logits(tmp_path / "logits.npy")


# ---- what is classified by ----


def test_prediction_names_the_images(begin, image_folder, monkeypatch, capsys):
    from trainers.coop import CoOp

    assert begin("CoOp") == 0
    classifier = CoOp.classifier
    monkeypatch.setattr(CoOp, "classifier", lambda self: poisoned(NAN)(classifier(self)))
    images = [str(image_folder / f"red/down/{i}.png") for i in range(2)]
    capsys.readouterr()
    assert predict.main(["--model-dir", "run", "--format", "json", *images]) == 1
    printed = capsys.readouterr()
    assert f"Error: The logits of {', '.join(images)} are not finite, though image" in printed.err
    assert printed.out == ""


def test_prediction_of_image_features(begin, image_folder, monkeypatch, capsys):
    assert begin("ZeroshotCLIP") == 0
    monkeypatch.setattr(ImageFeatures, "encode", lambda self, images, indices: torch.full((len(images), 32), INF))
    assert predict.main(["--model-dir", "run", str(image_folder / "red/down/0.png")]) == 1
    assert "are not finite, since their image features are not. Half precision may" in capsys.readouterr().err


def test_draws_of_the_noise(begin, tmp_path, monkeypatch):
    from trainers.spg import SPG_CGAN

    assert begin("SPG") == 0
    trainer, draw_logits = build_run(tmp_path / "run", with_data=True), SPG_CGAN.predict_draw
    monkeypatch.setattr(
        SPG_CGAN, "predict_draw", lambda self, f, i, draw: draw_logits(self, f, i, draw) * (NAN if draw == 1 else 1)
    )
    with pytest.raises(UserError, match="The logits of images 1 to 10 of the test split are not finite"):
        measure(trainer, 2)


def test_a_probe_of_a_class_without_training_images(begin, image_folder, tmp_path):
    """Its bias is minus infinity, by design."""
    root = shutil.copytree(image_folder, tmp_path / "data", ignore=shutil.ignore_patterns("spg_coop_splits"))
    for domain in ("blue", "green"):
        (root / domain / "spiral").mkdir()
    shutil.copytree(root / "red/down", root / "red/spiral")
    for name in ("run", "b"):
        assert begin("LinearProbe", flags=["--root", str(root), "--output-dir", name]) == 0
    assert (read_logits(tmp_path / "run/logits.npy")[:, 2] == -INF).all()
    flags = ["--root", str(root), "--eval-only", "--model-dir", "run", "--output-dir", "c"]
    assert begin("LinearProbe", flags=flags) == 0
    assert predict.main(["--model-dir", "run", str(root / "red/down/0.png")]) == 0
    spoil(tmp_path / "run/linear_probe/model-best.pth.tar", "bias")
    flags[-1] = "d"
    assert begin("LinearProbe", flags=flags) == 1


def test_logits_below_half_precision_become_its_minimum():
    found = Predictions.of(torch.tensor([[1e6, -1e6, -INF], [0.0, 1.0, -INF]]))
    assert found.logits.tolist() == [[0, -65504, -INF], [-1, 0, -INF]]
    assert found.labels.tolist() == [0, 1]


# ---- the parts ----


@given(
    st.lists(st.floats(width=32), max_size=30),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_all_finite_is_what_looking_at_each_says(numbers, dtype):
    tensor = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    assert all_finite(tensor) == bool(tensor.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_large_sums_of_finite_numbers_are_finite(dtype):
    tensor = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(tensor) and all_finite(torch.cat([tensor, -tensor]))
    assert not all_finite(torch.cat([tensor, torch.tensor([NAN], dtype=dtype)]))
    assert not all_finite(torch.tensor([INF, -INF], dtype=dtype))


def test_what_is_no_float_and_what_is_empty():
    assert all_finite(torch.zeros(0)) and all_finite(torch.arange(3)) and all_finite(torch.tensor([True]))
    require_finite({"a": None, "b": [torch.ones(1), {"c": torch.zeros(2)}], "d": "text"}, "x", "y")
    with pytest.raises(UserError, match=r"^x: 1 of the 2 numbers of b\[1\].c are not finite \(NaN or infinite\). y$"):
        require_finite({"b": [torch.ones(1), {"c": torch.tensor([0, INF])}]}, "x", "y")


def test_a_fingerprint_is_as_it_was():
    """The check of weights changes nothing of them."""
    model = tiny_clip()
    before = weights_sha256(model)
    require_finite(model.state_dict(), "x", "y")
    assert weights_sha256(model) == before
