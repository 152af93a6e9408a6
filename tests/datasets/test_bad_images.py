"""Every kind of image loads, and errors name unreadable images."""

import shutil

import numpy as np
import pytest
import torch
from dassl.data import DataManager
from dassl.utils import UserError
from dataset_trees import config, make_folder, write_images
from PIL import Image

import predict
from datasets.image_files import find_unreadable


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path)


@pytest.fixture
def root(image_folder, tmp_path):
    """A copy of the 30 images, without their splits."""
    return shutil.copytree(image_folder, tmp_path / "data", ignore=shutil.ignore_patterns("spg_coop_splits"))


def loaders(folder):
    cfg = config(folder, ["sketch"], output=folder.parent)
    cfg.DATASET.NAME, cfg.DATALOADER.NUM_WORKERS, cfg.INPUT.SIZE = "FolderDG", 0, (24, 24)
    cfg.INPUT.TRANSFORMS = ["random_resized_crop", "random_flip", "normalize"]
    return DataManager(cfg)


def kinds_of_images():
    """Names and images of every kind that users have."""
    rgb = Image.new("RGB", (9, 7), (200, 100, 50))
    clear = rgb.copy()
    clear.putalpha(0)
    return {
        "gray.jpg": rgb.convert("L"),
        "gray with alpha.png": rgb.convert("LA"),
        "gray 16 bit.png": Image.fromarray(np.full((7, 9), 30_000, np.uint16)),
        "gray float.tif": Image.fromarray(np.full((7, 9), 0.5, np.float32)),
        "gray 32 bit.tif": Image.fromarray(np.full((7, 9), 30_000, np.int32)),
        "line art.png": rgb.convert("1"),
        "print.jpg": rgb.convert("CMYK"),
        "palette.gif": rgb.quantize(16),
        "palette.bmp": rgb.quantize(16),
        "clear.png": clear,
        "clear.webp": clear,
        "one line.png": Image.new("RGB", (300, 1)),
        "Ünï – 日本語 'q\" #%.png": rgb,
        "large.png": Image.new("L", (6000, 4000), 200),
    }


def test_every_kind_of_image_becomes_a_batch(folder):
    for domain in ("photo", "sketch"):
        for name, image in kinds_of_images().items():
            image.save(folder / domain / "cat" / name)
    manager = loaders(folder)
    for loader in (manager.train_loader_x, manager.val_loader, manager.test_loader):
        for batch in loader:
            assert batch["img"].shape[1:] == (3, 24, 24) and torch.isfinite(batch["img"]).all()
    assert sum(len(batch["label"]) for batch in manager.test_loader) == 6 + len(kinds_of_images())
    assert find_unreadable([item.impath for item in manager.dataset.test], "images") == {}


@pytest.mark.parametrize(("content", "reason"), [(b"<html>404</html>", "cannot identify image"), (None, "truncated")])
@pytest.mark.parametrize(("trainer", "domain"), [("ZeroshotCLIP", "red"), ("CoOp", "blue"), ("SPG", "green")])
def test_run_with_a_damaged_image_names_it(trainer, domain, content, reason, train, root, tmp_path, capsys):
    for broken in (root / domain / "down").iterdir():
        broken.write_bytes(broken.read_bytes()[:-60] if content is None else content)
    assert train(trainer, "red", flags=["--root", str(root)]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"Error: Cannot read the image {root}/{domain}/down/") and reason in message
    assert not (tmp_path / "run/results.json").exists()


def test_levels_of_unknown_range_raise_everywhere(train, root, tmp_path, capsys):
    assert train("ZeroshotCLIP", "red", flags=["--root", str(root)]) == 0
    path = root / "red/down/depth.tif"
    Image.fromarray(np.array([[0, 4.5e3]], np.float32)).save(path)
    (root / "spg_coop_splits/red_train_val_split.json").unlink()
    reason = "its grey levels are floats from 0 to 4500"
    flags = ["--root", str(root), "--output-dir", "b"]
    assert train("ZeroshotCLIP", "red", flags=flags) == 1
    assert capsys.readouterr().err.startswith(f"Error: Cannot read the image {path}: {reason}")
    assert predict.main(["--model-dir", "run", str(root / "red")]) == 1
    assert reason in capsys.readouterr().err
    assert reason in find_unreadable([str(path)], "images")[str(path)]
    assert train("ZeroshotCLIP", "red", "DATASET.SKIP_UNREADABLE", "True", flags=flags) == 0
    assert f"1 unreadable images of FolderDG, test are skipped: {path}." in capsys.readouterr().out


@pytest.mark.parametrize("trainer", ["SPG", "CoOp"])
def test_class_without_training_images_does_not_stop_a_run(trainer, train, root, tmp_path, capsys):
    write_images(root / "red/spiral", ["1.jpg", "2.jpg"])  # images in the target only
    for empty in ("blue/spiral", "green/spiral"):
        (root / empty).mkdir()
    assert train(trainer, "red", flags=["--root", str(root)]) == 0
    assert "no source domain has training images of spiral, which" in capsys.readouterr().out
    assert len((tmp_path / "run/predictions.csv").read_text().splitlines()) == 1 + 10 + 2


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_exif_orientation_warns_once(kind, train, root, tmp_path, capsys):
    exif = Image.Exif()
    exif[0x112] = 6
    for domain in ("blue", "red"):
        Image.open(root / domain / "down/4.png").save(root / domain / f"down/5.{kind}", exif=exif)
    assert train("ZeroshotCLIP", "red", flags=["--root", str(root)]) == 0
    assert capsys.readouterr().out.count("have an EXIF orientation") == 1
    assert predict.main(["--model-dir", str(tmp_path / "run"), str(root / "red")]) == 0
    out, err = capsys.readouterr()
    assert "EXIF" not in out and err.count(f"Warning: some images have an EXIF orientation, {root}/red/down/5.") == 1


def test_file_that_vanished_is_named(folder):
    manager = loaders(folder)
    gone = manager.dataset.test[0].impath
    shutil.move(gone, folder.parent / "elsewhere.jpg")
    with pytest.raises(UserError, match=f"Image not found: {gone}. Check DATASET.ROOT"):
        next(iter(manager.test_loader))
