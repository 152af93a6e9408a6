"""The linear probe against scikit-learn on the 30 images, and its search, resume and errors."""

import json
import re

import numpy as np
import pytest
import torch
from dassl.utils import read_image
from quick_run import REPOSITORY
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from trainers.linear_probe import LinearProbe
from trainers.saved_run import build_run

MANY_C = ["--config-file", str(REPOSITORY / "configs/trainers/LinearProbe/mini_digits.yaml")]


def accuracy(folder):
    return json.loads((folder / "results.json").read_text())["accuracy"]


def test_linear_probe_equals_scikit_learn_with_the_best_c_on_val(train, tmp_path):
    assert train("LinearProbe", "red", "TRAINER.LINEAR_PROBE.C", "(10, 0.1, 1000)", flags=MANY_C) == 0
    trainer = build_run(tmp_path / "run", with_data=True)
    dataset = trainer.dm.dataset

    def encoded(items):
        images = torch.stack([trainer.val_loader.dataset.transform(read_image(item.impath)) for item in items])
        return trainer.image_features.encode(images).double().numpy(), [item.label for item in items]

    scores, models = {}, {}
    for c in (0.1, 10, 1000):
        models[c] = LogisticRegression(C=c, max_iter=1000).fit(*encoded(dataset.train_x))
        x, y = encoded(dataset.val)
        scores[c] = models[c].score(x, y), -log_loss(y, models[c].predict_proba(x))
    best = max(scores, key=scores.get)  # the lowest loss decides between equal accuracies
    assert f"C {best:g} is the best on" in (tmp_path / "run" / "log.txt").read_text()
    x, _ = encoded(dataset.test)
    ours = trainer.predict(torch.from_numpy(x).float(), range(len(x))).softmax(dim=-1)
    np.testing.assert_allclose(ours.detach().numpy(), models[best].predict_proba(x), atol=1e-3)


def test_linear_probe_of_a_comparison_fits_one_augmented_view_that_the_seed_selects(train, tmp_path):
    """Batch size and workers do not matter."""
    assert train("LinearProbe", "red") == 0
    trainer = build_run(tmp_path / "run", with_data=True)
    items, dataset = trainer.train_loader_x.dataset, trainer.dm.dataset
    with torch.no_grad():
        views = torch.stack([items[0, 0, index]["img"] for index in range(len(items))])
        x = trainer.clip_model.encode_image(views).double().numpy()
        test = torch.stack([trainer.test_loader.dataset.transform(read_image(item.impath)) for item in dataset.test])
        features = trainer.image_features.encode(test)
        torch.testing.assert_close(features, trainer.clip_model.encode_image(test))  # not normalised
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


def test_linear_probe_search_halves_steps_around_the_best_c(train, capsys):
    opts = "TRAINER.LINEAR_PROBE.C", "(0.01, 1, 100)", "TRAINER.LINEAR_PROBE.HALVINGS", "2"
    assert train("LinearProbe", "red", *opts, flags=MANY_C) == 0
    output = capsys.readouterr().out
    tried = [float(c) for c in re.findall(r"^C (\S+): .* on val", output, re.MULTILINE)]
    best = float(re.search(r"^C (\S+) is the best", output, re.MULTILINE)[1])
    # Steps of a decade, then of half a decade, from the best C so far. An end has one neighbour.
    assert tried[:3] == [0.01, 1, 100] and len(tried) in (5, 6, 7)
    assert min(abs(np.log10(c / best)) for c in tried if c != pytest.approx(best)) == pytest.approx(0.5)


def test_linear_probe_sees_neither_target_nor_augmented_images(train, opened, tmp_path):
    flags = [*MANY_C, "--no-feature-cache", "--transforms", "random_resized_crop", "normalize"]
    assert train("LinearProbe", "red", "TRAINER.FEATURES.TRAIN_VIEWS", "3", flags=flags) == 0
    paths = [path for path, _ in opened]
    assert len(paths) == len(set(paths)) == 30  # each image once
    assert ["/red/" in path for path in paths] == [False] * 20 + [True] * 10
    assert opened[20][1]  # C has been chosen by then
    flags = [*MANY_C, "--transforms", "random_flip", "normalize", "--output-dir", "b"]
    assert train("LinearProbe", "red", "DATALOADER.TRAIN_X.BATCH_SIZE", "3", flags=flags) == 0
    assert accuracy(tmp_path / "b") == accuracy(tmp_path / "run")


def test_linear_probe_interrupted_restarts_or_resumes_after_its_fit(train, finish_run, tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    expected = accuracy(finish_run("LinearProbe").rename(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(LinearProbe, "fit_all", interrupted)
        assert train("LinearProbe", "red") == 130
    assert train("LinearProbe", "red") == 0
    assert accuracy(tmp_path / "run") == expected
    # Killed between the fit and the test: the classifier is not fitted again.
    (tmp_path / "run" / "results.json").unlink()
    monkeypatch.setattr(LinearProbe, "fit_all", interrupted)
    assert train("LinearProbe", "red") == 0
    assert accuracy(tmp_path / "run") == expected


def test_linear_probe_on_one_class_is_an_error(expect_error, images):
    for path in [*images.glob("blue/down/*"), *images.glob("green/down/*")]:
        path.unlink()
    assert "all of one class" in expect_error("LinearProbe", "red", flags=["--root", str(images)])
