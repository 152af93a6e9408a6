"""Calibration and accuracy by class, from results by hand."""

from scripts.reporting.details import calibration_table, class_tables


def run(method, target, seed, error, classes, source="b"):
    return {
        "trainer": method,
        "config": "default",
        "protocol": "multi-source",
        "dataset": "set",
        "source_domains": [source],
        "target_domains": [target],
        "accuracy": 50.0,
        "accuracy_by_domain": {target: 50.0},
        "seed": seed,
        "calibration_error": error,
        "classnames": list(classes),
        "accuracy_by_class": classes,
    }


RUNS = {
    "CoOp": [
        run("CoOp", "x", 1, 10.0, {"cat": 50.0, "dog": None}),
        run("CoOp", "x", 2, 20.0, {"cat": 70.0, "dog": None}),
        run("CoOp", "y", 1, 4.0, {"cat": 90.0, "dog": 10.0}),
    ],
    "SPG": [run("SPG", "x", 1, 7.0, {"cat": 1.0, "dog": 3.0})],
    "Old": [{"trainer": "Old", "protocol": "multi-source", "classnames": ["cat", "dog"]}],
}


def test_calibration_by_target_over_seeds():
    assert calibration_table(RUNS) == (
        ["method", "x", "y"],
        [["CoOp", "15.0 ± 7.1", "4.0"], ["SPG", "7.0", "-"]],
    )
    assert calibration_table({"Old": RUNS["Old"]}) is None


def test_calibration_of_a_single_source_is_over_all_its_targets():
    of = {**run("CoOp", "x", 1, 5.0, {}), "protocol": "single-source", "target_domains": ["x", "y"]}
    of["accuracy_by_domain"] = {"x": 1.0, "y": 2.0}
    assert calibration_table({"CoOp": [of]}) == (["method", "b → others"], [["CoOp", "5.0"]])


def test_classes_over_all_runs():
    assert class_tables(RUNS, at_most=2) == [
        (["method", "cat", "dog"], [["CoOp", "70.0", "10.0"], ["SPG", "1.0", "3.0"]])
    ]
    assert class_tables(RUNS, at_most=1) == []
