"""A short MiniDigits run of each method gives the digits that record_digits.py recorded.

A machine like the recording one gives equal digits. Others sum in another order, which the tolerances allow.
"""

import json

import numpy as np
import pytest
from record_digits import DIGITS, RUNS, machine, run


@pytest.mark.parametrize("trainer", RUNS)
def test_a_run_gives_the_recorded_digits(trainer, tmp_path_factory):
    digits, logits = run(trainer, tmp_path_factory.getbasetemp())  # runs share images and features
    recorded = json.loads((DIGITS / "digits.json").read_text(encoding="utf-8"))
    expected = recorded[trainer]
    np.testing.assert_allclose(logits, np.load(DIGITS / "logits.npz")[trainer], rtol=2e-3, atol=2e-2)
    if recorded["machine"] == machine():
        assert digits == expected
    predictions, before = (one["predictions"].split(",") for one in (digits, expected))
    assert sum(a != b for a, b in zip(predictions, before, strict=True)) <= 8  # of 400
    for key in ("accuracy", "macro_f1"):
        assert digits[key] == pytest.approx(expected[key], abs=0.5)  # two images
    assert digits["val_history"] == pytest.approx(expected["val_history"], abs=100 / 360 + 1e-6)
    for losses, others in zip(digits["loss_history"], expected["loss_history"], strict=True):
        tolerance = {"rel": 1e-3}, {"abs": 0.3}  # "acc" is that of training images, two of them
        assert losses == {key: pytest.approx(value, **tolerance[key == "acc"]) for key, value in others.items()}
