"""MiniDigits: drawn once, equal on every machine. Its tiny CLIP classifies it."""

import multiprocessing
import os

import numpy as np
import pytest
from dataset_trees import config, read_only
from PIL import Image
from quick_run import REPOSITORY
from waiting import MINUTES

from datasets import mini_digits as drawing
from datasets.mini_digits import VERSION_FILE, MiniDigits

CLIP_FILE = REPOSITORY / "assets/mini_clip.pt"


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


def pixels(images, domain, label):
    folder = images / domain / drawing.CLASSES[label]
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


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
    assert sorted(os.listdir(images.parent)) == [".lock", "images", "spg_coop_splits"]


def _draw_together(root, barrier, failures):
    try:
        barrier.wait(MINUTES)
        MiniDigits(config(root, ["h"]))
    except BaseException as error:
        failures.put(repr(error))
        raise


def test_several_processes_draw_once(tmp_path, few):
    context = multiprocessing.get_context("fork")  # inherits the two images a class
    barrier, failures = context.Barrier(3), context.SimpleQueue()
    processes = [context.Process(target=_draw_together, args=(tmp_path, barrier, failures)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(MINUTES)
    assert failures.empty() and [process.exitcode for process in processes] == [0, 0, 0]
    assert len(contents(tmp_path)) == 80


def test_failure_leaves_no_images(tmp_path, few, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(drawing, "draw", fail)
    with pytest.raises(OSError, match="No space left on device"):
        MiniDigits(config(tmp_path, ["h"]))
    assert os.listdir(tmp_path / "mini_digits") == [".lock"]


@pytest.mark.parametrize("is_read_only", [False, True])
def test_without_a_writable_root_the_cache_is_used(is_read_only, tmp_path, few, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    with read_only(tmp_path / "data"):
        found = MiniDigits(config(tmp_path / "data" if is_read_only else "", ["h"], output=tmp_path))
    assert found.dataset_dir == str(tmp_path / "cache/spg-dg/mini_digits")
    assert (f"{tmp_path}/data is read-only" in capsys.readouterr().out) == is_read_only


def test_images_in_a_read_only_root_are_used(tmp_path, few):
    MiniDigits(config(tmp_path / "data", ["h"]))
    with read_only(tmp_path / "data"):
        assert MiniDigits(config(tmp_path / "data", ["h"])).dataset_dir == str(tmp_path / "data/mini_digits")


# --- the CLIP ---


@pytest.fixture(scope="module")
def clip_model():
    import torch
    from clip.model import build_model

    assert os.path.getsize(CLIP_FILE) <= 8_000_000
    return build_model(torch.load(CLIP_FILE, weights_only=True)).float()


# About nine tenths of its accuracy; chance is 10 %.
@pytest.mark.parametrize(("domain", "floor"), [("display", 62), ("handwritten", 62), ("printed", 74), ("sketch", 76)])
def test_clip_classifies_digits_zero_shot(clip_model, root, domain, floor):
    import torch
    from clip import tokenize

    mean, std = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])
    pictures = np.concatenate([pixels(root / "mini_digits/images", domain, label) for label in range(10)])
    inputs = ((torch.from_numpy(pictures) / 255 - mean) / std).permute(0, 3, 1, 2)
    prompts = tokenize([f"a photo of a {name}." for name in drawing.CLASSES])
    with torch.no_grad():
        found = clip_model(inputs, prompts)[0].argmax(1)
    accuracy = 100 * (found == torch.arange(10).repeat_interleave(40)).float().mean().item()
    assert floor < accuracy < 97  # and leaves something to learn
