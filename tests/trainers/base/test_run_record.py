"""What goes into results.json, against slow and obvious references; and logits beside the predictions."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from common.errors import UserError
from common.run.predictions import LOGITS_FILE, read_logits, read_predictions, write_logits
from common.run.results import CIRCUMSTANCES, FORMAT, SHARED, Result, read_results
from trainers.base.run_record import CALIBRATION_BINS, Said, accuracy_by_class, calibration_error


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


def test_calibration_of_the_certain_and_right_and_of_the_certain_and_wrong():
    assert calibration_error(np.ones(5), np.ones(5, bool)) == 0
    assert calibration_error(np.ones(5), np.zeros(5, bool)) == 100


def test_accuracy_by_class_by_hand():
    found = accuracy_by_class(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0]), ["cat", "dog", "cow"])
    assert found == {"cat": 50.0, "dog": pytest.approx(200 / 3), "cow": None}


def test_logits_come_back(tmp_path):
    logits = np.random.default_rng(0).normal(0, 20, (6, 3)).astype(np.float32)
    logits[2, 1] = -np.inf  # a class without training images
    write_logits(tmp_path, logits)
    found = read_logits(tmp_path / LOGITS_FILE)
    np.testing.assert_allclose(found, logits, rtol=1e-3)
    for content in (b"", b"text", (tmp_path / LOGITS_FILE).read_bytes()[:-3]):
        (tmp_path / LOGITS_FILE).write_bytes(content)
        with pytest.raises(UserError, match="holds no logits"):
            read_logits(tmp_path / LOGITS_FILE)


def test_what_was_said_joins_batches():
    logits = torch.randn(7, 3)
    joined = Said.joined([Said.of(logits[:4]), Said.of(logits[4:])])
    torch.testing.assert_close(joined.confidence, logits.softmax(dim=-1).amax(dim=-1))
    assert joined.predicted.tolist() == logits.argmax(dim=-1).tolist()
    assert joined.logits.dtype == torch.float16 and joined.logits.shape == (7, 3)
    assert Said.joined([]) is None


def test_a_run_writes_every_key_and_its_logits_agree(train, tmp_path):
    assert train("CoOp", "red") == 0
    result = read_results(tmp_path / "run/results.json")
    assert set(result) == {f.name for f in fields(Result)} | {"format"} and result["format"] == FORMAT
    logits, rows = read_logits(tmp_path / "run" / LOGITS_FILE), read_predictions(tmp_path / "run/predictions.csv")
    names = result["classnames"]
    labels = np.array([names.index(row["label"]) for row in rows])
    predicted = logits.argmax(axis=1)
    assert [names[label] for label in predicted] == [row["prediction"] for row in rows]
    assert result["accuracy"] == pytest.approx(100 * np.mean(predicted == labels))
    assert result["accuracy_by_class"] == accuracy_by_class(labels, predicted, names)
    assert result["metrics"]["macro_f1"] == pytest.approx(100 * f1_score(labels, predicted, average="macro"))
    confidence = torch.from_numpy(logits).softmax(dim=-1).amax(dim=-1).numpy()
    assert result["calibration_error"] == pytest.approx(calibration_error(confidence, predicted == labels), abs=0.5)


def test_logits_are_left_out_where_that_is_asked_for(train, tmp_path):
    assert train("ZeroshotCLIP", "red", "TEST.KEEP_LOGITS", "False") == 0
    assert not (tmp_path / "run" / LOGITS_FILE).exists() and (tmp_path / "run/predictions.csv").is_file()


def test_every_key_is_told_and_its_part_in_comparisons_is_known():
    told = {line.strip().partition(":")[0] for line in Result.__doc__.splitlines() if ":" in line}
    told = {name.strip() for names in told for name in names.split(",")}
    assert {f.name for f in fields(Result)} <= told
    assert {over for _, over in SHARED.values()} == {"table", "row", "column", "seed"}
    assert set(CIRCUMSTANCES) >= {"seconds", "threads", "revision", "versions"} and not set(CIRCUMSTANCES) & set(SHARED)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_metric_that_selects_is_named(train, tmp_path, metric):
    from common.run.history import read_history

    assert train("CoOp", "red", "TEST.SELECT_BY", metric) == 0
    history, result = read_history(tmp_path / "run", 2), read_results(tmp_path / "run/results.json")
    values = [epoch[f"val_{metric}"] for epoch in history]
    assert result["best_epoch"] == 1 + values.index(max(values))
    assert result["val_history"] == [epoch["val_accuracy"] for epoch in history]
    assert result["val_accuracy"] == history[result["best_epoch"] - 1]["val_accuracy"]


def test_a_metric_that_is_not_measured(refused):
    message = refused("CoOp", "red", "TEST.SELECT_BY", "auroc")
    assert "TEST.SELECT_BY is 'auroc'" in message and "accuracy" in message and "macro_f1" in message
