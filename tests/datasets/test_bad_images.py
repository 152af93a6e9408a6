"""Every kind of image loads, and errors name unreadable images."""

import shutil

import numpy as np
import pytest
import torch
from dassl.data import DataManager
from dataset_trees import config, make_folder, write_images
from PIL import Image

import predict
from datasets.image_files import find_unreadable


@pytest.fixture
def root(image_folder, tmp_path):
    """A copy of the 30 images, without their splits."""
    return shutil.copytree(image_folder, tmp_path / "data", ignore=shutil.ignore_patterns("spg_coop_splits"))


def kinds_of_images():
    """Names and images of every kind that users have."""
    rgb = Image.new("RGB", (9, 7), (200, 100, 50))
    clear = rgb.copy()
    clear.putalpha(0)
    grey = {"gray.jpg": rgb.convert("L"), "gray with alpha.png": rgb.convert("LA"), "line art.png": rgb.convert("1")}
    for name, levels in {"gray 16 bit.png": np.uint16(30_000), "f.tif": np.float32(0.5), "i.tif": np.int32(9)}.items():
        grey[name] = Image.fromarray(np.full((7, 9), levels))
    colour = {"print.jpg": rgb.convert("CMYK"), "few.gif": rgb.quantize(16), "clear.png": clear, "clear.webp": clear}
    sizes = {"one line.png": Image.new("RGB", (300, 1)), "large.png": Image.new("L", (6000, 4000), 200)}
    return {**grey, **colour, **sizes, "Ünï – 日本語 'q\" #%.png": rgb}


def test_every_kind_of_image_becomes_a_batch(tmp_path):
    folder = make_folder(tmp_path)
    for domain in ("photo", "sketch"):
        for name, image in kinds_of_images().items():
            image.save(folder / domain / "cat" / name)
    cfg = config(folder, ["sketch"], output=tmp_path)
    cfg.DATASET.NAME, cfg.DATALOADER.NUM_WORKERS, cfg.INPUT.SIZE = "FolderDG", 0, (24, 24)
    cfg.INPUT.TRANSFORMS = ["random_resized_crop", "random_flip", "normalize"]
    manager = DataManager(cfg)
    for loader in (manager.train_loader_x, manager.val_loader, manager.test_loader):
        for batch in loader:
            assert batch["img"].shape[1:] == (3, 24, 24) and torch.isfinite(batch["img"]).all()
    assert sum(len(batch["label"]) for batch in manager.test_loader) == 6 + len(kinds_of_images())
    assert find_unreadable([item.impath for item in manager.dataset.test], "images") == {}


@pytest.mark.parametrize(
    ("trainer", "domain", "workers", "content", "reason"),
    [
        ("ZeroshotCLIP", "red", 0, b"<html>404</html>", "cannot identify image"),
        ("CoOp", "blue", 0, None, "truncated"),
        ("SPG", "green", 2, None, "truncated"),
    ],
)
def test_run_with_a_damaged_image_names_it(trainer, domain, workers, content, reason, train, root, tmp_path, capsys):
    for broken in (root / domain / "down").iterdir():
        broken.write_bytes(broken.read_bytes()[:-60] if content is None else content)
    assert train(trainer, "red", "DATALOADER.NUM_WORKERS", str(workers), flags=["--root", str(root)]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"Error: Cannot read the image {root}/{domain}/down/") and reason in message
    assert "Traceback" not in message and not (tmp_path / "run/results.json").exists()


def test_levels_of_unknown_range_raise_everywhere_or_are_skipped(train, root, capsys):
    flags = ["--root", str(root), "--output-dir", "b"]
    assert train("ZeroshotCLIP", "red", flags=["--root", str(root)]) == 0
    for domain in ("red", "blue"):
        path = root / domain / "down/depth.tif"
        Image.fromarray(np.array([[0, 4.5e3]], np.float32)).save(path)
        (root / f"spg_coop_splits/{domain}_train_val_split.json").unlink()
        reason = "its grey levels are floats from 0 to 4500"
        assert train("ZeroshotCLIP", domain, flags=flags) == 1
        assert capsys.readouterr().err.startswith(f"Error: Cannot read the image {path}: {reason}")
    assert predict.main(["--model-dir", "run", str(root / "red")]) == 1
    assert reason in capsys.readouterr().err
    assert reason in find_unreadable([str(path)], "images")[str(path)]
    assert train("CoOp", "red", "DATASET.SKIP_UNREADABLE", "True", flags=flags) == 0
    printed = capsys.readouterr().out
    assert f"1 unreadable images of FolderDG, test are skipped: {root}/red/down/depth.tif." in printed
    assert "1 unreadable images of FolderDG, train" in printed or "1 unreadable images of FolderDG, val" in printed


def test_class_without_training_images_does_not_stop_a_run(train, root, tmp_path, capsys):
    write_images(root / "red/spiral", ["1.jpg", "2.jpg"])  # images in the target only
    for empty in ("blue/spiral", "green/spiral"):
        (root / empty).mkdir()
    assert train("SPG", "red", flags=["--root", str(root)]) == 0
    assert "no source domain has training images of spiral, which" in capsys.readouterr().out
    assert len((tmp_path / "run/predictions.csv").read_text().splitlines()) == 1 + 10 + 2


def test_exif_orientation_warns_once(train, root, tmp_path, capsys):
    exif = Image.Exif()
    exif[0x112] = 6
    for domain in ("blue", "red"):
        Image.open(root / domain / "down/4.png").save(root / domain / "down/5.jpg", exif=exif)
    assert train("ZeroshotCLIP", "red", flags=["--root", str(root)]) == 0
    assert capsys.readouterr().out.count("have an EXIF orientation") == 1
    assert predict.main(["--model-dir", str(tmp_path / "run"), str(root / "red")]) == 0
    out, err = capsys.readouterr()
    assert "EXIF" not in out and err.count(f"Warning: some images have an EXIF orientation, {root}/red/down/5.") == 1
