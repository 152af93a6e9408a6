"""Content of results.json and logits.npy, against slow and obvious references; evaluators of clients."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from dassl.evaluation import EVALUATOR_REGISTRY, EvaluatorBase
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from common.image_results import LOGITS_FILE, read_predictions
from common.run import Result, read_results, read_run_record
from trainers.base.checkpoints import find_checkpoint
from trainers.base.evaluation import CALIBRATION_BINS, Predictions, accuracy_by_class, calibration_error, macro_f1


def plain_calibration_error(confidence, right):
    """Bin by bin, as Guo et al. (2017) write it."""
    total = 0.0
    for b in range(CALIBRATION_BINS):
        low, high = b / CALIBRATION_BINS, (b + 1) / CALIBRATION_BINS
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
    found = accuracy_by_class(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0]), ["cat", "dog", "cow"])
    assert found == {"cat": 50.0, "dog": pytest.approx(200 / 3), "cow": None}


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


# ---- custom evaluators ----


class Counter(EvaluatorBase):
    """An evaluator with the metrics of `MEASURES`, functions of labels and predictions."""

    MEASURES = {}

    def __init__(self, cfg, lab2cname=None, **_):
        super().__init__(cfg)

    def reset(self):
        self.labels, self.predicted = [], []

    def process(self, mo, gt):
        self.labels += gt.tolist()
        self.predicted += mo.argmax(dim=1).tolist()

    def evaluate(self):
        return {name: measure(self.labels, self.predicted) for name, measure in self.MEASURES.items()}


@pytest.fixture
def own(monkeypatch):
    """Register an evaluator with these metrics; return the settings that select it."""

    def register(**measures):
        EVALUATOR_REGISTRY.register(Counter, force=True)
        monkeypatch.setattr(Counter, "MEASURES", measures)
        return ["TEST.EVALUATOR", "Counter"]

    yield register
    EVALUATOR_REGISTRY._obj_map.pop("Counter", None)


def n_right(labels, predicted):
    return sum(label == guess for label, guess in zip(labels, predicted, strict=True))


@pytest.mark.parametrize("trainer", ["CoOp", "LinearProbe", "ZeroshotCLIP"])
def test_results_have_custom_metrics_and_accuracy(trainer, finish_run, train, own, tmp_path, capsys):
    plain = read_results(finish_run(trainer) / "results.json")
    odd = {"nan": float("nan"), "none": None, "text": "good", "many": torch.ones(2)}
    measures = {name: lambda *_, value=value: value for name, value in odd.items()}
    opts = own(right=n_right, tensor=lambda *_: torch.tensor(2.5), **measures)
    assert train(trainer, "red", *opts, flags=["--output-dir", "own"]) == 0
    printed = capsys.readouterr().out
    assert all(f"Note: the metric {name} is no finite number" in printed for name in odd)
    ours = read_results(tmp_path / "own/results.json")
    right, accuracy, macro = ours["n_test"] * ours["accuracy"] / 100, plain["accuracy"], plain["macro_f1"]
    assert ours["metrics"] == pytest.approx({"right": right, "tensor": 2.5, "accuracy": accuracy, "macro_f1": macro})
    for key in ("accuracy", "macro_f1", "accuracy_by_class", "val_accuracy", "best_epoch"):
        assert ours[key] == pytest.approx(plain[key]), key
    assert ours["val_history"] == pytest.approx(plain["val_history"])


def test_select_by_custom_metric_selects_its_best_epoch(train, own, tmp_path):
    opts = own(wrong=lambda *both: len(both[0]) - n_right(*both))
    assert train("CoOp", "red", *opts, "TEST.SELECT_BY", "wrong", "OPTIM.MAX_EPOCH", "3") == 0
    result = read_results(tmp_path / "run/results.json")
    worst = min(result["val_history"])
    assert result["val_accuracy"] == worst and result["best_epoch"] == 1 + result["val_history"].index(worst)
    best = find_checkpoint(tmp_path / "run", "prompt_learner")
    assert torch.load(best, weights_only=True)["epoch"] == result["best_epoch"]


def test_results_use_the_accuracy_of_the_evaluator(train, own, tmp_path):
    assert train("ZeroshotCLIP", "red", *own(accuracy=lambda *_: 12.5, macro_f1=lambda *_: 3)) == 0
    result = read_results(tmp_path / "run/results.json")
    assert (result["accuracy"], result["macro_f1"]) == (12.5, 3.0)


def test_evaluator_without_usable_result_is_an_error(expect_error, own, monkeypatch):
    message = expect_error("CoOp", "red", *own(odd=lambda *_: float("nan")), "TEST.SELECT_BY", "odd")
    assert "no finite metric of the evaluator Counter; accepted: accuracy, macro_f1." in message
    monkeypatch.setattr(Counter, "evaluate", lambda self: 81.5)
    message = expect_error("ZeroshotCLIP", "red", *own(), flags=["--output-dir", "b"])
    assert "TEST.EVALUATOR: evaluate() returned a float. Return a dict of numbers." in message


# ---- durations ----


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
