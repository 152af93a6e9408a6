"""Handmade results of runs."""

from scripts.reporting.load import make_frame
from scripts.reporting.tables import make_tables
from scripts.reporting.text import format_tables

RESULT = {
    **dict.fromkeys(["trained_on", "model_dir", "load_epoch", "n_trained", "train_seconds", "revision"]),
    **dict.fromkeys(["val_history", "loss_history", "train_reused"], []),
    **dict.fromkeys(["domain_fingerprints", "versions"], {}),
    **dict.fromkeys(["threads", "seed"], 1),
    **dict.fromkeys(["accuracy", "macro_f1", "val_accuracy", "calibration_error", "seconds"], 90.0),
    **dict.fromkeys(["backbone_sha256", "settings_sha256", "data_fingerprint", "test_fingerprint"], "aa"),
    **dict.fromkeys(["backbone", "backbone_name", "backbone_family"], "RN50"),
    **dict.fromkeys(["class_subset", "test_subset"], "all"),
    "trainer": "SPG",
    "config": "pacs",
    "dataset": "PACS",
    "protocol": "multi-source",
    "selection": "best_val",
    "precision": "fp32",
    "source_domains": ["art", "cartoon"],
    "target_domains": ["photo"],
    "classnames": ["dog", "elephant"],
    "num_shots": 0,
    "split_by_seed": False,
    "accuracy_by_domain": {"photo": 90.0},
    "accuracy_by_class": {"dog": 80.0, "elephant": 100.0},
    "metrics": {"accuracy": 90.0},
    "n_test": 10,
    "best_epoch": 2,
}
SPG = {("photo", 1): 90.0, ("photo", 2): 92.0, ("sketch", 1): 80.0, ("sketch", 2): 86.0}
COOP = {("photo", 1): 88.0, ("photo", 2): 89.0, ("sketch", 1): 81.0, ("sketch", 2): 81.0}


def runs(accuracies, **changes):
    """Results from a dict of (target, seed) to accuracy."""
    return [
        {
            **RESULT,
            "source_domains": [domain for domain in ("photo", "sketch") if domain != target],
            "target_domains": [target],
            "seed": seed,
            "accuracy": accuracy,
            "accuracy_by_domain": {target: accuracy},
            "data_fingerprint": target,
            "test_fingerprint": target,
            **changes,
        }
        for (target, seed), accuracy in accuracies.items()
    ]


def coop(accuracies, **changes):
    """The same for CoOp."""
    return runs(accuracies, trainer="CoOp", config="", **changes)


def frame(results):
    """The frame of results, with a folder for each."""
    return make_frame({"folder": f"run{i}", "written": i, **result} for i, result in enumerate(results))


def only_table(results, baseline="", **more):
    (table,) = make_tables(frame(results), baseline, **more)
    return table


def text_of(results, table_format="github", baseline="", **more):
    return format_tables(make_tables(frame(results), baseline, **more), table_format)


def cells(line):
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def grid(text):
    """The header of a Markdown table, and its rows by method."""
    lines = text.splitlines()
    rows = [cells(line) for line in lines[4:] if line.startswith("|")]
    return cells(lines[2]), {row[0]: row for row in rows}
