"""scripts/datasets.py: counts, damaged files, copies and samples of full, half and damaged sets."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from quick_run import REPOSITORY

from scripts.datasets import main

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


def picture(path, *seed):
    """A small picture, different for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (12, 10, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def pacs(tmp_path, monkeypatch):
    """PACS in DomainBed's layout under data: two images of each class in each domain, all different."""
    monkeypatch.chdir(tmp_path)
    for d, domain in enumerate(DOMAINS):
        for c, classname in enumerate(CLASSES):
            for k in range(2):
                picture(tmp_path / "data/PACS" / domain / classname / f"pic {k}.png", d, c, k)
    return tmp_path / "data/PACS"


@pytest.fixture
def table(capsys):
    """Run the script; return the rows of the tables by their first cell, and the output."""

    def call(*argv):
        capsys.readouterr()
        assert main([str(word) for word in argv]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line[:1] == "|"]
        return {row[0]: row[1:] for row in rows}, out

    return call


def test_complete_set_is_counted_and_not_changed(pacs, table):
    before = sorted((str(path), path.lstat().st_mtime_ns) for path in pacs.rglob("*"))
    rows, out = table("pacs")
    assert f"pacs: {pacs} (DomainBed, 4 domains), 7 classes" in out
    assert rows["known"] == ["2,048", "2,344", "1,670", "3,929"]
    for row, count in {"images": "14", "classes": "7", "unreadable": "0", "copies": "0"}.items():
        assert rows[row] == [count] * 4
    assert "Unreadable" not in out and "Copies" not in out
    assert sorted((str(path), path.lstat().st_mtime_ns) for path in pacs.rglob("*")) == before


def test_half_and_missing_sets_are_reported(pacs, table):
    shutil.rmtree(pacs / "cartoon")
    shutil.rmtree(pacs / "sketch/person")
    rows, out = table("--classes", "--fast")
    assert rows["images"] == ["14", "0", "14", "12"] and rows["classes"] == ["7", "0", "7", "6"]
    assert rows["person"] == ["2", "0", "2", "0"] and "unreadable" not in rows
    for name in ("vlcs", "office_home", "terra_incognita", "domainnet", "mini_digits"):
        assert f"{name}: not found\n" in out
    assert "To download a set: python scripts/download.py NAME --root data" in out


def test_damaged_files_and_copies_are_named(pacs, table):
    good = (pacs / "photo/dog/pic 0.png").read_bytes()
    (pacs / "photo/dog/cut off.png").write_bytes(good[:-40])
    (pacs / "sketch/dog/größe.jpg").write_text("<html>404</html>")
    (pacs / "sketch/dog/empty.jpg").touch()
    shutil.copy(pacs / "photo/dog/pic 0.png", pacs / "cartoon/horse/copy.png")
    rows, out = table("pacs")
    assert (rows["unreadable"], rows["copies"]) == (["0", "0", "1", "2"], ["0", "1", "1", "0"])
    assert f"{pacs}/sketch/dog/größe.jpg (Cannot read the image" in out
    assert f"Copies: {pacs}/cartoon/horse/copy.png = {pacs}/photo/dog/pic 0.png" in out


def test_own_folder_has_its_folder_name(tmp_path, table):
    for domain in ("Photo", "Ölgemälde von Hand"):
        picture(tmp_path / "my images" / domain / "Snow_Owl" / "x.png", len(domain))
    picture(tmp_path / "my images/Photo/Wolf/y.png", 0)
    rows, out = table(tmp_path / "my images", "--classes")
    assert f"my images: {tmp_path}/my images (any folder, 2 domains), 2 classes" in out
    assert (rows["images"], rows["known"], rows["snow owl"], rows["wolf"]) == (
        ["2", "1"], ["-", "-"], ["1", "1"], ["1", "0"]
    )  # fmt: skip


def test_samples_show_each_domain_and_class(tmp_path, table):
    colours = set()
    for d, domain in enumerate(("photo", "sketch")):
        for c, name in enumerate(("cat", "dog")):
            colours.add((80 * d + 20, 100 * c + 10, 60))
            path = tmp_path / "mine" / domain / name / "1.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (30, 30), (80 * d + 20, 100 * c + 10, 60)).save(path)
    table(tmp_path / "mine", "--thumbnails", tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    at = {colour: np.argwhere((sheet == colour).all(-1)).mean(0) for colour in colours}
    assert at[20, 10, 60][0] == at[20, 110, 60][0] < at[100, 10, 60][0]  # rows are domains
    assert at[20, 10, 60][1] == at[100, 10, 60][1] < at[20, 110, 60][1]  # columns are classes
    (tmp_path / "mine/photo/cat/1.png").write_bytes(b"no image")
    (tmp_path / "mine/photo/dog/1.png").unlink()
    table(tmp_path / "mine", "--thumbnails", tmp_path / "sheet.jpg")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--root", "nowhere"], "nowhere is no folder. Name the folder of data sets (--root)"),
        (["imagenet"], "Unknown data set 'imagenet': neither a folder nor one of"),
        (["data/PACS/photo/dog"], "must hold images as <domain>/<class>/<image>"),
        (["pacs", "--fast", "--thumbnails", "sheet.doc"], "Name a .png, .jpg or .pdf file."),
    ],
)
def test_mistakes_end_in_one_message(argv, message, pacs, capsys):
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert err.startswith("Error: ") and message in err and len(err.splitlines()) == 1


def test_command_runs_from_anywhere(pacs, tmp_path):
    command = [sys.executable, str(REPOSITORY / "scripts/datasets.py"), "pacs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "art_painting" in done.stdout
