"""Locales, byte order marks and file names that are not UTF-8: text is UTF-8, and a name is its bytes."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from quick_run import REPOSITORY, command_line

from common.errors import UserError
from common.files import read_text
from common.image_results import read_predictions
from common.run import read_results
from predict import main as predict
from scripts.reporting.published import read_published
from trainers.config import default_cfg, merge_file

BOM = b"\xef\xbb\xbf"
ODD = os.fsdecode(b"caf\xe9.png")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}


@pytest.fixture
def images(image_folder, tmp_path):
    """A copy of the 30 images, without split files."""
    return shutil.copytree(image_folder, tmp_path / "images", ignore=shutil.ignore_patterns("spg_coop_splits"))


@pytest.fixture
def accented(images):
    """The 30 images, with the class "zéro" in place of "across"."""
    for path in images.glob("*/across"):
        path.rename(path.with_name("zéro"))
    return images


@pytest.fixture(scope="session")
def latin_1(tmp_path_factory):
    """Environment variables of an ISO-8859-1 locale."""
    folder = tmp_path_factory.mktemp("locales")
    command = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / "en_US.ISO-8859-1")]
    if not shutil.which("localedef") or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs localedef and the sources of en_US, to make a locale")
    return {"LOCPATH": str(folder), "LC_ALL": "en_US.ISO-8859-1"}


def start(*words, cwd, **variables):
    environment = {**os.environ, **variables}
    return subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, check=False)


@pytest.mark.parametrize("locale", [ASCII, "latin_1"], ids=["ascii", "latin-1"])
def test_train_in_any_locale_reads_names_as_utf8(accented, clip_file, tmp_path, request, locale):
    variables = request.getfixturevalue(locale) if isinstance(locale, str) else locale
    arguments = command_line("CoOp", "red", root=accented, clip=clip_file)
    done = start(sys.executable, REPOSITORY / "train.py", *arguments, cwd=tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    assert read_results(tmp_path / "run/results.json")["classnames"] == ["down", "zéro"]
    split = json.loads((accented / "spg_coop_splits/blue_train_val_split.json").read_bytes())
    assert {row[3] for row in split["train"]} == {"down", "zéro"}


def test_launcher_with_an_ascii_terminal_prints_its_table(accented, clip_file, tmp_path):
    words = ["--methods", "zsclip", "--seeds", "1 2", "--targets", "red", accented, clip_file]
    done = start(sys.executable, REPOSITORY / "scripts/launch.py", *words, cwd=tmp_path, **ASCII)
    assert done.returncode == 0, done.stderr
    assert rb"\xb1" in done.stdout


def test_train_without_utf8_mode_raises(tmp_path):
    variables = {**ASCII, "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "compat")))}
    done = start(sys.executable, "-c", "import trainers.all", cwd=tmp_path, **variables)
    assert done.returncode == 1 and b"Start it with PYTHONUTF8=1." in done.stderr


def test_text_files_may_begin_with_a_byte_order_mark(tmp_path):
    config, figures = tmp_path / "config.yaml", tmp_path / "published"
    config.write_bytes(BOM + b"OPTIM:\n  MAX_EPOCH: 7\n")
    cfg = default_cfg()
    merge_file(cfg, config)
    assert cfg.OPTIM.MAX_EPOCH == 7
    figures.mkdir()
    for path in (REPOSITORY / "configs/published").glob("*.yaml"):
        (figures / path.name).write_bytes(BOM + path.read_bytes())
    assert read_published(figures) == read_published()


def test_split_file_with_a_byte_order_mark_is_read(train, images):
    flags = ["--root", str(images)]
    assert train("ZeroshotCLIP", "red", flags=flags) == 0
    for path in (images / "spg_coop_splits").glob("*.json"):
        path.write_bytes(BOM + path.read_bytes())
    assert train("ZeroshotCLIP", "red", flags=[*flags, "--output-dir", "again"]) == 0
    assert read_predictions("again/predictions.csv") == read_predictions("run/predictions.csv")


def test_dassl_json_with_a_byte_order_mark_is_read(tmp_path):
    from dassl.utils import read_json

    (tmp_path / "split.json").write_bytes(BOM + b'{"train": []}')
    assert read_json(str(tmp_path / "split.json")) == {"train": []}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_text_in_another_encoding_raises(tmp_path, encoding):
    (tmp_path / "names.yaml").write_bytes("zéro\none\n".encode(encoding))
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read_text(tmp_path / "names.yaml")
    with pytest.raises(UserError, match="not text in UTF-8; save it as UTF-8"):
        merge_file(default_cfg(), tmp_path / "names.yaml")


def test_predict_reads_lists_with_a_byte_order_mark(finish_run, image_folder, tmp_path, capsys):
    folder = str(finish_run("CoOp"))
    image = image_folder / "red/down/0.png"
    odd = tmp_path / ODD
    shutil.copy(image, odd)
    (tmp_path / "names.txt").write_bytes(BOM + b"down\r\nacross\r\n")
    (tmp_path / "images.txt").write_bytes(BOM + b"%s\n%s\n" % (os.fsencode(image), os.fsencode(odd)))
    arguments = ["--list", str(tmp_path / "images.txt"), "--format", "csv", "--out", str(tmp_path / "found.csv")]
    assert predict(["--model-dir", folder, "--classnames", f"@{tmp_path / 'names.txt'}", *arguments]) == 0
    rows = [line.split(b",") for line in (tmp_path / "found.csv").read_bytes().splitlines()[1:]]
    assert [row[0] for row in rows[::2]] == [os.fsencode(image), os.fsencode(odd)]
    assert {row[2] for row in rows} == {b"across", b"down"}
    assert rows[0][1:] == rows[2][1:]  # the same picture
    (tmp_path / "names.txt").write_bytes("down\nacross\n".encode("utf-16"))
    assert predict(["--model-dir", folder, "--classnames", f"@{tmp_path / 'names.txt'}", str(image)]) == 1
    assert "not text in UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("trainer", ["SPG", "LinearProbe"])
def test_image_names_that_are_not_utf8_are_their_bytes(train, tmp_path, images, trainer):
    for path in images.glob("*/down/0.png"):
        path.rename(path.with_name(ODD))
    flags = ["--root", str(images)]
    assert train(trainer, "red", flags=flags) == 0
    assert f"red/down/{ODD}" in {row["path"] for row in read_predictions("run/predictions.csv")}
    assert b"red/down/caf\xe9.png" in (tmp_path / "run/predictions.csv").read_bytes()
    # The split file names it as well.
    assert train(trainer, "red", flags=[*flags, "--output-dir", "again"]) == 0
    assert read_predictions("again/predictions.csv") == read_predictions("run/predictions.csv")


@pytest.mark.parametrize("place", ["*", "*/down"], ids=["domain", "class"])
def test_folder_names_that_are_not_utf8_raise(expect_error, images, place):
    for path in images.glob(place):
        path.rename(path.with_name(os.fsdecode(b"\xfc" + path.name.encode())))
    assert "its name is not UTF-8" in expect_error("ZeroshotCLIP", "red", flags=["--root", str(images)])
    assert not (images / "spg_coop_splits").exists()


def test_an_output_folder_that_is_not_utf8_is_one_message(expect_error):
    assert "is not UTF-8. Rename" in expect_error("CoOp", "red", flags=["--output-dir", os.fsdecode(b"r\xfcn")])


def test_run_config_contains_any_folder_name(train, tmp_path, images):
    root = images.rename(images.with_name(os.fsdecode(b"bilder\xfc")))
    assert train("ZeroshotCLIP", "red", flags=["--root", str(root)]) == 0
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_bytes())["DATASET"]["ROOT"] == str(root)
