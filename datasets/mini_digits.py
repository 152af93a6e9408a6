"""MiniDigits: 1,600 digits in four domains, made on first use; needs no download."""

import os
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

from common.errors import UserError, warn
from common.files import cache_folder, is_writable, make_output_folder
from datasets import mini_digits_render
from datasets.base import DomainGeneralizationDataset, NotMadeYet
from datasets.layouts import Layout


@DATASET_REGISTRY.register()
class MiniDigits(DomainGeneralizationDataset):
    """Ten digits, 40 images each, as display, handwritten, printed and sketch; 64 px.

    The handwritten ones are real (from scikit-learn), the others are drawn. They are put into
    ``DATASET.ROOT/mini_digits`` the first time and whenever this version draws others than those that are there. Where
    DATASET.ROOT is empty or read-only, they go to ``~/.cache/spg-dg`` (or ``$XDG_CACHE_HOME/spg-dg``). Label k is
    digit k. See :class:`DomainGeneralizationDataset`.
    """

    dataset_dir = "mini_digits"
    domains = list(mini_digits_render.DOMAINS)
    codes = ["d", "h", "p", "s"]
    classes = list(mini_digits_render.CLASSES)
    layouts = [Layout("rendered here", "mini_digits", images="images")]
    image_counts = dict.fromkeys(domains, len(classes) * mini_digits_render.IMAGES_PER_CLASS)

    @classmethod
    def data_root(cls, cfg: CfgNode) -> Path:
        """The folder that holds ``mini_digits``, with all images in it.

        Raises:
            UserError: no place for the images, or DATASET.ROOT is a file.
        """
        layout = cls.layouts[0]
        root = cls._choose_root(cfg.DATASET.ROOT, layout)
        images = root / layout.folder / layout.images
        if not cls.writes and not mini_digits_render.is_current(images):
            raise NotMadeYet(f"{cls.__name__}: its images are not in {images} yet; a run makes them.")
        if cfg.VERBOSE and not mini_digits_render.is_current(images):
            print(f"{cls.__name__}: drawing {sum(cls.image_counts.values()):,} images into {images}, once")
        try:
            make_output_folder(root)  # as `data`, it may lie among the domains of a folder of one's own
            mini_digits_render.render_once(images)
        except OSError as error:
            raise UserError(
                f"{cls.__name__}: cannot make its images in {images}: {error.strerror or error}. Point DATASET.ROOT "
                "(--root) at a folder that can be written to and has 10 MB of space."
            ) from error
        return root

    @classmethod
    def _choose_root(cls, root, layout):
        cache = cache_folder()
        if not str(root):
            return cache
        path = Path(os.path.abspath(os.path.expanduser(root)))
        if path.exists() and not path.is_dir():
            raise UserError(f"DATASET.ROOT {path} is a file. Name a folder, e.g. --root data.")
        folder = path / layout.folder
        if mini_digits_render.is_current(folder / layout.images) or is_writable(folder):
            return path
        warn(f"DATASET.ROOT {path} is read-only, so the images of {cls.__name__} go to {cache}.")
        return cache
