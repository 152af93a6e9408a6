"""predict.py and Predictor: class names for images, from any trained run."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import predict
from common.errors import UserError
from common.image_results import read_predictions
from common.run import read_run_record
from predict import main
from trainers.predictor import Predictor


@pytest.fixture
def images(image_folder):
    return sorted(map(str, (image_folder / "red").rglob("*.png")))


@pytest.mark.parametrize("trainer", ["SPG", "LinearProbe", "ZeroshotCLIP2"])
def test_predictor_on_test_images_equals_the_test(finish_run, image_folder, tmp_path, monkeypatch, trainer):
    folder = finish_run(trainer)
    moved = shutil.copytree(image_folder, tmp_path / "elsewhere")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace(str(image_folder), "nowhere"))  # the data set is not needed
    tested = read_predictions(folder / "predictions.csv")
    found = Predictor(folder)([moved / row["path"].rpartition("stripes/")[2] for row in tested])
    for row, top in zip(tested, found, strict=True):
        assert {name for name, _ in top} == {"across", "down"}
        assert sum(probability for _, probability in top) == pytest.approx(1, abs=1e-5)
        if trainer != "SPG":  # the test seeds its noise by the image's place in the split, predict.py by pixels
            assert top[0][1] == pytest.approx(row["confidence"], abs=1e-3)
            if row["confidence"] > 0.5:  # one of two classes, which no rounding turns round
                assert top[0][0] == row["prediction"]


def test_prediction_depends_on_the_image_alone(finish_run, images):
    folder = finish_run("SPG")
    expected = Predictor(folder)(images)

    def distance(found):
        return max(abs(dict(one)[name] - p) for one, other in zip(found, expected, strict=True) for name, p in other)

    assert distance(Predictor(folder, batch_size=1)(images)) < 1e-5
    assert distance(Predictor(folder, batch_size=3, workers=1)(images[::-1])[::-1]) < 1e-5
    assert distance(Predictor(folder)([Image.open(path) for path in images])) < 1e-5
    assert distance(Predictor(folder, seed=7)(images)) > 1e-7
    assert distance(Predictor(folder, n_prompts=4)(images)) > 1e-7


def test_predictor_is_imported_from_predict_and_takes_a_list(finish_run, images):
    predictor = predict.Predictor(finish_run("CoOp"))
    assert predictor([]) == []
    for wrong, message in ((images[0], "not the single"), (["nowhere.png"], "nowhere.png")):
        with pytest.raises(UserError, match=message):
            predictor(wrong)


def test_predictor_accepts_other_classes_unless_they_were_learned(finish_run, images, tmp_path, expect_error):
    words = ["--classnames", "a,b,c", images[0]]
    probe = finish_run("LinearProbe").rename(tmp_path / "probe")
    assert "knows only the classes" in expect_error("--model-dir", probe, *words)
    own = finish_run("CoOp", "TRAINER.COOP.CSC", "True").rename(tmp_path / "own")
    assert "knows only the classes of its training, across, down, not a, b, c" in expect_error(
        "--model-dir", own, *words
    )
    found = Predictor(finish_run("SPG"), classnames=["cat", "dog", "guinea pig"])(images, top_k=2)
    assert all(len(top) == 2 and {name for name, _ in top} <= {"cat", "dog", "guinea pig"} for top in found)


def test_predictor_of_an_unfinished_run_uses_its_last_epoch(finish_run, images, capsys):
    folder = finish_run("SPG", "TEST.FINAL_MODEL", "last_step")
    capsys.readouterr()
    expected = Predictor(folder)(images)
    assert capsys.readouterr().err == ""
    (folder / "results.json").unlink()
    record = read_run_record(folder)
    record.training = None
    record.write(folder)
    assert Predictor(folder)(images) == expected
    assert f"Note: the run in {folder} has not ended" in capsys.readouterr().err


def test_predict_command_prints_and_writes_predictions(finish_run, images, image_folder, tmp_path, capsys):
    folder = str(finish_run("CoOp"))
    capsys.readouterr()
    assert main(["--model-dir", folder, *images[:2], str(image_folder / "red" / "down"), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["image"] for entry in found] == [*images[:2], *images[5:]]
    assert {p["class"] for p in found[0]["predictions"]} == {"across", "down"}

    assert main(["--model-dir", folder, images[0], "--format", "csv", "--top-k", "1"]) == 0
    header, row = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["image", "rank", "class", "probability"] and row[:2] == [images[0], "1"]

    (tmp_path / "list.txt").write_text("\n".join(images[:3]))
    (tmp_path / "names.txt").write_text("cat\n\nguinea pig\n")
    words = ["--list", tmp_path / "list.txt", "--classnames", f"@{tmp_path / 'names.txt'}"]
    assert main(list(map(str, ["--model-dir", folder, *words, "--out", tmp_path / "found/table.txt"]))) == 0
    table = (tmp_path / "found/table.txt").read_text()
    assert capsys.readouterr().out == "" and len(table.splitlines()) == 5 and "guinea pig" in table


def test_unreadable_images_are_reported_at_the_end(finish_run, images, tmp_path, capsys):
    folder = str(finish_run("CoOp"))
    bad = [str(tmp_path / name) for name in ("cut.png", "empty.png", "bomb.png", "wide.png")]
    Path(bad[0]).write_bytes(Path(images[0]).read_bytes()[:-60])
    Path(bad[1]).write_bytes(b"")
    Image.new("1", (20000, 20000)).save(bad[2])
    Image.new("1", (60000, 1)).save(bad[3])
    capsys.readouterr()
    assert main(["--model-dir", folder, images[0], *bad, "nowhere.png", images[1], "--format", "json"]) == 1
    printed = capsys.readouterr()
    assert [entry["image"] for entry in json.loads(printed.out)] == images[:2]
    assert "5 of 7 images cannot be read" in printed.err and "Image not found: nowhere.png\n" in printed.err
    assert all(name in printed.err for name in bad)
    assert main(["--model-dir", folder, bad[0]]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("Error: 1 of 1 images cannot be read:")


@pytest.fixture
def expect_error(capsys):
    """Run predict.py, expect exit code 1, and return the one message on stderr."""

    def run(*arguments):
        capsys.readouterr()
        assert main(list(map(str, arguments))) == 1
        message = capsys.readouterr().err
        assert message.startswith("Error: ") and "Traceback" not in message
        return message

    return run


def test_predict_with_mistakes_prints_one_message(finish_run, images, tmp_path, expect_error):
    folder, image = finish_run("CoOp"), images[0]
    (tmp_path / "empty").mkdir()
    for model_dir, words, message in (
        ("nowhere", [image], "nowhere has no config.yaml"),
        (folder / "config.yaml", [image], "config.yaml has no config.yaml"),
        (tmp_path / "empty", [image], "has no config.yaml"),
        (folder, [], "No images are named"),
        (folder, [tmp_path / "empty"], "no images in the folder"),
        (folder, ["--list", "nowhere.txt"], "--list nowhere.txt cannot be read"),
        (folder, ["--classnames", "@nowhere.txt", image], "--classnames nowhere.txt cannot be read"),
        (folder, ["--classnames", "cat,dog,cat", image], "given twice: cat"),
        (folder, ["--classnames", "cat,,dog", image], "Class name '' has no word in it"),
        (folder, ["--classnames", "One,one,two", image], "Class names 'One' and 'one': they have the same tokens"),
        (folder, ["--classnames", "dog," + "very " * 80 + "long", image], "Shorten the name"),
        (folder, ["--top-k", "0", image], "numbers from 1"),
        (folder, ["--out", folder / "config.yaml/x", image], "File exists: "),
    ):
        assert message in expect_error("--model-dir", model_dir, *words)
    (folder / "config.yaml").write_text("no config")
    assert "config.yaml cannot be used" in expect_error("--model-dir", folder, image)


def test_predictor_without_its_files_is_an_error(finish_run, images, tmp_path, clip_file, expect_error):
    folder, state = finish_run("CoOp"), torch.load(clip_file, weights_only=True)
    torch.save({**state, "text_projection": state["text_projection"] + 1}, tmp_path / "other.pt")
    words = ["--model-dir", folder, images[0]]
    assert "holds other weights" in expect_error(*words, "--backbone", tmp_path / "other.pt")
    shutil.rmtree(folder / "prompt_learner")
    message = expect_error(*words)
    assert "Checkpoint not found: " in message and "prompt_learner/model-best.pth.tar" in message
    for name in ("results.json", "run.json"):
        (folder / name).unlink()
    assert "nothing was trained there yet" in expect_error(*words)


def test_predictor_of_checkpoint_folder_needs_flags(finish_run, images, tmp_path, clip_file, expect_error, capsys):
    """CoOp's own runs leave such a folder. Flags give the missing facts."""
    folder, theirs = finish_run("CoOp", "TEST.FINAL_MODEL", "last_step"), tmp_path / "theirs"
    shutil.copytree(folder / "prompt_learner", theirs / "prompt_learner")
    settings = {"trainer": "CoOp", "backbone": clip_file, "classnames": ["across", "down"]}
    for one, other in zip(Predictor(theirs, **settings)(images), Predictor(folder)(images), strict=True):
        assert dict(one) == pytest.approx(dict(other), abs=1e-5)
    words, flags = ["--model-dir", theirs, images[0]], ["--trainer", "CoOp", "--backbone", clip_file]
    classes = ["--classnames", "across,down"]
    capsys.readouterr()
    assert main(list(map(str, [*words, *flags, *classes]))) == 0
    assert "across" in capsys.readouterr().out
    for wrong, message in (
        ([], "--trainer, --config-file, --backbone, --classnames"),
        (flags, "which classes to choose from. Name them (--classnames"),
        (["--trainer", "Other", *classes], "Unknown trainer 'Other'"),
        (["--config-file", "a.yaml", *classes], "add --trainer."),
        (["--trainer", "CoCoOp", "--backbone", clip_file, *classes], "does not fit this run: it holds"),
    ):
        assert message in expect_error(*words, *wrong)
    assert "leave these out" in expect_error("--model-dir", folder, images[0], *flags)
