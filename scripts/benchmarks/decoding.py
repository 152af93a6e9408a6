"""Runs with decoded images in memory, against decoding them again in each epoch."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

from dassl.utils import read_image
from PIL import Image

from datasets.image_files import images_below
from scripts.benchmarks.spg import SHARED, Images, OurRun, choose_images
from scripts.benchmarks.timing import Row
from trainers.base.trainer import PromptTrainer
from trainers.maple import MaPLe
from trainers.modules.image_cache import image_cache
from trainers.promptsrc import PromptSRC
from trainers.spg import SPG
from trainers.vp import VP
from trainers.vpt import VPT

LARGE = 1000  # pixels, as photographs of OfficeHome, VLCS and DomainNet


def decoding_rows(quick: bool, folder: Path) -> Iterator[Row]:
    """Yield rows for each trainer that encodes images in each epoch, and for SPG on images of 1,000 pixels."""
    images, epochs = choose_images(folder), 4 if quick else 10
    yield from measure_decoding(images, SPG, epochs, folder)
    if images.has_goals:
        vit = images._replace(name="PACS, tiny_vit", config="default", backbone=SHARED / "clip/tiny_vit.pt")
        for trainer_class in (VP, VPT, MaPLe, PromptSRC):
            yield from measure_decoding(vit, trainer_class, epochs, folder)
        large = images._replace(name=f"PACS at {LARGE} pixels, tiny_rn", root=enlarge(images.root, folder / "large"))
        yield from measure_decoding(large, SPG, epochs, folder)


def measure_decoding(images: Images, trainer_class: type[PromptTrainer], epochs: int, folder: Path) -> Iterator[Row]:
    """Yield an epoch and a whole run; the difference is 0 if losses and accuracies are equal."""
    runs = {}
    image_cache.cache_clear()  # of the runs before
    with contextlib.redirect_stdout(io.StringIO()):  # trainers print notes
        for megabytes in ("0", "-1"):
            output = folder / f"{trainer_class.__name__} {images.name} {megabytes}"
            runs[megabytes] = OurRun(images, output, 0, epochs, ["DATALOADER.CACHE_MB", megabytes], trainer_class)
    losses = [[(e["losses"], e["val_accuracy"]) for e in run.trainer.record.history] for run in runs.values()]
    gap = 0.0 if losses[0] == losses[1] else float("inf")
    note = "the reference decodes images in each epoch, DATALOADER.CACHE_MB 0"
    cached, decoded, name = runs["-1"], runs["0"], f"decoded images in memory, {trainer_class.__name__}, {images.name}"
    yield Row(f"exact epoch, {name}", cached.epoch, decoded.epoch, "s", None, gap, note)
    yield Row(f"whole exact run, {name}", cached.seconds, decoded.seconds, "s", None, gap, note)


def enlarge(root: Path, folder: Path) -> Path:
    """Write the images of a folder, scaled to 1,000 pixels as JPEG."""
    for name in images_below(str(root)):
        target = (folder / name).with_suffix(".jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        read_image(root / name).resize((LARGE, LARGE), Image.Resampling.BICUBIC).save(target, quality=90)
    return folder
