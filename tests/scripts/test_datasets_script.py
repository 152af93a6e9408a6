"""scripts/datasets.py: what it finds in whole, half and damaged sets, and that it only looks."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from datasets.survey import why_unreadable
from datasets.thumbnails import EDGE, spread
from PIL import Image
from quick_run import REPOSITORY

from datasets import survey as survey_module
from scripts.datasets import main

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


def picture(path, seed):
    """A small picture that no other seed has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (12, 10, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def pacs(tmp_path):
    """PACS in DomainBed's layout under tmp_path/data: two images of each class in each domain, all different."""
    for d, domain in enumerate(DOMAINS):
        for c, classname in enumerate(CLASSES):
            for k in range(2):
                picture(tmp_path / "data/PACS" / domain / classname / f"pic {k}.png", [d, c, k])
    return tmp_path / "data/PACS"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the script in tmp_path; returns its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        capsys.readouterr()
        code = main([str(word) for word in argv])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def table(run):
    """Run it, expect exit code 0, and return the rows of all tables by their first cell."""

    def call(*argv):
        code, out, err = run(*argv)
        assert (code, err) == (0, "")
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line[:1] == "|"]
        return {row[0]: row[1:] for row in rows}, out

    return call


def everything_below(folder):
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


def test_a_sound_set(pacs, table):
    before = everything_below(pacs.parent)
    rows, out = table("pacs")
    assert rows["pacs"] == ["DomainBed", str(pacs), "4", "7", "56", "9,991", "0", "0"]
    assert rows["sketch"] == ["7", "14", "3,929", "0", "0", "0"]
    assert rows["all"] == ["", "56", "9,991", "0", "0", "0"]
    assert "- " not in out.replace("--", "").replace("| - ", "")  # no findings
    assert "Not found" not in out
    assert everything_below(pacs.parent) == before  # no split, no index


def test_large_domains_get_no_index(pacs, table, monkeypatch):
    monkeypatch.setattr("datasets.listing.INDEX_MIN_IMAGES", 1)
    before = everything_below(pacs)
    table("pacs", "--fast")
    assert everything_below(pacs) == before


def test_sets_that_are_missing_come_with_the_command(pacs, table):
    (pacs.parent / "vlcs/readme").mkdir(parents=True)
    rows, out = table("--root", pacs.parent)
    assert rows["pacs"][4] == "56"
    for name in ("vlcs", "office_home", "terra_incognita", "domainnet", "mini_digits"):
        assert rows[name] == ["not found", *"-------"]
    assert f"  office_home: python scripts/download.py office_home --root {pacs.parent}\n" in out
    assert f"vlcs --root {pacs.parent}  # vlcs is there, but has no domain in it: half-extracted?" in out
    assert f"  mini_digits: DATA={pacs.parent} bash scripts/spg/main.sh" in out


def test_every_set_of_the_configs_is_looked_for(tmp_path, table):
    (tmp_path / "data").mkdir()
    rows, _ = table()
    configs = {path.stem for path in (REPOSITORY / "configs/datasets").glob("*.yaml")}
    assert {name for name in rows if not name.startswith("-")} == {"set", *configs} - {"folder"}


def test_a_half_extracted_set(pacs, table):
    shutil.rmtree(pacs / "cartoon")
    shutil.rmtree(pacs / "photo/dog")
    shutil.rmtree(pacs / "sketch/person")
    (pacs / "sketch/person").mkdir()
    picture(pacs / "sketch/zebra/x.png", 1)
    rows, out = table("pacs", "--classes")
    assert rows["pacs"][2:5] == ["3 of 4", "7", "39"]
    assert rows["cartoon"] == ["0 of 7", "0", "2,344", "0", "0", "0"]
    assert rows["photo"][:2] == ["6 of 7", "12"]
    assert rows["person"] == ["2", "0", "2", "0", "4"]
    assert rows["zebra"] == ["0", "0", "0", "1", "1"]
    assert "- cartoon: there is no folder of this domain. Half-extracted?\n" in out
    assert "- photo: no folder for dog.\n" in out
    assert "- sketch: no images of person.\n" in out
    assert "- sketch: these folders are no classes of the set: zebra.\n" in out


def test_a_set_with_parts_that_lacks_one(tmp_path, table):
    for domain in ("CALTECH", "SUN"):
        picture(tmp_path / "data/VLCS" / domain / "full/0/x.png", 1)
    picture(tmp_path / "data/VLCS/SUN/test/0/y.png", 2)
    rows, out = table("vlcs")
    assert rows["vlcs"][2:5] == ["2 of 4", "1 of 5", "3"]
    assert (rows["caltech"][1], rows["sun"][1]) == ("1", "2")
    assert f"- caltech: {tmp_path}/data/VLCS/CALTECH has no folder 'test'" in out


def test_another_number_of_classes(tmp_path, table):
    for name in ("TV", "Alarm_Clock"):
        picture(tmp_path / "data/office_home/Art" / name / "x.png", 1)
    picture(tmp_path / "data/office_home/Real World/TV/x.png", 1)
    rows, out = table("office_home", "--classes")
    assert rows["office_home"][3] == "2 of 65"
    assert "- there are folders for 2 classes, not 65. In one domain only: alarm clock.\n" in out
    assert rows["alarm clock"] == ["1", "0", "0", "0", "1"]


def test_folders_that_contradict_each_other_do_not_hide_the_other_sets(pacs, table, tmp_path):
    for name in ("Art", "art"):
        picture(tmp_path / "data/office_home" / name / "TV/x.png", 1)
    rows, out = table("office_home", "pacs")
    assert rows["office_home"] == ["unclear, see below", *"-------"]
    assert rows["pacs"][4] == "56"
    assert "office_home: Two folders are both the domain art: " in out


def test_two_layouts_of_one_set(pacs, table):
    shutil.copytree(pacs / "photo", pacs.parent / "pacs2/images/photo")
    os.rename(pacs.parent / "pacs2", pacs.parent / "pacs")
    rows, out = table("pacs")
    assert rows["pacs"][0] == "DomainBed"
    assert "SPG_PACS is there more than once" in out
    assert "since it has more domains" in out


def test_unreadable_images(pacs, table, tmp_path):
    good = (pacs / "photo/dog/pic 0.png").read_bytes()
    (pacs / "photo/dog/cut off.png").write_bytes(good[:-40])
    (pacs / "photo/dog/größe.jpg").write_text("<html>404</html>")
    (pacs / "sketch/dog/empty.jpg").touch()
    (pacs / "sketch/dog/empty too.jpg").touch()
    (pacs / "sketch/dog/to nowhere.jpg").symlink_to("nowhere")
    (pacs / "sketch/dog/in circles.jpg").symlink_to("in circles.jpg")
    rows, out = table("pacs", "--json", "found.json")
    assert rows["pacs"][4:] == ["60", "9,991", "4", "0"]  # empty files are no copies of each other
    assert (rows["photo"][3], rows["sketch"][3]) == ("2", "2")
    assert "- unreadable images: 4\n" in out
    assert "    photo/dog/größe.jpg: no image that Pillow knows\n" in out
    assert "    sketch/dog/empty.jpg: empty\n" in out
    found = json.loads((tmp_path / "found.json").read_text())["sets"]["pacs"]
    assert list(found["unreadable"]) == [
        "photo/dog/cut off.png", "photo/dog/größe.jpg", "sketch/dog/empty too.jpg", "sketch/dog/empty.jpg",
    ]  # fmt: skip
    rows, out = table("pacs", "--fast", "--json", "found.json")
    assert rows["pacs"][4:] == ["60", "9,991", "-", "0"]
    assert rows["photo"][3] == rows["all"][3] == "-"
    assert "unreadable images" not in out
    assert json.loads((tmp_path / "found.json").read_text())["sets"]["pacs"]["unreadable"] is None


def test_only_some_examples_are_printed(pacs, table):
    for k in range(8):
        (pacs / f"photo/dog/bad {k}.jpg").write_text("no image")
    _, out = table("pacs")
    assert "photo/dog/bad 4.jpg" in out
    assert "photo/dog/bad 5.jpg" not in out
    assert "    and 3 more (--json FILE lists them)" in out


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_kind_of_image_is_readable(mode, tmp_path):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("RGB", (5, 5)).convert(mode).save(path)
    assert why_unreadable(path.read_bytes()) == ""


def test_too_large_an_image(tmp_path, monkeypatch):
    Image.new("1", (40, 40)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    reason = why_unreadable((tmp_path / "x.png").read_bytes())
    assert reason == "larger than the 1,400 pixels that Pillow decodes: scale it down"


def test_a_damaged_byte_is_noticed(tmp_path):
    picture(tmp_path / "x.png", 3)
    content = bytearray((tmp_path / "x.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    assert why_unreadable(bytes(content))


@pytest.mark.parametrize("flags", [(), ("--fast",)])
def test_duplicates_across_and_within_domains(flags, pacs, table, tmp_path):
    shutil.copy(pacs / "photo/dog/pic 0.png", pacs / "cartoon/horse/copy.png")
    shutil.copy(pacs / "photo/dog/pic 0.png", pacs / "photo/dog/again.png")
    (pacs / "sketch/house/linked.png").symlink_to(pacs / "sketch/dog/pic 1.png")
    same_size = bytearray((pacs / "art_painting/dog/pic 0.png").read_bytes())
    same_size[-20] ^= 1
    (pacs / "art_painting/dog/other.png").write_bytes(same_size)
    rows, out = table("pacs", "--json", "found.json", *flags)
    assert rows["pacs"][-1] == "2 (1 across domains)"
    assert [rows[domain][-2:] for domain in DOMAINS] == [["0", "0"], ["0", "1"], ["2", "2"], ["2", "0"]]
    assert "- images that several domains have: 1\n    cartoon/horse/copy.png = photo/dog/again.png = photo" in out
    assert "- images that one domain has more than once: 1\n    sketch/dog/pic 1.png = sketch/house/link" in out
    found = json.loads((tmp_path / "found.json").read_text())["sets"]["pacs"]
    assert found["duplicates"] == [
        ["cartoon/horse/copy.png", "photo/dog/again.png", "photo/dog/pic 0.png"],
        ["sketch/dog/pic 1.png", "sketch/house/linked.png"],
    ]


def test_files_of_a_size_of_their_own_are_not_read_without_need(pacs, run, monkeypatch):
    for number, path in enumerate(sorted(pacs.rglob("*.png"))):
        path.write_bytes(b"x" * (number + 1))
    monkeypatch.setattr(survey_module, "_examine", None)  # no process could be given this
    assert run("pacs", "--fast")[0] == 0


def test_json_has_everything(pacs, run, tmp_path):
    run("pacs", "vlcs", "--json", "new folder/found.json")
    found = json.loads((tmp_path / "new folder/found.json").read_text())
    assert found["not_found"] == {"vlcs": "python scripts/download.py vlcs --root data"}
    pacs_found = found["sets"]["pacs"]
    assert (pacs_found["dataset"], pacs_found["layout"], pacs_found["folder"]) == ("SPG_PACS", "DomainBed", str(pacs))
    assert pacs_found["domains"]["photo"] == {"images": 14, "known": 1670, "classes": dict.fromkeys(CLASSES, 2)}
    assert pacs_found["notes"] == pacs_found["duplicates"] == []
    assert pacs_found["unreadable"] == {}


@pytest.mark.parametrize("as_option", [True, False])
def test_own_folders(as_option, tmp_path, table):
    for domain in ("Photo", "Ölgemälde von Hand"):
        picture(tmp_path / "my images" / domain / "Snow_Owl" / "x.png", len(domain))
    picture(tmp_path / "my images/Photo/Wolf/y.png", 0)
    rows, out = table(*(["--folder"] if as_option else []), "my images", "--classes")
    assert rows["my images"] == ["any folder", f"{tmp_path}/my images", "2", "2", "3", "-", "0", "0"]
    assert rows["Photo"] == ["2", "2", "-", "0", "0", "0"]
    assert rows["Ölgemälde von Hand"][0] == "1 of 2"
    assert rows["snow owl"] == ["1", "1", "2"]
    assert "- Ölgemälde von Hand: no folder for wolf.\n" in out
    assert "pacs" not in rows


def test_file_names_of_any_bytes(tmp_path, table):
    folder = tmp_path / "mine/photo/dog"
    folder.mkdir(parents=True)
    try:
        with open(os.fsencode(folder) + b"/odd_\xff.jpg", "wb") as handle:
            handle.write(b"no image")
    except OSError:
        pytest.skip("this file system takes no such name")
    _, out = table("mine", "--json", "found.json")
    assert "photo/dog/odd_\ufffd.jpg: no image" in out or "photo/dog/odd_?.jpg: no image" in out
    unreadable = json.loads((tmp_path / "found.json").read_text())["sets"]["mine"]["unreadable"]
    assert list(unreadable) == ["photo/dog/odd_\udcff.jpg"]


# --- mistakes ---


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--root", "nowhere"], "nowhere does not exist. Name the folder that holds the datasets"),
        (["imagenet"], "Unknown data set 'imagenet': neither a folder nor one of"),
        (["--folder", "nowhere"], "nowhere does not exist"),
        (["--folder", "data/PACS/photo/dog"], "must hold images as <domain>/<class>/<image>"),
        (["pacs", "--thumbnails", "sheet.doc"], "--thumbnails sheet.doc: name a .png or .jpg file."),
        (["vlcs", "--thumbnails", "sheet.png"], "nothing to draw into sheet.png"),
        (["pacs", "--fast", "--json", "data/PACS/photo/dog/pic 0.png/x.json"], "Cannot write "),
        (["pacs", "--fast", "--json", "data"], "Cannot write "),
    ],
    ids=str,
)
def test_mistakes_end_in_one_message(argv, expected, pacs, run):
    code, _, err = run(*argv)
    assert code == 1
    assert err.startswith("Error: ")
    assert expected in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_numbers_are_positive(number, run, capsys):
    with pytest.raises(SystemExit):
        run("--per-cell", number)
    assert f"--per-cell: invalid positive value: '{number}'" in capsys.readouterr().err


def test_a_killed_process_is_a_message(pacs, run, monkeypatch):
    monkeypatch.setattr(survey_module, "why_unreadable", lambda content: os._exit(1))
    code, _, err = run("pacs")
    assert code == 1
    assert "A process that examined the images of pacs was killed" in err
    assert "--fast" in err


def test_as_a_command(pacs, tmp_path):
    command = [sys.executable, str(REPOSITORY / "scripts/datasets.py")]
    done = subprocess.run([*command, "pacs"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "| pacs  | DomainBed |" in done.stdout


# --- thumbnails ---


def colours(image):
    """The colours of the samples in a sheet, those with more pixels than letters and frames have."""
    return {colour for n, colour in image.getcolors(2**24) if n >= EDGE * EDGE // 2}


def test_the_sheet_has_samples_of_each_domain_and_class(tmp_path, run):
    expected = set()
    for d, domain in enumerate(("photo", "sketch")):
        for c, name in enumerate(("cat", "dog")):
            for k in range(3):
                colour = (80 * d + 20, 100 * c + 10, 60 * k + 40)
                path = tmp_path / "mine" / domain / name / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (300, 300) if k else (8, 8), colour).save(path)
                expected.add(colour)
    code, out, _ = run("mine", "--thumbnails", "sheet.png", "--per-cell", "3")
    assert code == 0
    sheet = Image.open(tmp_path / "sheet.png")
    assert f"Samples: sheet.png ({sheet.width} x {sheet.height} pixels)" in out
    assert colours(sheet) == expected | {(255, 255, 255)}
    # Rows are domains, columns classes: the first sample of each lies in that order.
    at = {colour: np.argwhere((np.asarray(sheet) == colour).all(-1))[0] for colour in expected}
    assert at[20, 10, 40][0] == at[20, 110, 40][0] < at[100, 10, 40][0]
    assert at[20, 10, 40][1] == at[100, 10, 40][1] < at[20, 110, 40][1]
    run("mine", "--thumbnails", "one.png", "--per-cell", "1", "--columns", "1")
    assert colours(Image.open(tmp_path / "one.png")) == {(20, 110, 100), (100, 110, 100), (255, 255, 255)}


def test_the_sheet_is_the_same_each_time_and_holds_all_sets(pacs, run, tmp_path):
    picture(tmp_path / "mine/photo/dog/x.png", 0)
    for name in ("a.png", "b.png", "c.jpg"):
        assert run("pacs", "mine", "--thumbnails", name)[0] == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Image.open(tmp_path / "c.jpg").size == Image.open(tmp_path / "a.png").size
    run("pacs", "--thumbnails", "alone.png")
    assert Image.open(tmp_path / "alone.png").height < Image.open(tmp_path / "a.png").height


def test_the_sheet_copes_with_anything(pacs, run, tmp_path):
    shutil.rmtree(pacs / "cartoon")
    shutil.rmtree(pacs / "photo/dog")
    for path in (pacs / "sketch/dog").iterdir():
        path.write_text("no image")
    Image.new("RGB", (300, 1)).save(pacs / "sketch/horse/pic 0.png")
    Image.new("CMYK", (1, 1)).save(pacs / "sketch/horse/one.jpg")
    picture(tmp_path / "mine" / ("a very long name of a domain " * 4) / ("日本語 class " * 10) / "x.png", 1)
    assert run("pacs", "mine", "--thumbnails", "sheet.png", "--per-cell", "3")[0] == 0
    assert (190, 30, 30) in {colour for _, colour in Image.open(tmp_path / "sheet.png").getcolors(2**24)}


def test_samples_are_spread():
    assert spread(list(range(9)), 3) == [1, 4, 7]
    assert spread([1, 2], 3) == [1, 2]
    assert spread([], 2) == []
    assert [len(set(spread(list(range(n)), 12))) for n in (12, 13, 345)] == [12, 12, 12]


def test_the_real_pacs_images(shared, table, tmp_path):
    before = everything_below(shared / "data")
    rows, _ = table("--root", shared / "data", "pacs", "--thumbnails", "sheet.png")
    assert rows["pacs"] == ["the authors'", f"{shared}/data/PACS/images", "4", "7", "1,120", "9,991", "0", "0"]
    assert everything_below(shared / "data") == before
