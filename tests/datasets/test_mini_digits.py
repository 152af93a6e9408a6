"""MiniDigits: drawn once, the same everywhere; and the tiny CLIP that comes with it."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from dassl.config import get_cfg_default
from PIL import Image
from waiting import MINUTES

from common.errors import UserError
from datasets import mini_digits_render as drawing
from datasets.mini_digits import MiniDigits

CLIP_FILE = Path(__file__).resolve().parents[2] / "assets" / "mini_clip.pt"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The images, drawn once for all tests, which leave them as they are."""
    folder = tmp_path_factory.mktemp("root") / "mini_digits" / "images"
    drawing.render_once(folder)
    return folder


@pytest.fixture
def few(monkeypatch):
    """Two images a class, for tests that draw again."""
    monkeypatch.setattr(drawing, "IMAGES_PER_CLASS", 2)
    monkeypatch.setattr(MiniDigits, "image_counts", dict.fromkeys(drawing.DOMAINS, 20))


def config(root, sources=(), targets=("handwritten",)):
    cfg = get_cfg_default()
    cfg.DATASET.ROOT = str(root)
    cfg.DATASET.SOURCE_DOMAINS = tuple(sources)
    cfg.DATASET.TARGET_DOMAINS = tuple(targets)
    return cfg


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pixels(images, domain, label):
    name = drawing.CLASSES[label]
    return np.stack([np.asarray(Image.open(path)) for path in sorted((images / domain / name).iterdir())])


# --- the images ---


def test_folders_and_counts(images):
    assert sorted(path.name for path in images.iterdir()) == [
        "display",
        "handwritten",
        "printed",
        drawing.MARKER,
        "sketch",
    ]
    for domain in drawing.DOMAINS:
        assert {path.name for path in (images / domain).iterdir()} == set(drawing.CLASSES)
        for name in drawing.CLASSES:
            files = sorted(path.name for path in (images / domain / name).iterdir())
            assert files == [f"{number:03d}.png" for number in range(40)]
    with Image.open(images / "sketch" / "seven" / "039.png") as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")


def test_drawn_twice_they_are_the_same_bytes(images, tmp_path, few):
    drawing.render(tmp_path / "again")
    again = contents(tmp_path / "again")
    del again[drawing.MARKER]
    assert len(again) == 80
    assert {name: (images / name).read_bytes() for name in again} == again


def test_no_two_images_are_alike(images):
    all_bytes = [path.read_bytes() for path in images.rglob("*.png")]
    assert len(set(all_bytes)) == len(all_bytes) == 1600


def test_domains_look_as_they_should(images):
    mean = {
        domain: np.mean([pixels(images, domain, label).mean() for label in range(10)]) for domain in drawing.DOMAINS
    }
    assert mean["display"] < 110 < 150 < mean["printed"]  # most displays glow in the dark
    handwritten = pixels(images, "handwritten", 7).astype(int)
    assert (handwritten.max(-1) == handwritten.min(-1)).all()  # gray
    sketch, printed = (pixels(images, domain, 1).astype(float) for domain in ("sketch", "printed"))
    # An outline on rough paper has more edges than a filled digit.
    assert np.abs(np.diff(sketch, axis=2)).mean() > 1.2 * np.abs(np.diff(printed, axis=2)).mean()


def test_handwritten_digits_are_those_of_scikit_learn(images):
    from sklearn.datasets import load_digits

    digits = load_digits()
    known = 255 - digits.images.reshape(-1, 64) * 255 / 16
    for label in range(10):
        for image in pixels(images, "handwritten", label)[::4]:
            # The enlarged 8 x 8 cells lie in a margin of paper; reduced again, they are about what they were.
            assert (image[:8] == 255).all() and (image[:, 56:] == 255).all()
            cells = Image.fromarray(image[8:56, 8:56, 0]).resize((8, 8), Image.Resampling.BOX)
            differences = np.abs(known - np.asarray(cells, dtype=float).ravel()).mean(1)
            assert digits.target[differences.argmin()] == label
            assert differences.min() < 18  # grey levels: enlarging and reducing blurs


# --- drawing on first use ---


def test_it_becomes_a_data_set(images, tmp_path):
    cfg = config(images.parents[1], targets=["h"])
    cfg.OUTPUT_DIR = str(tmp_path)
    found = MiniDigits(cfg)
    assert found.source_domains == ["display", "printed", "sketch"]
    assert found.classnames == list(drawing.CLASSES)
    assert (len(found.train_x), len(found.val), len(found.test)) == (840, 360, 400)
    assert found.lab2cname[7] == "seven"
    assert all(f"/handwritten/{item.classname}/" in item.impath for item in found.test)


def test_it_is_drawn_where_the_root_does_not_exist_yet(tmp_path, few, capsys):
    MiniDigits(config(tmp_path / "data"))
    assert (tmp_path / "data/mini_digits/images/printed/nine/001.png").is_file()
    assert "drawing 80 images" in capsys.readouterr().out
    MiniDigits(config(tmp_path / "data"))
    assert "drawing" not in capsys.readouterr().out


def test_images_that_are_there_are_left_alone(tmp_path, few):
    folder = tmp_path / "images"
    drawing.render_once(folder)
    before = (folder / "printed/nine/001.png").stat()
    drawing.render_once(folder)
    assert (folder / "printed/nine/001.png").stat().st_mtime_ns == before.st_mtime_ns
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("marker", ['{"version": 0}', "not json", None])
def test_what_another_version_drew_is_drawn_again(tmp_path, few, marker):
    folder = tmp_path / "images"
    (folder / "printed/nine").mkdir(parents=True)
    (folder / "printed/nine/old.png").touch()
    if marker is not None:
        (folder / drawing.MARKER).write_text(marker)
    drawing.render_once(folder)
    assert sorted(path.name for path in (folder / "printed/nine").iterdir()) == ["000.png", "001.png"]
    assert drawing.is_current(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_newer_version_draws_other_images(tmp_path, few, monkeypatch):
    drawing.render_once(tmp_path / "images")
    before = contents(tmp_path / "images")
    monkeypatch.setattr(drawing, "VERSION", drawing.VERSION + 1)
    drawing.render_once(tmp_path / "images")
    after = contents(tmp_path / "images")
    assert after.keys() == before.keys()
    assert after["printed/nine/001.png"] != before["printed/nine/001.png"]


def _render_together(folder, barrier, failures):
    try:
        barrier.wait(MINUTES)
        drawing.render_once(folder)
        assert drawing.is_current(folder)
    except BaseException as error:
        failures.put(repr(error))
        raise


@pytest.mark.parametrize("stale", [False, True])
def test_several_processes_at_once(tmp_path, few, stale):
    folder = tmp_path / "images"
    if stale:
        folder.mkdir()
        (folder / "old.png").touch()
    context = multiprocessing.get_context("fork")  # takes the two images a class along
    barrier, failures = context.Barrier(3), context.SimpleQueue()
    processes = [context.Process(target=_render_together, args=(folder, barrier, failures)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(MINUTES)
    assert failures.empty() and [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(folder.rglob("*.png"))) == 80
    assert not (folder / "old.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_failure_leaves_nothing_behind(tmp_path, few, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(drawing, "draw", fail)
    with pytest.raises(UserError, match="No space left on device.*--root"):
        MiniDigits(config(tmp_path))
    assert list((tmp_path / "mini_digits").iterdir()) == []


def test_without_a_root_the_cache_is_used(tmp_path, few, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert MiniDigits(config("")).dataset_dir == str(tmp_path / "spg-dg/mini_digits")


def test_with_a_read_only_root_the_cache_is_used(tmp_path, few, monkeypatch, capsys):
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o555)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert MiniDigits(config(root)).dataset_dir == str(tmp_path / "cache/spg-dg/mini_digits")
    assert f"{root} is read-only" in capsys.readouterr().out
    assert list(root.iterdir()) == []


def test_images_in_a_read_only_root_are_used(tmp_path, few, monkeypatch):
    MiniDigits(config(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for folder in (tmp_path / "mini_digits", tmp_path):
        folder.chmod(0o555)
    assert MiniDigits(config(tmp_path)).dataset_dir == str(tmp_path / "mini_digits")
    for folder in (tmp_path, tmp_path / "mini_digits"):
        folder.chmod(0o755)


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "data").touch()
    with pytest.raises(UserError, match="data is a file"):
        MiniDigits(config(tmp_path / "data"))


# --- the CLIP ---


@pytest.fixture(scope="module")
def clip_model():
    import torch
    from clip.model import build_model

    return build_model(torch.load(CLIP_FILE, weights_only=True)).float()


def test_clip_file_is_small():
    assert os.path.getsize(CLIP_FILE) <= 8_000_000


def test_clip_has_the_form_of_openais(clip_model):
    import torch

    assert clip_model.visual.input_resolution == drawing.SIZE
    assert clip_model.context_length == 77
    assert clip_model.token_embedding.weight.shape == (49408, 64)
    tensors = torch.load(CLIP_FILE, weights_only=True)
    assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.float16}
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


# About nine tenths of what it reaches; chance is 10 %.
@pytest.mark.parametrize(("domain", "floor"), [("display", 65), ("handwritten", 55), ("printed", 75), ("sketch", 50)])
def test_clip_tells_digits_zero_shot(clip_model, images, domain, floor):
    import torch
    from clip import tokenize

    mean, std = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])
    pictures = np.concatenate([pixels(images, domain, label) for label in range(10)])
    inputs = ((torch.from_numpy(pictures) / 255 - mean) / std).permute(0, 3, 1, 2)
    prompts = tokenize([f"a photo of a {name}." for name in drawing.CLASSES])
    with torch.no_grad():
        found = clip_model(inputs, prompts)[0].argmax(1)
    accuracy = 100 * (found == torch.arange(10).repeat_interleave(40)).float().mean().item()
    assert accuracy > floor
    assert accuracy < 97  # and leaves something to learn
