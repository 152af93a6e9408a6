"""Tiny trees of every set in every layout, for the tests of the data sets."""

import contextlib
import io
import os
from pathlib import Path

from dassl.config import get_cfg_default
from PIL import Image

from datasets.benchmarks import SPG_PACS, SPG_VLCS, SPG_DomainNet, SPG_OfficeHome, SPG_TerraIncognita

# Class folders as users have them.
CLASS_FOLDERS = {
    SPG_PACS: SPG_PACS.classes,
    SPG_VLCS: SPG_VLCS.classes,
    SPG_OfficeHome: ["Alarm_Clock", "TV", "Table", "Flip_Flops", *(f"Thing_{k:02d}" for k in range(61))],
    SPG_TerraIncognita: SPG_TerraIncognita.classes,
    SPG_DomainNet: ["The_Eiffel_Tower", "t-shirt", "hot_air_balloon", *(f"thing_{k:03d}" for k in range(342))],
}
SETS = list(CLASS_FOLDERS)


def _encoded():
    buffers = {".jpg": io.BytesIO(), ".png": io.BytesIO()}
    Image.new("RGB", (4, 3), (200, 30, 30)).save(buffers[".jpg"], format="JPEG")
    Image.new("L", (1, 1), 9).save(buffers[".png"], format="PNG")
    return {extension: buffer.getvalue() for extension, buffer in buffers.items()}


PICTURES = _encoded()


def write_images(folder, names):
    """Make a folder with small pictures. Different names have different pixels."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        # Readers of images ignore bytes after the end.
        (folder / name).write_bytes(PICTURES.get(Path(name).suffix.lower(), PICTURES[".jpg"]) + name.encode())


def make_folder(root):
    """Two domains of two classes, three images each, in root/mine."""
    for domain in ("photo", "sketch"):
        for name in ("cat", "dog"):
            write_images(root / "mine" / domain / name, ["1.jpg", "2.jpg", "3.jpg"])
    return root / "mine"


def make_set(root, dataset, layout, per_class=10, domains=None):
    """Make a set below `root` with the same images in any layout; return the set's own folder.

    In a layout with parts, the first 70 % of the images of a class lie in the first part.
    """
    spelled = dict(zip(dataset.domains, layout.domain_folders or _domain_folders(dataset, layout), strict=True))
    names = [f"pic_{k:03d}.jpg" for k in range(per_class)]
    cut = round(0.7 * per_class)
    shares = zip(layout.parts, (names[:cut], names[cut:]) if len(layout.parts) == 2 else (names,), strict=True)
    for part, share in shares:
        for domain in domains or dataset.domains:
            for number, class_folder in enumerate(CLASS_FOLDERS[dataset]):
                name = str(number) if dataset is SPG_VLCS and part else class_folder
                write_images(root / layout.folder / layout.images / spelled[domain] / part / name, share)
    return root / layout.folder


def _domain_folders(dataset, layout):
    if dataset is SPG_OfficeHome and layout.name == "DomainBed":
        return ["Art", "Clipart", "Product", "Real World"]
    return dataset.domains


def config(root, target=(), source=(), output=None, shots=-1, seed=1, **dataset_keys):
    """Dassl's default configuration with a data set's keys."""
    cfg = get_cfg_default()
    cfg.DATASET.ROOT = str(root)
    cfg.DATASET.SOURCE_DOMAINS = tuple(source)
    cfg.DATASET.TARGET_DOMAINS = tuple(target)
    cfg.DATASET.NUM_SHOTS = shots
    cfg.SEED = seed
    cfg.OUTPUT_DIR = str(output or Path(root) / "output")
    for key, value in dataset_keys.items():
        cfg.DATASET[key] = value
    return cfg


def paths(items):
    """(domain, class name, file name) of each item, which are the same in every layout."""
    return sorted((item.domain, item.classname, os.path.basename(item.impath)) for item in items)


@contextlib.contextmanager
def read_only(folder):
    """Remove the write permission of a folder and of its subfolders."""
    folders = [Path(path) for path, _, _ in os.walk(folder)]
    try:
        for path in folders:
            path.chmod(0o555)
        yield folder
    finally:
        for path in folders:
            path.chmod(0o755)
