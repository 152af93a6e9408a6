"""MiniDigits: 1,600 digits in four domains, drawn on first use; needs no download."""

import os
import shutil
import tempfile
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

from common.errors import UserError, warn
from common.files import cache_folder, is_writable, make_output_folder
from common.locks import file_lock
from datasets import mini_digits_render
from datasets.base import DomainGeneralizationDataset
from datasets.layouts import Layout

VERSION_FILE = ".version"


@DATASET_REGISTRY.register()
class MiniDigits(DomainGeneralizationDataset):
    """Ten digits, 40 images each, 64 px; label k is digit k.

    They are drawn into DATASET.ROOT/mini_digits or, if that is not set or read-only, into the user's cache folder.
    """

    domains = list(mini_digits_render.DOMAINS)
    codes = ["d", "h", "p", "s"]
    classes = list(mini_digits_render.CLASSES)
    layouts = [Layout("rendered here", "mini_digits", images="images")]
    image_counts = dict.fromkeys(domains, len(classes) * mini_digits_render.IMAGES_PER_CLASS)

    @classmethod
    def data_root(cls, cfg: CfgNode) -> Path:
        """The folder that holds mini_digits/images, with all images in it."""
        root = cache_folder()
        if str(cfg.DATASET.ROOT):
            chosen = Path(os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT)))
            if chosen.exists() and not chosen.is_dir():
                raise UserError(f"DATASET.ROOT {chosen} is a file. Name a folder, for example --root data.")
            if _is_drawn(chosen / "mini_digits/images") or is_writable(chosen / "mini_digits"):
                root = chosen
            else:
                warn(f"DATASET.ROOT {chosen} is read-only, so the images of {cls.__name__} go to {root}.")
        images = root / "mini_digits/images"
        if _is_drawn(images):
            return root
        if not cls.writes:
            raise UserError(f"{cls.__name__}: its images are not in {images} yet; a run makes them.")
        try:
            make_output_folder(root)  # it may lie among the domains of a user's folder
            with file_lock(root / "mini_digits/.lock", "draws MiniDigits"):
                if not _is_drawn(images):
                    if cfg.VERBOSE:
                        print(f"{cls.__name__}: drawing its images into {images}, once")
                    _draw(images)
        except OSError as error:
            raise UserError(
                f"{cls.__name__}: cannot make its images in {images}: {error.strerror or error}. Point DATASET.ROOT "
                "(--root) at a folder that can be written to and has 10 MB of space."
            ) from error
        return root


def _is_drawn(images: Path) -> bool:
    try:
        return (images / VERSION_FILE).read_text() == str(mini_digits_render.VERSION)
    except OSError:
        return False


def _draw(images: Path) -> None:
    """Draw all images into a temporary folder, and rename it."""
    work = Path(tempfile.mkdtemp(prefix=".images.", dir=images.parent))
    try:
        mini_digits_render.render(work / "images")
        (work / "images" / VERSION_FILE).write_text(str(mini_digits_render.VERSION))
        shutil.rmtree(images, ignore_errors=True)  # of another version
        (work / "images").rename(images)
    finally:
        shutil.rmtree(work, ignore_errors=True)
