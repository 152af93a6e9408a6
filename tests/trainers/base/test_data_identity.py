"""Image contents identify data sets: a moved set is equal, a set changed in place is another one."""

import os
import shutil

import pytest
from PIL import Image, ImageOps

from common.run import read_results
from scripts import results as tables
from trainers.base.trainer import PromptTrainer

evaluate = PromptTrainer._evaluate


@pytest.fixture
def data(image_folder, tmp_path):
    """A copy of the 30 images."""
    return shutil.copytree(image_folder, tmp_path / "data", ignore=shutil.ignore_patterns("spg_coop_splits"))


def invert(folder):
    """Change the contents of images; names and modification times stay."""
    for path in folder.rglob("*.png"):
        status = path.stat()
        ImageOps.invert(Image.open(path)).save(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def move(data, rename=True):
    """Move a data set, with other modification times, and give the images of the target red other names."""
    moved = data.parent / "elsewhere" / data.name
    shutil.copytree(data, moved, copy_function=shutil.copyfile)
    shutil.rmtree(data)
    if rename:
        (moved / "spg_coop_splits/red_train_val_split.json").unlink()
        for path in (moved / "red").rglob("*.png"):
            path.rename(path.with_name(f"image_{path.name}"))
    return moved


def at(folder, *flags):
    return ["--root", str(folder), *flags]


def stop_before_test(monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(PromptTrainer, "_evaluate", lambda t, s: stop() if s == "test" else evaluate(t, s))


@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "CoOp", "SPG", "VPT"])
def test_finished_run_skips_moved_images_and_raises_on_changed_ones(trainer, data, train, expect_error, capsys):
    assert train(trainer, "red", flags=at(data)) == 0
    data = move(data)
    capsys.readouterr()
    assert train(trainer, "red", flags=at(data)) == 0
    assert "holds a finished run; skipped" in capsys.readouterr().out
    invert(data / "red")
    message = "run holds a finished run with other settings or data: other test images. Delete it"
    assert message in expect_error(trainer, "red", flags=at(data))
    if trainer != "ZeroshotCLIP":
        invert(data / "blue")
        assert "other training images" in expect_error(trainer, "red", flags=at(data))


@pytest.mark.parametrize("trainer", ["CoOp", "SPG", "LinearProbe"])
@pytest.mark.parametrize("changed", ["", "red", "blue"])
def test_unfinished_run_resumes_on_equal_images(trainer, changed, data, train, capsys, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        stop_before_test(patch)
        assert train(trainer, "red", flags=at(data)) == 130
    data = move(data)
    if changed:
        invert(data / changed)
    capsys.readouterr()
    code, printed = train(trainer, "red", flags=at(data)), capsys.readouterr()
    if not changed:
        assert code == 0 and "Resuming after epoch" in printed.out
    else:
        what = "other test images" if changed == "red" else "other training images"
        assert code == 1 and f"holds an unfinished run with other settings or data: {what}" in printed.err


@pytest.mark.parametrize("views", ["0", "2"])
def test_features_and_labels_are_reused_for_moved_images_alone(data, train, tmp_path, expect_error, capsys, views):
    opts = "TRAINER.FEATURES.TRAIN_VIEWS", views
    assert train("SPG", "red", *opts, flags=at(data)) == 0
    data = move(data, rename=False)
    capsys.readouterr()
    assert train("SPG", "red", *opts, flags=at(data, "--output-dir", "again")) == 0
    assert "Encoded" not in capsys.readouterr().out
    first, again = (read_results(tmp_path / name / "results.json") for name in ("run", "again"))
    assert first["accuracy"] == again["accuracy"] and first["val_history"] == again["val_history"]
    invert(data / "red")
    assert train("SPG", "red", *opts, flags=at(data, "--output-dir", "other")) == 0
    assert "Encoded 10 images (red, test)" in capsys.readouterr().out
    invert(data / "green")
    message = expect_error("SPG", "red", *opts, flags=at(data, "--output-dir", "third"))
    assert "was trained with other settings: other training images" in message


def test_images_changed_during_run_stop_it_without_results(data, train, expect_error, tmp_path, monkeypatch):
    def change(trainer, split):
        found = evaluate(trainer, split)
        if split == "test":
            invert(data / "red/down")
        return found

    monkeypatch.setattr(PromptTrainer, "_evaluate", change)
    for trainer in ("ZeroshotCLIP", "CoOp"):
        message = expect_error(trainer, "red", flags=at(data, "--output-dir", trainer))
        assert "images of the data set changed during the run" in message
        assert not (tmp_path / trainer / "results.json").exists()


def table_of(capsys, *folders):
    capsys.readouterr()
    assert tables.main([*folders]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("changed", ["red", "blue"])
def test_seeds_on_changed_images_are_marked_in_their_row(changed, data, train, capsys):
    for trainer in ("CoOp", "ZeroshotCLIP"):
        assert train(trainer, "red", flags=at(data, "--output-dir", f"runs/{trainer}/1")) == 0
    data = move(data)
    assert train("CoOp", "red", flags=at(data, "--output-dir", "runs/CoOp/2", "--seed", "2")) == 0
    assert "[1]" not in table_of(capsys, "runs/CoOp")
    invert(data / changed)
    for trainer in ("CoOp", "ZeroshotCLIP"):
        assert train(trainer, "red", flags=at(data, "--output-dir", f"runs/{trainer}/3", "--seed", "3")) == 0
    found = table_of(capsys, "runs/CoOp")
    why = {"red": "other test images", "blue": "other images or another split of them"}[changed]
    assert " [1] " in found and f"[1] Not comparable: {why} than most runs of this table." in found
    assert ("[1]" in table_of(capsys, "runs/ZeroshotCLIP")) == (changed == "red")


def test_columns_with_other_images_of_a_domain_are_marked(data, train, capsys):
    assert train("CoOp", "red", flags=at(data, "--output-dir", "runs/red")) == 0
    assert train("CoOp", "blue", flags=at(data, "--output-dir", "runs/blue")) == 0
    assert "[1]" not in table_of(capsys, "runs")
    invert(data / "red")
    assert train("CoOp", "green", flags=at(data, "--output-dir", "runs/green")) == 0
    assert "[1] Not comparable: other images of red than other runs of this table." in table_of(capsys, "runs")


def test_few_shot_seeds_may_differ_in_training_images_alone(data, train, capsys):
    shots = "DATASET.NUM_SHOTS", "1"
    for seed in "123":
        assert train("CoOp", "red", *shots, flags=at(data, "--output-dir", f"runs/{seed}", "--seed", seed)) == 0
    assert len({read_results(f"runs/{seed}/results.json")["data_fingerprint"] for seed in "123"}) > 1
    assert "[1]" not in table_of(capsys, "runs")
    invert(data / "red")
    assert train("CoOp", "red", *shots, flags=at(data, "--output-dir", "runs/4", "--seed", "4")) == 0
    assert "[1] Not comparable: other test images than most runs" in table_of(capsys, "runs")
