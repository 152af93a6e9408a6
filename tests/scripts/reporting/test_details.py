"""Calibration, accuracy by class, and what chance does, from results by hand."""

from scripts.reporting.details import calibration_table, chance_table, class_tables
from scripts.reporting.tables import make_tables
from scripts.reporting.variability import Spread, Variability


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


def test_what_chance_has_to_do_with_each_method():
    shared = {"selection": "best_val", "folder": "-"}
    results = [
        {**run(trainer, target, seed, 1.0, {}), **shared, "accuracy": accuracy, "folder": f"{trainer}{target}{seed}"}
        for trainer in ("SPG", "CoOp", "VP", "DPL", "Theirs")
        for target, seed, accuracy in (("x", 1, 50.0), ("x", 2, 52.0), ("y", 1, 60.0), ("y", 2, 66.0))
    ]
    (table,) = make_tables([{**result, "backbone": "RN50"} for result in results])
    spreads = {"x": Spread(50, 0.5, 49, 51, 98), "y": Spread(50, 1.5, 49, 51, 98)}
    measured = {f"SPG{name}1": Variability(4, {name: spread}, {}) for name, spread in spreads.items()}
    header, rows = chance_table(table, measured)
    assert header == ["method", "beside the image, predictions depend on", "std over seeds", "std over draws"]
    # Seeds 50, 52 and 60, 66: std 1.414 and 4.243.
    assert rows == [
        ["SPG", "noise, drawn for each image", "2.83", "1.00"],
        ["CoOp", "nothing", "2.83", "none"],
        ["VP", "the place of its patch, drawn for each image (METHOD random)", "2.83", "not measured"],
        ["DPL", "the other images of its batch", "2.83", "not measured"],
        ["Theirs", "(not known)", "2.83", "not measured"],
    ]
