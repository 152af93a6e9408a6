"""README's commands: exit codes, places of results, contents of results.json, finished runs, refused settings."""

import csv
import io
import shutil

import numpy as np
import pytest
from commands import CLASSES, CLIP, QUICK, make_images, numbers, predictions, results, run, run_train, script, train

KEYS = "accuracy macro_f1 accuracy_by_domain trainer dataset backbone source_domains target_domains seed seconds"
COMPARE = script("compare.sh", "images", CLIP, *QUICK)
METHODS = {"METHODS": "zsclip,coop,spg"}
NAMES = [name.replace("_", " ") for name in CLASSES]


@pytest.fixture(scope="session")
def compared(images, tmp_path_factory):
    """A folder in which a comparison of three methods has run, and the text that it printed."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copytree(images, folder / "images")
    return folder, run(folder, COMPARE, **METHODS)[0]


@pytest.fixture
def folder(compared, tmp_path):
    """A copy of the comparison's folder."""
    shutil.copytree(compared[0], tmp_path / "copy")
    return tmp_path / "copy"


def run_folder(folder, trainer, target):
    return folder / f"output/images/{trainer}/mini_clip/default/{target}/seed1"


def test_main_writes_results_where_readme_says(compared):
    folder, printed = compared
    for trainer in ("ZeroshotCLIP", "CoOp", "SPG"):
        assert f"| {trainer} " in printed
        for target in ("red", "green", "blue"):
            path = run_folder(folder, trainer, target)
            found, rows, logits = results(path), predictions(path), np.load(path / "logits.npy")
            assert set(KEYS.split()) <= set(found)
            assert (found["trainer"], found["target_domains"], found["seed"]) == (trainer, [target], 1)
            assert sorted(found["source_domains"]) == sorted({"red", "green", "blue"} - {target})
            assert found["accuracy_by_domain"] == {target: pytest.approx(found["accuracy"])}
            assert {row["domain"] for row in rows} == {target}
            assert [NAMES[row.argmax()] for row in logits] == [row["prediction"] for row in rows]
            right = [row["prediction"] == row["label"] for row in rows]
            assert found["accuracy"] == pytest.approx(100 * np.mean(right))
    names = {path.name for path in run_folder(folder, "CoOp", "red").iterdir()}
    assert {"config.yaml", "log.txt", "predictions.csv", "logits.npy", "results.json", "prompt_learner"} <= names
    labels = folder / "output/prompt_labels/images/mini_clip/seed_1"
    assert sorted(path.stem for path in labels.glob("*.pt")) == ["blue", "green", "red"]
    assert (folder / "output/images/report.html").is_file()


def test_results_tables_have_the_numbers_of_results_json(folder):
    words = script("scripts/results.py", "output", "--format", "csv")
    rows = [row for row in csv.DictReader(io.StringIO(run(folder, words)[0])) if row["column"] != "training (s)"]
    for trainer in ("ZeroshotCLIP", "CoOp", "SPG"):
        by_target = [results(run_folder(folder, trainer, t))["accuracy"] for t in ("red", "green", "blue")]
        row = [float(row["mean"]) for row in rows if row["method"].startswith(trainer)]
        assert row[:3] == pytest.approx([by_target[2], by_target[1], by_target[0]], abs=1e-3)
        assert row[3] == pytest.approx(np.mean(by_target), abs=1e-3)
    for style in ("github", "latex", "plain"):
        assert "CoOp" in run(folder, script("scripts/results.py", "output", "--format", style))[0]
    baseline = run(folder, script("scripts/results.py", "output", "--baseline", "CoOp"))[0]
    assert "SPG" in baseline and "95 %" in baseline


def test_report_and_status_read_an_output_folder(folder):
    run(folder, script("scripts/report.py", "output"))
    assert "9 done" in run(folder, script("scripts/status.py", "output"))[0]
    (run_folder(folder, "CoOp", "red") / "results.json").unlink()
    assert "8 done" in run(folder, script("scripts/status.py", "output"))[0]


def test_train_skips_its_finished_run_and_refuses_another_in_its_folder(folder):
    run_train(folder, train("CoOp", "run"))
    whole, written = numbers(folder / "run"), (folder / "run/results.json").stat().st_mtime_ns
    assert "skipped" in run_train(folder, train("CoOp", "run"))[0]
    for other in (train("CoOp", "run", *QUICK, "OPTIM.LR", "0.1"), train("CoOp", "run", flags=("--seed", 2))):
        assert "Error: " in run_train(folder, other, code=1)[1]
    assert "Error: " in run_train(folder, train("CoOp", "run", target="blue"), code=1)[1]
    assert (folder / "run/results.json").stat().st_mtime_ns == written
    run_train(folder, train("CoOp", "again"))
    assert numbers(folder / "again") == whole


def test_launchers_skip_finished_runs_and_refuse_other_settings_in_one_output(folder):
    paths = sorted(folder.glob("output/images/**/results.json"))
    before, whole = [path.stat().st_mtime_ns for path in paths], numbers(run_folder(folder, "CoOp", "red"))
    run(folder, COMPARE, **METHODS)
    stdout, stderr = run(folder, script("coop/main.sh", "images", CLIP, *QUICK, "OPTIM.LR", "0.1"), code=1)
    assert "OPTIM.LR" in stdout + stderr
    assert [path.stat().st_mtime_ns for path in paths] == before and len(before) == 9
    assert numbers(run_folder(folder, "CoOp", "red")) == whole


def test_predict_repeats_the_test_of_a_run(folder):
    found = run_folder(folder, "CoOp", "red")
    table = run(folder, script("predict.py", "--model-dir", found, "--format", "csv", "--top-k", 1, "images/red"))[0]
    rows = list(csv.reader(io.StringIO(table)))[1:]
    expected = {row["path"].split("red/")[-1]: row["prediction"] for row in predictions(found)}
    assert {row[0].split("red/")[-1]: next(c for c in row[1:] if c in NAMES) for row in rows} == expected
    words = ("--model-dir", found, "--classnames", "stripes,dots,plain", "images/red/dog/0.png")
    assert "dots" in run(folder, script("predict.py", *words))[0]
    assert "Error: " in run(folder, script("predict.py", "--model-dir", found, "nowhere.png"), code=1)[1]


def test_single_trains_on_one_domain_and_tests_on_the_others(folder):
    run(folder, script("coop/single.sh", "images", CLIP, *QUICK), SOURCES="red")
    found = results(folder / "output/images/CoOp/mini_clip/default/from_red/seed1")
    assert (found["source_domains"], sorted(found["target_domains"])) == (["red"], ["blue", "green"])
    assert sorted(found["accuracy_by_domain"]) == ["blue", "green"]


def test_cross_trains_on_one_set_and_tests_on_others(folder):
    make_images(folder / "others", classes=["big_old_oak_tree", "guinea_pig", "wolf"])
    run(folder, script("coop/cross.sh", "images", "others", CLIP, *QUICK))
    (found,) = [results(path.parent) for path in folder.glob("output/**/cross/**/results.json")]
    assert (found["dataset"], found["trained_on"]) == ("others", "images")
    assert sorted(found["target_domains"]) == ["blue", "green", "red"]


def test_two_jobs_change_no_number(folder):
    run(folder, COMPARE, OUTPUT="parallel", JOBS="2", **METHODS)
    for trainer in ("ZeroshotCLIP", "CoOp", "SPG"):
        serial = run_folder(folder, trainer, "red")
        assert numbers(serial) == numbers(folder / "parallel" / serial.relative_to(folder / "output"))


WRONG = [
    ("OPTIM.MAX_EPOCHS", "3"),
    ("OPTIM.LR", "-1"),
    ("OPTIM.NAME", "sdg"),
    ("OPTIM.LR_SCHEDULER", "cosinus"),
    ("DATALOADER.TRAIN_X.BATCH_SIZE", "0"),
    ("TRAINER.COOP.PREC", "fp8"),
    ("TRAINER.COOP.N_CTX", "0"),
    ("TEST.FINAL_MODEL", "best"),
    ("INPUT.INTERPOLATION", "cubic"),
    ("DATASET.NUM_SHOTS", "two"),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_value_names_its_key(folder, key, value):
    message = run_train(folder, train("CoOp", "wrong", *QUICK, key, value), code=1)[1]
    assert message.startswith("Error: ") and key in message
    assert not (folder / "wrong/results.json").exists()
