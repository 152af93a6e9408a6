"""Image contents identify data sets: a moved set is equal, a set changed in place is another one."""

import os
import shutil

import pytest
from PIL import Image, ImageOps

from common.run import read_results
from scripts import results as tables
from trainers.base.trainer import PromptTrainer

evaluate = PromptTrainer._evaluate


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


@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "SPG"])
def test_finished_run_skips_moved_images_and_raises_on_changed_ones(trainer, images, train, expect_error, capsys):
    assert train(trainer, "red", flags=at(images)) == 0
    images = move(images)
    capsys.readouterr()
    assert train(trainer, "red", flags=at(images)) == 0
    assert "holds a finished run; skipped" in capsys.readouterr().out
    invert(images / "red")
    message = "run holds a finished run with other settings or data: other test images. Delete it"
    assert message in expect_error(trainer, "red", flags=at(images))
    if trainer != "ZeroshotCLIP":
        invert(images / "blue")
        assert "other training images" in expect_error(trainer, "red", flags=at(images))


@pytest.mark.parametrize(("trainer", "changed"), [("CoOp", "red"), ("SPG", "blue"), ("LinearProbe", "")])
def test_unfinished_run_resumes_on_equal_images(trainer, changed, images, train, monkeypatch, capsys):
    def stop(trainer, split):
        if split == "test":
            raise KeyboardInterrupt
        return evaluate(trainer, split)

    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "_evaluate", stop)
        assert train(trainer, "red", flags=at(images)) == 130
    images = move(images)
    if changed:
        invert(images / changed)
    capsys.readouterr()
    code, printed = train(trainer, "red", flags=at(images)), capsys.readouterr()
    if not changed:
        assert code == 0 and "Resuming after epoch" in printed.out
    else:
        images = "other test images" if changed == "red" else "other training images"
        assert code == 1 and f"holds an unfinished run with other settings or data: {images}" in printed.err


def test_features_and_labels_are_reused_for_moved_images_alone(images, train, tmp_path, expect_error, capsys):
    opts = "TRAINER.FEATURES.TRAIN_VIEWS", "2"
    assert train("SPG", "red", *opts, flags=at(images)) == 0
    images = move(images, rename=False)
    capsys.readouterr()
    assert train("SPG", "red", *opts, flags=at(images, "--output-dir", "again")) == 0
    assert "Encoded" not in capsys.readouterr().out
    first, again = (read_results(tmp_path / name / "results.json") for name in ("run", "again"))
    assert first["accuracy"] == again["accuracy"] and first["val_history"] == again["val_history"]
    invert(images / "red")
    assert train("SPG", "red", *opts, flags=at(images, "--output-dir", "other")) == 0
    assert "Encoded 10 images (red, test)" in capsys.readouterr().out
    invert(images / "green")
    message = expect_error("SPG", "red", *opts, flags=at(images, "--output-dir", "third"))
    assert "was trained with other settings: other training images" in message


def test_images_changed_during_run_stop_it_without_results(images, train, expect_error, tmp_path, monkeypatch):
    def change(trainer, split):
        found = evaluate(trainer, split)
        if split == "test":
            invert(images / "red/down")
        return found

    monkeypatch.setattr(PromptTrainer, "_evaluate", change)
    message = expect_error("ZeroshotCLIP", "red", flags=at(images))
    assert "images of the data set changed during the run" in message
    assert not (tmp_path / "run/results.json").exists()


def table_of(capsys, *folders):
    capsys.readouterr()
    assert tables.main([*folders]) == 0
    return capsys.readouterr().out


def test_table_marks_columns_with_other_images_of_a_domain(images, train, capsys):
    assert train("CoOp", "red", flags=at(images, "--output-dir", "runs/red")) == 0
    invert(images / "red")
    assert train("CoOp", "green", flags=at(images, "--output-dir", "runs/green")) == 0
    assert "[1] Not comparable: other images of red than other runs of this table." in table_of(capsys, "runs")
