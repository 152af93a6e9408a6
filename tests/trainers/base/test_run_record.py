"""Content of results.json and logits.npy, against slow and obvious references."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from dassl.evaluation import EVALUATOR_REGISTRY, Classification
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from common.image_results import LOGITS_FILE, read_predictions
from common.run import Result, read_results, read_run_record
from trainers.base.evaluation import Predictions, accuracy_by_class, calibration_error, macro_f1


def plain_calibration_error(confidence, right):
    """Over 15 bins, one by one, as Guo et al. (2017) write it."""
    total = 0.0
    for b in range(15):
        low, high = b / 15, (b + 1) / 15
        own = [i for i, c in enumerate(confidence) if low < c <= high or (b == 0 and c == 0)]
        if own:
            gap = abs(np.mean([right[i] for i in own]) - np.mean([confidence[i] for i in own]))
            total += len(own) / len(confidence) * gap
    return 100 * total


@given(st.lists(st.tuples(st.floats(0.001, 1.0), st.booleans()), min_size=1, max_size=60))
def test_calibration_error_bin_by_bin(pairs):
    confidence, right = np.array([c for c, _ in pairs]), np.array([r for _, r in pairs])
    assert calibration_error(confidence, right) == pytest.approx(plain_calibration_error(confidence, right), abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_macro_f1_is_the_mean_over_the_classes_among_the_labels(pairs):
    labels, predicted = np.array(pairs).T
    by_class = {c: 2 * sum((labels == c) & (predicted == c)) / (sum(labels == c) + sum(predicted == c)) for c in labels}
    assert macro_f1(labels, predicted) == pytest.approx(100 * np.mean(list(by_class.values())))


def test_accuracy_by_class_equals_hand_computation():
    found = accuracy_by_class(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 1]), ["cat", "dog", "cow"])
    assert found == {"cat": 50.0, "dog": 100.0, "cow": None}


def test_stored_logits_of_many_classes_have_the_predictions_and_probabilities():
    logits = 20 + torch.randn(200, 1200, generator=torch.Generator().manual_seed(0))
    logits[0] = 30.0  # all equal
    logits[1, 5:7] = torch.tensor([40.0, np.nextafter(np.float32(40), np.float32(50))])
    logits[2, :2] = torch.tensor([1e-9, 2e-9])  # a difference below the smallest half
    logits[2, 2:] = -1e9  # and one above the largest
    logits[3, 1] = -torch.inf  # a class without training images
    found = Predictions.joined([Predictions.of(logits[:90]), Predictions.of(logits[90:])])
    assert found.logits.dtype == torch.float16
    assert found.labels.tolist() == logits.argmax(dim=-1).tolist() == found.logits.argmax(dim=-1).tolist()
    torch.testing.assert_close(found.confidence, logits.softmax(dim=-1).amax(dim=-1))
    assert (found.logits.max(dim=-1).values == 0).all() and ((found.logits == 0).sum(dim=-1) == 1).all()
    assert (found.logits.isinf() == logits.isinf()).all()
    torch.testing.assert_close(found.logits.float().softmax(dim=-1), logits.softmax(dim=-1), atol=1e-7, rtol=4e-3)


def test_run_writes_every_key_and_agreeing_logits(finish_run, tmp_path):
    result = read_results(finish_run("CoOp") / "results.json")
    assert set(result) == {f.name for f in fields(Result)}
    logits, rows = np.load(tmp_path / "run" / LOGITS_FILE), read_predictions(tmp_path / "run/predictions.csv")
    names = result["classnames"]
    labels = np.array([names.index(row["label"]) for row in rows])
    predicted = logits.argmax(axis=1)
    assert [names[label] for label in predicted] == [row["prediction"] for row in rows]
    assert result["accuracy"] == pytest.approx(100 * np.mean(predicted == labels))
    assert result["accuracy_by_class"] == accuracy_by_class(labels, predicted, names)
    assert result["metrics"]["macro_f1"] == pytest.approx(100 * f1_score(labels, predicted, average="macro"))
    confidence = torch.from_numpy(logits).softmax(dim=-1).amax(dim=-1).numpy()
    assert result["calibration_error"] == pytest.approx(calibration_error(confidence, predicted == labels), abs=0.5)


def test_keep_logits_false_writes_no_logits(train, tmp_path):
    assert train("ZeroshotCLIP", "red", "TEST.KEEP_LOGITS", "False") == 0
    assert not (tmp_path / "run" / LOGITS_FILE).exists() and (tmp_path / "run/predictions.csv").is_file()


def test_results_name_the_selection_metric(train, tmp_path):
    assert train("CoOp", "red", "TEST.SELECT_BY", "macro_f1") == 0
    history, result = read_run_record(tmp_path / "run").history, read_results(tmp_path / "run/results.json")
    values = [epoch["val_macro_f1"] for epoch in history]
    assert result["best_epoch"] == 1 + values.index(max(values))
    assert result["val_history"] == [epoch["val_accuracy"] for epoch in history]
    assert result["val_accuracy"] == history[result["best_epoch"] - 1]["val_accuracy"]


# ---- durations ----


def test_metric_of_a_custom_evaluator_selects_the_epoch(train, tmp_path):
    class Wrong(Classification):
        def evaluate(self):
            found = super().evaluate()
            return {**found, "wrong": 100 - found["accuracy"], "odd": float("nan")}

    EVALUATOR_REGISTRY.register(Wrong, force=True)
    assert train("CoOp", "red", "TEST.EVALUATOR", "Wrong", "TEST.SELECT_BY", "wrong") == 0
    EVALUATOR_REGISTRY._obj_map.pop("Wrong")
    result = read_results(tmp_path / "run/results.json")
    assert result["metrics"]["wrong"] == pytest.approx(100 - result["accuracy"]) and "odd" not in result["metrics"]
    assert result["best_epoch"] == 1 + np.argmin(result["val_history"])


def test_train_seconds_add_up_over_starts_and_name_reused_parts(finish_run, train, tmp_path):
    def run(*flags, out="run"):
        assert train("SPG", "red", flags=["--output-dir", out, *flags]) == 0
        return read_results(tmp_path / out / "results.json")

    before = read_results(finish_run("SPG") / "results.json")
    assert 0 < before["train_seconds"] <= before["seconds"] and before["train_reused"] == []
    # Interrupted after the last epoch, which had come late.
    (tmp_path / "run/results.json").unlink()
    record = read_run_record(tmp_path / "run")
    record.history[-1]["seconds"] += 1000
    record.write(tmp_path / "run")
    after = run()
    assert after["train_seconds"] == pytest.approx(before["train_seconds"] + 1000)
    assert after["train_reused"] == []  # the features and labels that it finds now are its own
    # Another run finds them: the files of labels have their training times.
    labels = list((tmp_path / "prompt_labels").rglob("*.pt"))
    learning = sum(torch.load(path, weights_only=True)["seconds"] for path in labels)
    assert len(labels) == 2 and 0 < learning < before["train_seconds"]
    other = run(out="other")
    assert other["train_reused"] == ["image features"] and other["train_seconds"] > learning
    torch.save({**torch.load(labels[0], weights_only=True), "seconds": None}, labels[0])  # an unknown time
    assert run(out="third")["train_reused"] == ["image features", "prompt labels"]
    tested = run("--eval-only", "--model-dir", "run", out="tested")
    assert [tested[key] for key in ("n_trained", "train_seconds")] == [after["n_trained"], after["train_seconds"]]
