"""scripts/datasets.py: counts, damaged files, copies and samples of full, half and damaged sets."""

import shutil

import numpy as np
import pytest
from dataset_trees import make_set
from PIL import Image

from datasets.benchmarks import SPG_PACS
from scripts.datasets import main


@pytest.fixture
def pacs(tmp_path, monkeypatch):
    """PACS in DomainBed's layout under data: two images of each class in each domain, all different."""
    monkeypatch.chdir(tmp_path)
    folder = make_set(tmp_path / "data", SPG_PACS, SPG_PACS.layouts[1], per_class=2)
    for number, path in enumerate(sorted(folder.rglob("*.jpg"))):
        with path.open("ab") as handle:
            handle.write(b"%d" % number)
    return folder


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
    assert sorted((str(path), path.lstat().st_mtime_ns) for path in pacs.rglob("*")) == before


def test_half_and_missing_sets_are_reported(pacs, table):
    shutil.rmtree(pacs / "cartoon")
    shutil.rmtree(pacs / "sketch/person")
    rows, out = table("--classes", "--fast")
    assert rows["images"] == ["14", "0", "14", "12"] and rows["person"] == ["2", "0", "2", "0"]
    assert all(f"{name}: not found\n" in out for name in ("vlcs", "office_home", "terra_incognita", "domainnet"))
    assert "To download a set: python scripts/download.py NAME --root data" in out


def test_damaged_files_and_copies_are_named(pacs, table):
    good = pacs / "photo/dog/pic_000.jpg"
    (pacs / "photo/dog/cut off.jpg").write_bytes(good.read_bytes()[:100])
    (pacs / "sketch/dog/größe.jpg").write_text("<html>404</html>")
    shutil.copy(good, pacs / "cartoon/horse/copy.jpg")
    rows, out = table("pacs")
    assert (rows["unreadable"], rows["copies"]) == (["0", "0", "1", "1"], ["0", "1", "1", "0"])
    assert f"Cannot read the image {pacs}/sketch/dog/größe.jpg: " in out
    assert f"Copies: {pacs}/cartoon/horse/copy.jpg = {good}" in out


def test_samples_of_an_own_folder_show_each_domain_and_class(tmp_path, table):
    colours = {(d, c): (80 * d + 20, 100 * c + 10, 60) for d in (0, 1) for c in (0, 1)}
    for (d, c), colour in colours.items():
        folder = tmp_path / f"my images/domain{d}/class{c}"
        folder.mkdir(parents=True)
        Image.new("RGB", (30, 30), colour).save(folder / "1.png")
    _, out = table(tmp_path / "my images", "--thumbnails", tmp_path / "sheet.png")
    assert f"my images: {tmp_path}/my images (any folder, 2 domains), 2 classes" in out
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    at = {place: np.argwhere((sheet == colour).all(-1)).mean(0) for place, colour in colours.items()}
    assert at[0, 0][0] == at[0, 1][0] < at[1, 0][0]  # rows are domains
    assert at[0, 0][1] == at[1, 0][1] < at[0, 1][1]  # columns are classes


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
