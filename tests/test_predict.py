"""predict.py and Predictor: class names for images, from any trained run."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from quick_run import REPOSITORY

import predict
from common.errors import UserError
from common.image_results import read_predictions
from common.run import read_run_record
from predict import main
from trainers.predictor import Predictor


@pytest.fixture
def images(image_folder):
    return sorted(map(str, (image_folder / "red").rglob("*.png")))


TRAINERS = ["SPG", "CoOp", "CoCoOp", "LinearProbe", "ZeroshotCLIP", "ZeroshotCLIP2"]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_predictor_on_test_images_equals_the_test(finish_run, images, image_folder, trainer):
    folder = finish_run(trainer)
    shutil.move(image_folder, image_folder.with_name("elsewhere"))  # the data set is not needed
    try:
        moved = [path.replace("/stripes/", "/elsewhere/") for path in images]
        found = Predictor(folder)(moved)
    finally:
        shutil.move(image_folder.with_name("elsewhere"), image_folder)
    tested = {row["path"].rpartition("stripes/")[2]: row for row in read_predictions(folder / "predictions.csv")}
    for path, top in zip(moved, found, strict=True):
        assert [name for name, _ in top] in (["across", "down"], ["down", "across"])
        assert sum(probability for _, probability in top) == pytest.approx(1, abs=1e-5)
        if trainer != "SPG":  # the test seeds its noise by the image's place in the split, predict.py by pixels
            row = tested[path.rpartition("elsewhere/")[2]]
            assert top[0][1] == pytest.approx(row["confidence"], abs=1e-3)
            if row["confidence"] > 0.5:  # one of two classes, which no rounding turns round
                assert top[0][0] == row["prediction"]


def test_prediction_depends_on_the_image_alone(finish_run, images):
    folder = finish_run("SPG")
    expected = Predictor(folder)(images)
    for found in (
        Predictor(folder, batch_size=1)(images),
        Predictor(folder, batch_size=3, workers=1)(images[::-1])[::-1],
        Predictor(folder)([Image.open(path) for path in images]),
    ):
        for one, other in zip(found, expected, strict=True):
            assert dict(one) == pytest.approx(dict(other), abs=1e-5)
    other_seed = Predictor(folder, seed=7)(images)
    assert any(dict(a) != pytest.approx(dict(b), abs=1e-7) for a, b in zip(expected, other_seed, strict=True))
    several = Predictor(folder, n_prompts=4)(images)
    assert any(dict(a) != pytest.approx(dict(b), abs=1e-7) for a, b in zip(expected, several, strict=True))


def test_predictor_in_three_lines_of_python_works(finish_run, images):
    folder = finish_run("CoOp")
    lines = f"""
from predict import Predictor
predictor = Predictor({str(folder)!r})
print(predictor([{images[0]!r}])[0][0][0])"""
    done = subprocess.run([sys.executable, "-c", lines], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == Predictor(folder)(images[:1])[0][0][0]
    assert predict.Predictor is Predictor
    with pytest.raises(AttributeError, match="no attribute 'predictor'"):
        predict.predictor  # noqa: B018
    assert Predictor(folder)([]) == []
    with pytest.raises(UserError, match="not the single"):
        Predictor(folder)(images[0])


def test_linear_probe_predicts_only_its_class_names(finish_run, images, expect_error):
    folder = finish_run("LinearProbe")
    assert "knows only the classes" in expect_error("--model-dir", folder, "--classnames", "cat,dog", images[0])


def test_predictor_accepts_other_class_names(finish_run, images):
    found = Predictor(finish_run("SPG"), classnames=["cat", "dog", "guinea pig"])(images, top_k=2)
    assert all(len(top) == 2 and {name for name, _ in top} <= {"cat", "dog", "guinea pig"} for top in found)


@pytest.mark.parametrize("trainer", ["CoOp", "SPG"])
def test_predictor_of_an_unfinished_run_uses_its_last_epoch(finish_run, images, capsys, trainer):
    folder = finish_run(trainer, "TEST.FINAL_MODEL", "last_step")
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
    assert header == ["image", "rank", "class", "probability"]
    assert row[:2] == [images[0], "1"]

    (tmp_path / "list.txt").write_text("\n".join(images[:3]))
    (tmp_path / "names.txt").write_text("cat\n\nguinea pig\n")
    out = tmp_path / "found" / "table.txt"
    arguments = ["--list", str(tmp_path / "list.txt"), "--classnames", f"@{tmp_path / 'names.txt'}", "--out", str(out)]
    assert main(["--model-dir", folder, *arguments]) == 0
    assert capsys.readouterr().out == ""
    assert len(out.read_text().splitlines()) == 5
    assert "guinea pig" in out.read_text()


def test_unreadable_images_are_reported_at_the_end(finish_run, images, tmp_path, capsys):
    folder = str(finish_run("CoOp"))
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    capsys.readouterr()
    assert main(["--model-dir", folder, images[0], str(bad), "nowhere.png", images[1], "--format", "json"]) == 1
    printed = capsys.readouterr()
    assert [entry["image"] for entry in json.loads(printed.out)] == images[:2]
    assert "2 of 4 images cannot be read" in printed.err
    assert str(bad) in printed.err and "Image not found: nowhere.png\n" in printed.err
    assert main(["--model-dir", folder, str(bad)]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("Error: 1 of 1 images cannot be read:")
    with pytest.raises(UserError, match="nowhere.png"):
        Predictor(folder)(["nowhere.png"])


def test_unusual_images_are_predicted_or_named(finish_run, images, tmp_path, capsys):
    good, expected = Image.open(images[0]), Path(images[0]).read_bytes()
    for name, mode in (("grey.png", "I;16"), ("cmyk.jpg", "CMYK"), ("bits.png", "1"), ("alpha.png", "RGBA")):
        (Image.new(mode, (40, 30)) if mode == "I;16" else good.convert(mode)).save(tmp_path / name)
    good.save(tmp_path / "animated.gif", save_all=True, append_images=[good.rotate(90)])
    bad = ["tall.png", "wide.png", "bomb.png", "cut.png", "empty.png"]
    for name, size in (("tall.png", (1, 60000)), ("wide.png", (60000, 1)), ("bomb.png", (20000, 20000))):
        Image.new("1", size).save(tmp_path / name)
    (tmp_path / "cut.png").write_bytes(expected[: len(expected) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    capsys.readouterr()
    assert main(["--model-dir", str(finish_run("CoOp")), str(tmp_path), "--format", "json"]) == 1
    printed = capsys.readouterr()
    found = {Path(entry["image"]).name for entry in json.loads(printed.out)}
    assert found == {"grey.png", "cmyk.jpg", "bits.png", "alpha.png", "animated.gif"}
    assert all(str(tmp_path / name) in printed.err for name in bad) and "images cannot be read" in printed.err


@pytest.fixture
def expect_error(capsys):
    def call(*arguments):
        capsys.readouterr()
        assert main(list(map(str, arguments))) == 1
        message = capsys.readouterr().err
        assert message.startswith("Error: ") and "Traceback" not in message
        return message

    return call


def test_predict_with_mistakes_prints_one_message(finish_run, images, tmp_path, expect_error):
    folder = finish_run("CoOp")
    assert "nowhere has no config.yaml" in expect_error("--model-dir", "nowhere", images[0])
    (tmp_path / "empty").mkdir()
    assert "has no config.yaml" in expect_error("--model-dir", tmp_path / "empty", images[0])
    assert "No images are named" in expect_error("--model-dir", folder)
    assert "no images in the folder" in expect_error("--model-dir", folder, tmp_path / "empty")
    assert "--list nowhere.txt cannot be read" in expect_error("--model-dir", folder, "--list", "nowhere.txt")
    message = expect_error("--model-dir", folder, "--classnames", "@nowhere.txt", images[0])
    assert "--classnames nowhere.txt cannot be read" in message
    assert "given twice: cat" in expect_error("--model-dir", folder, "--classnames", "cat,dog,cat", images[0])
    assert "Class name '' has no word in it" in expect_error(
        "--model-dir", folder, "--classnames", "cat,,dog", images[0]
    )
    message = expect_error("--model-dir", folder, "--classnames", "One,one,two", images[0])
    assert "Class names 'One' and 'one': they have the same tokens" in message
    assert "there is only cat" in expect_error("--model-dir", folder, "--classnames", "cat", images[0])
    assert "numbers from 1" in expect_error("--model-dir", folder, "--top-k", "0", images[0])
    (tmp_path / "file").write_text("")
    assert "File exists: " in expect_error("--model-dir", folder, "--out", tmp_path / "file" / "x", images[0])
    with pytest.raises(SystemExit):  # argparse prints the formats
        main(["--model-dir", str(folder), "--format", "xml", images[0]])
    with pytest.raises(UserError, match="a list of names"):
        Predictor(folder, classnames="cat")


def test_predictor_with_another_backbone_is_an_error(finish_run, images, tmp_path, expect_error):
    from reference import tiny_clip

    folder = finish_run("CoOp")
    state = tiny_clip().state_dict()
    state["text_projection"] += 1
    torch.save(state, tmp_path / "other.pt")
    assert "holds other weights" in expect_error("--model-dir", folder, "--backbone", tmp_path / "other.pt", images[0])
    assert "neither a file" in expect_error("--model-dir", folder, "--backbone", tmp_path / "none.pt", images[0])


def test_predictor_without_checkpoint_is_an_error(finish_run, images, expect_error):
    folder = finish_run("CoOp")
    shutil.rmtree(folder / "prompt_learner")
    message = expect_error("--model-dir", folder, images[0])
    assert "Checkpoint not found: " in message and "prompt_learner/model-best.pth.tar" in message
    for name in ("results.json", "run.json"):
        (folder / name).unlink()
    assert "nothing was trained there yet" in expect_error("--model-dir", folder, images[0])


def test_class_specific_contexts_accept_only_their_classes(finish_run, images, expect_error):
    folder = finish_run("CoOp", "TRAINER.COOP.CSC", "True")
    assert "knows only the classes of its training, across, down, not a, b, c" in expect_error(
        "--model-dir", folder, "--classnames", "a,b,c", images[0]
    )


def test_predictor_with_contradicting_config_or_class_names_is_an_error(finish_run, images, expect_error):
    folder = finish_run("SPG")
    assert "TEST.N_PROMPTS is 0; accepted: " in expect_error("--model-dir", folder, "--n-prompts", "0", images[0])
    assert "Shorten the name" in expect_error(
        "--model-dir", folder, "--classnames", "dog," + "very " * 80 + "long", images[0]
    )
    (folder / "config.yaml").write_text("no config")
    assert "config.yaml cannot be used" in expect_error("--model-dir", folder, images[0])


def test_predict_into_closed_pipe_is_no_error(finish_run, image_folder):
    command = [sys.executable, REPOSITORY / "predict.py", "--model-dir", finish_run("CoOp"), image_folder / "red"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""


def test_formats_accept_an_empty_list():
    assert predict.formatted([], "table") == ""
    assert json.loads(predict.formatted([], "json")) == []
    assert predict.formatted([], "csv").startswith("image,rank")


@pytest.mark.parametrize("trainer", ["CoOp", "CoCoOp"])
def test_predictor_of_checkpoint_folder_needs_flags(
    finish_run, images, tmp_path, clip_file, expect_error, capsys, trainer
):
    """CoOp's own runs leave such a folder. Flags give the missing facts."""
    folder = finish_run(trainer)
    expected = Predictor(folder)(images)
    shutil.copytree(folder / "prompt_learner", tmp_path / "theirs/prompt_learner")
    (tmp_path / "theirs/prompt_learner/model-best.pth.tar").unlink(missing_ok=True)
    settings = {"trainer": trainer, "backbone": clip_file, "classnames": ["across", "down"]}
    found = Predictor(tmp_path / "theirs", **settings)(images)
    last = Predictor(tmp_path / "theirs", config_file=str(folder / "config.yaml"), **settings)(images)
    for one, other in zip(found, last, strict=True):
        assert dict(one) == pytest.approx(dict(other), abs=1e-5)
    assert len(found) == len(expected)
    capsys.readouterr()

    words = ["--model-dir", tmp_path / "theirs", images[0]]
    assert "--trainer, --config-file, --backbone, --classnames" in expect_error(*words)
    flags = ["--trainer", trainer, "--backbone", clip_file]
    assert "which classes to choose from. Name them (--classnames" in expect_error(*words, *flags)
    classes = ["--classnames", "across,down"]
    assert main(list(map(str, [*words, *flags, *classes]))) == 0
    assert "across" in capsys.readouterr().out
    assert "Unknown trainer 'Other'" in expect_error(*words, "--trainer", "Other", *classes)
    assert "add --trainer." in expect_error(*words, "--config-file", "a.yaml", *classes)
    assert "leave these out" in expect_error("--model-dir", folder, images[0], *flags)
    wrong = "CoCoOp" if trainer == "CoOp" else "CoOp"
    assert "does not fit this run: it holds" in expect_error(
        *words, "--trainer", wrong, "--backbone", clip_file, *classes
    )
