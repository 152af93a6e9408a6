"""Files that are called images: whatever kind loads, and what cannot be read is named."""

import shutil

import numpy as np
import pytest
import torch
from dassl.data import DataManager
from dassl.utils import UserError, read_image
from dataset_trees import config, write_images
from PIL import Image

import common.errors
import predict
from datasets.folder_dg import FolderDG
from datasets.survey import examine, look
from trainers.predictor import Predictor


@pytest.fixture
def folder(tmp_path):
    """Two domains of two classes, three images each."""
    for domain in ("photo", "sketch"):
        for name in ("cat", "dog"):
            write_images(tmp_path / "mine" / domain / name, ["1.jpg", "2.jpg", "3.jpg"])
    return tmp_path / "mine"


def loaders(folder):
    cfg = config(folder, ["sketch"], output=folder.parent)
    cfg.DATASET.NAME = "FolderDG"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.SIZE = (24, 24)
    cfg.INPUT.TRANSFORMS = ["random_resized_crop", "random_flip", "normalize"]
    return DataManager(cfg)


def kinds_of_images():
    """Names and images of every kind that people have, all of one colour."""
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
        "print.tif": rgb.convert("CMYK"),
        "palette.png": rgb.quantize(16),
        "palette.gif": rgb.quantize(16),
        "palette.bmp": rgb.quantize(16),
        "clear.png": clear,
        "clear.webp": clear,
        "one pixel.png": Image.new("RGB", (1, 1)),
        "one line.png": Image.new("RGB", (300, 1)),
        "Ünï – 日本語 'q\" #%.png": rgb,
        "large.png": Image.new("L", (6000, 4000), 200),
    }


def test_every_kind_of_image_becomes_a_batch_in_training_and_in_testing(folder):
    for domain in ("photo", "sketch"):
        for name, image in kinds_of_images().items():
            image.save(folder / domain / "cat" / name)
        (folder / domain / "cat/linked.png").symlink_to(folder / domain / "cat/clear.png")
    manager = loaders(folder)
    for loader in (manager.train_loader_x, manager.val_loader, manager.test_loader):
        for batch in loader:
            assert batch["img"].shape[1:] == (3, 24, 24)
            assert torch.isfinite(batch["img"]).all()
    assert sum(len(batch["label"]) for batch in manager.test_loader) == 6 + 18


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "cannot identify image file"), (b"<html>404</html>", "cannot identify image file"), (None, "truncated")],
    ids=["empty", "web page", "truncated"],
)
@pytest.mark.parametrize(("trainer", "domain"), [("ZeroshotCLIP", "red"), ("CoOp", "blue"), ("SPG", "green")])
def test_a_run_names_the_image_that_it_cannot_read(
    trainer, domain, content, reason, train, image_folder, tmp_path, capsys
):
    root = shutil.copytree(image_folder, tmp_path / "data", ignore=shutil.ignore_patterns("spg_coop_splits"))
    for broken in (root / domain / "down").iterdir():
        broken.write_bytes(broken.read_bytes()[:-60] if content is None else content)
    assert train(trainer, "red", flags=["--root", str(root)]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"Error: Cannot read the image {root}/{domain}/down/")
    assert reason in message
    assert message.endswith("Download it again, or remove it.\n")
    assert not (tmp_path / "run/results.json").exists()


def test_levels_of_unknown_range_are_refused_alike_everywhere(train, image_folder, tmp_path, capsys):
    assert train("ZeroshotCLIP", "red") == 0
    root = shutil.copytree(image_folder, tmp_path / "data", ignore=shutil.ignore_patterns("spg_coop_splits"))
    path = root / "red/down/depth.tif"
    Image.fromarray(np.array([[0, 4.5e3]], np.float32)).save(path)
    reason = "its grey levels are floats from 0 to 4500, and nothing says which is white. Save it with 8 bits for each"
    flags = ["--root", str(root), "--output-dir", "b"]
    capsys.readouterr()
    assert train("ZeroshotCLIP", "red", flags=flags) == 1
    assert capsys.readouterr().err.startswith(f"Error: Cannot read the image {path}: {reason}")
    assert predict.main(["--model-dir", "run", str(root / "red")]) == 1
    assert f"1 image could not be read:\n  Cannot read the image {path}: {reason}" in capsys.readouterr().err
    found = look("data", FolderDG, root)
    examine(found)
    assert list(found.unreadable) == ["red/down/depth.tif"]
    assert found.unreadable["red/down/depth.tif"].startswith(reason)
    assert train("ZeroshotCLIP", "red", "DATASET.SKIP_UNREADABLE", "True", flags=flags) == 0
    assert f"1 unreadable images of FolderDG, test are skipped: {path}." in capsys.readouterr().out


def test_what_is_read_of_a_file_is_read_of_floats_too(train, image_folder, tmp_path):
    """A picture as 8 bits and as floats from 0 to 1 gets one prediction; as a PIL image floats are refused."""
    assert train("ZeroshotCLIP", "red") == 0
    grey = Image.open(image_folder / "red/down/0.png").convert("L")
    grey.save(tmp_path / "bytes.tif")
    floats = Image.fromarray(np.asarray(grey, np.float32) / 255)
    floats.save(tmp_path / "floats.tif")
    predictor = Predictor(tmp_path / "run")
    one, other = predictor([tmp_path / "bytes.tif", tmp_path / "floats.tif"])
    assert [name for name, _ in one] == [name for name, _ in other]
    # On some processors two rows of a batch are not summed in one order.
    assert [score for _, score in one] == pytest.approx([score for _, score in other], abs=1e-6)
    levels = [np.asarray(read_image(tmp_path / f"{kind}.tif")) for kind in ("bytes", "floats")]
    assert np.array_equal(*levels)
    with pytest.raises(
        common.errors.UserError, match="A PIL image of mode F would be clipped at 255: make it RGB first"
    ):
        predictor([floats])


@pytest.mark.parametrize("trainer", ["SPG", "CoOp"])
def test_a_class_without_training_images_does_not_stop_a_run(trainer, train, image_folder, tmp_path, capsys):
    root = shutil.copytree(image_folder, tmp_path / "data", ignore=shutil.ignore_patterns("spg_coop_splits"))
    write_images(root / "red/spiral", ["1.jpg", "2.jpg"])  # images in the target only
    for empty in ("blue/spiral", "green/spiral", "blue/across"):
        shutil.rmtree(root / empty, ignore_errors=True)
        (root / empty).mkdir()
    assert train(trainer, "red", flags=["--root", str(root)]) == 0
    output = capsys.readouterr().out
    assert f"Warning: blue of FolderDG in {root} has no images of: across, spiral." in output
    assert "Warning: no source domain of FolderDG has training images of spiral, but the target" in output
    assert len((tmp_path / "run/predictions.csv").read_text().splitlines()) == 1 + 10 + 2


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
def test_run_and_prediction_images_with_exif_orientation_warn_once(kind, train, image_folder, tmp_path, capsys):
    root = shutil.copytree(image_folder, tmp_path / "data", ignore=shutil.ignore_patterns("spg_coop_splits"))
    assert train("ZeroshotCLIP", "red", flags=["--root", str(root)]) == 0
    assert "EXIF" not in capsys.readouterr().out
    exif = Image.Exif()
    exif[0x112] = 6
    for domain in ("blue", "red"):
        Image.open(root / domain / "down/4.png").save(root / domain / f"down/5.{kind}", exif=exif)
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(root / "spg_coop_splits")
    assert train("ZeroshotCLIP", "red", flags=["--root", str(root)]) == 0
    assert capsys.readouterr().out.count("have an EXIF orientation") == 1
    assert predict.main(["--model-dir", str(tmp_path / "run"), str(root / "red")]) == 0
    out, err = capsys.readouterr()
    assert "EXIF" not in out and err.count(f"Warning: some images have an EXIF orientation, {root}/red/down/5.") == 1


def test_a_file_that_vanished_is_named(folder):
    manager = loaders(folder)
    gone = manager.dataset.test[0].impath
    shutil.move(gone, folder.parent / "elsewhere.jpg")
    with pytest.raises(UserError, match=f"Image not found: {gone}. Check DATASET.ROOT"):
        next(iter(manager.test_loader))


def test_a_file_that_is_no_image_counts_until_it_is_read(folder):
    """Listing opens no file: scripts/datasets.py does, before a run."""
    (folder / "sketch/dog/notes.jpg").write_text("no image")
    assert len(FolderDG(config(folder, ["sketch"], output=folder.parent)).test) == 7
