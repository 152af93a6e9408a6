"""MiniDigits: drawn once, equal on every machine."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from dataset_trees import config, read_only
from PIL import Image

from datasets import mini_digits as drawing
from datasets.mini_digits import VERSION_FILE, MiniDigits


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with all images."""
    root = tmp_path_factory.mktemp("root")
    MiniDigits.data_root(config(root))
    return root


@pytest.fixture
def few(monkeypatch):
    """Two images a class, for tests that draw again."""
    monkeypatch.setattr(drawing, "IMAGES_PER_CLASS", 2)
    monkeypatch.setattr(MiniDigits, "image_counts", dict.fromkeys(drawing.DOMAINS, 20))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def test_mini_digits_is_a_complete_data_set(root, tmp_path):
    found = MiniDigits(config(root, ["h"], output=tmp_path))
    assert found.source_domains == ["display", "printed", "sketch"]
    assert found.classnames == list(drawing.CLASSES) and found.lab2cname[7] == "seven"
    assert (len(found.train_x), len(found.val), len(found.test)) == (840, 360, 400)
    with Image.open(found.test[0].impath) as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")
    assert len(set(contents(root).values())) == 1600


def test_images_drawn_again_are_the_same_bytes(root, tmp_path, few):
    drawing.render(tmp_path / "images")
    again, before = contents(tmp_path / "images"), contents(root / "mini_digits/images")
    assert len(again) == 80 and again.items() <= before.items()


def test_images_are_drawn_once_and_again_for_another_version(tmp_path, few, capsys, monkeypatch):
    images = tmp_path / "data/mini_digits/images"
    for version, expected in ((1, True), (1, False), (2, True)):
        monkeypatch.setattr(drawing, "VERSION", version)
        MiniDigits(config(tmp_path / "data", ["h"]))
        assert ("drawing its images" in capsys.readouterr().out) == expected
        assert (images / VERSION_FILE).read_text() == str(version) and len(contents(images)) == 80
    with read_only(tmp_path / "data"):
        assert MiniDigits(config(tmp_path / "data", ["h"])).dataset_dir == str(images.parent)
    assert sorted(os.listdir(images.parent)) == [".lock", "images", "spg_coop_splits"]


def test_images_of_parallel_runs_are_drawn_once(tmp_path, few, capsys):
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(MiniDigits, [config(tmp_path, ["h"])] * 3))
    assert all(len(one.test) == 20 for one in found)
    assert capsys.readouterr().out.count("drawing its images") == 1 and len(contents(tmp_path)) == 80


def test_failure_leaves_no_images(tmp_path, few, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(drawing, "draw", fail)
    with pytest.raises(OSError, match="No space left on device"):
        MiniDigits(config(tmp_path, ["h"]))
    assert os.listdir(tmp_path / "mini_digits") == [".lock"]


def test_without_a_writable_root_the_cache_is_used(tmp_path, few, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    with read_only(tmp_path / "data"):
        for root in (tmp_path / "data", ""):
            found = MiniDigits(config(root, ["h"], output=tmp_path))
            assert found.dataset_dir == str(tmp_path / "cache/spg-dg/mini_digits")
            assert (f"{tmp_path}/data is read-only" in capsys.readouterr().out) == (root != "")
