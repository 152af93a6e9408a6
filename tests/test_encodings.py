"""Locales, byte order marks and file names that are not UTF-8: text is UTF-8, and a name is its bytes."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from quick_run import REPOSITORY

from common.errors import UserError
from common.image_results import read_predictions
from common.run import read_results
from datasets.splits import read_split
from predict import main as predict
from trainers.config import default_cfg, merge_file

BOM = b"\xef\xbb\xbf"
ODD = os.fsdecode(b"caf\xe9.png")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}


@pytest.fixture
def images(image_folder, tmp_path):
    """A copy of the 30 images, without split files."""
    return shutil.copytree(image_folder, tmp_path / "images", ignore=shutil.ignore_patterns("spg_coop_splits"))


def test_launcher_in_an_ascii_locale_reads_names_as_utf8_and_prints_its_table(images, clip_file, tmp_path):
    for path in images.glob("*/across"):
        path.rename(path.with_name("zéro"))
    words = ["--methods", "zsclip", "--seeds", "1 2", "--targets", "red", str(images), str(clip_file)]
    command = [sys.executable, str(REPOSITORY / "scripts/launch.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **ASCII}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"\xb1" in done.stdout
    (path, *_) = tmp_path.glob("output/**/results.json")
    assert read_results(path)["classnames"] == ["down", "zéro"]
    split = json.loads((images / "spg_coop_splits/blue_train_val_split.json").read_bytes())
    assert {row[3] for row in split["train"]} == {"down", "zéro"}


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_text_in_another_encoding_raises(tmp_path, encoding):
    (tmp_path / "names.yaml").write_bytes("zéro\none\n".encode(encoding))
    with pytest.raises(UserError, match="not text in UTF-8; save it as UTF-8"):
        merge_file(default_cfg(), tmp_path / "names.yaml")


def test_predict_reads_lists_with_a_byte_order_mark(finish_run, image_folder, tmp_path):
    image = image_folder / "red/down/0.png"
    odd, names, listed, found = (tmp_path / name for name in (ODD, "names.txt", "images.txt", "found.csv"))
    shutil.copy(image, odd)
    names.write_bytes(BOM + b"down\r\nacross\r\n")
    listed.write_bytes(BOM + b"%s\n%s\n" % (os.fsencode(image), os.fsencode(odd)))
    words = ["--classnames", f"@{names}", "--list", listed, "--format", "csv", "--out", found]
    assert predict(list(map(str, ["--model-dir", finish_run("CoOp"), *words]))) == 0
    rows = [line.split(b",") for line in found.read_bytes().splitlines()[1:]]
    assert [row[0] for row in rows[::2]] == [os.fsencode(image), os.fsencode(odd)]
    assert {row[2] for row in rows} == {b"across", b"down"}
    assert rows[0][1:] == rows[2][1:]  # the same picture


def test_image_names_that_are_not_utf8_are_their_bytes(train, tmp_path, images):
    for path in images.glob("*/down/0.png"):
        path.rename(path.with_name(ODD))
    flags = ["--root", str(images)]
    assert train("SPG", "red", flags=flags) == 0
    assert f"red/down/{ODD}" in {row["path"] for row in read_predictions("run/predictions.csv")}
    assert b"red/down/caf\xe9.png" in (tmp_path / "run/predictions.csv").read_bytes()
    # The split file names it as well.
    assert train("SPG", "red", flags=[*flags, "--output-dir", "again"]) == 0
    assert read_predictions("again/predictions.csv") == read_predictions("run/predictions.csv")


def test_folder_names_that_are_not_utf8_raise(expect_error, images):
    for path in images.glob("*/down"):
        path.rename(path.with_name(os.fsdecode(b"\xfcdown")))
    assert "its name is not UTF-8" in expect_error("ZeroshotCLIP", "red", flags=["--root", str(images)])
    assert "is not UTF-8. Rename" in expect_error("CoOp", "red", flags=["--output-dir", os.fsdecode(b"r\xfcn")])
    assert not (images / "spg_coop_splits").exists()
