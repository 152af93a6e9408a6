"""Class names with probabilities for images, by the model of a run; no data set is needed."""

import contextlib
import hashlib
import io
import os
from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from dassl.data.transforms import build_transform
from dassl.utils import read_image
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.errors import UserError, some
from common.loader_workers import prepare_loader_workers
from common.progress import progress
from common.threads import loader_workers
from trainers.base.evaluation import classify
from trainers.base.image_features import follow_resize_mode
from trainers.saved_run import build_run


class Predictor:
    """Classifies images by a trained run of any trainer.

        predictor = Predictor("output/pacs/SPG/ViT-B16/pacs/sketch/seed1")
        predictor(["dog.jpg", "horse.png"])  # [[("dog", 0.98), ("horse", 0.01), ...], ...]

    An image's noise follows from its pixels, so its prediction depends on nothing but run, seed and image.

    Args:
        model_dir: the run's folder.
        classnames: other class names than the run's, where its model does without them (contexts for all classes).
        backbone: where CLIP's weights are now, if not where they were.
        seed: of the generators' noise; None: the run's.
        n_prompts: contexts generated for each image; None: the run's.
        batch_size: images at a time.
        workers: processes that decode images; 0: none.
        trainer, config_file: of a folder that holds checkpoints alone, as CoOp's do: the method, and its config if it
            was not the default; class names and backbone are needed as well.

    Raises:
        UserError: the folder holds no usable run, or class names do not fit.
    """

    def __init__(
        self,
        model_dir: str | PathLike,
        classnames: Sequence[str] | None = None,
        backbone: str | PathLike | None = None,
        seed: int | None = None,
        n_prompts: int | None = None,
        batch_size: int = 100,
        workers: int = 0,
        trainer: str = "",
        config_file: str = "",
    ) -> None:
        if classnames is not None:
            check_classnames(classnames)
        opts: list[Any] = [] if seed is None else ["SEED", seed]
        opts += [] if n_prompts is None else ["TEST.N_PROMPTS", n_prompts]
        with contextlib.redirect_stdout(io.StringIO()):  # what trainers say while they are built
            self.trainer = build_run(
                model_dir, classnames, backbone, opts, trainer_name=trainer, config_file=config_file
            )
            transform = build_transform(self.trainer.cfg, is_train=False)
            self.transform = follow_resize_mode(transform, self.trainer.cfg.INPUT, self.trainer.backbone.info)
        self.classnames = self.trainer.dm.dataset.classnames
        self.batch_size, self.workers = batch_size, loader_workers(workers)
        prepare_loader_workers(self.workers)
        self.trainer.threads.use(self.workers)
        self.classifier = self.trainer.classifier()

    def __call__(self, images: Sequence[str | PathLike | Image.Image], top_k: int = 5) -> list[list[tuple[str, float]]]:
        """The most probable classes of each image.

        Args:
            images: paths or PIL images.
            top_k: how many classes.

        Returns:
            a list of (class name, probability) for each image, the most probable first.

        Raises:
            UserError: an image cannot be read, or the model is broken.
        """
        if isinstance(images, (str, os.PathLike, Image.Image)):
            raise UserError(f"Images are a list of paths or PIL images, not the single {images!r}.")
        found, unreadable = self.predict_readable(images, top_k)
        if unreadable:
            raise UserError("\n".join(unreadable.values()))
        return [found[i] for i in range(len(found))]

    def predict_readable(
        self, images: Sequence[str | PathLike | Image.Image], top_k: int = 5
    ) -> tuple[dict[int, list[tuple[str, float]]], dict[int, str]]:
        """As a call, but images that cannot be read are told apart.

        Returns:
            ({position: list of (class name, probability)}, {position: message}).
        """
        images = list(images)
        top_k = min(top_k, len(self.classnames))
        loader = DataLoader(
            _Images(images, self.transform), self.batch_size, num_workers=self.workers, collate_fn=_collate
        )
        found: dict[int, list[tuple[str, float]]] = {}
        unreadable: dict[int, str] = {}
        bar = progress(total=len(images), description="Predicting", unit="img")
        positions_of_batches: list[list[int]] = []

        def batches():
            for positions, batch, indices, messages in loader:
                unreadable.update(messages)
                if positions:
                    positions_of_batches.append(positions)
                    yield self.trainer.image_features.encode(batch, indices), indices
                bar.update(len(positions) + len(messages))

        def describe(indices: list[int]) -> str:
            batch = positions_of_batches[-1]
            return some([f"image {i + 1}" if isinstance(images[i], Image.Image) else str(images[i]) for i in batch])

        device, unseen = self.trainer.device, bool(self.trainer.MINUS_INFINITY)
        with bar:
            for _, logits in classify(batches(), self.classifier, device, describe, unseen):
                # By logits, as tests of runs: of two nearly equal ones the probabilities may be the same number.
                labels = logits.topk(top_k, dim=-1).indices
                values = logits.softmax(dim=-1).gather(-1, labels)
                for position, row, which in zip(
                    positions_of_batches.pop(), values.tolist(), labels.tolist(), strict=True
                ):
                    found[position] = [(self.classnames[label], value) for label, value in zip(which, row, strict=True)]
        return found, unreadable

    def encode(self, images: Sequence[str | PathLike | Image.Image]) -> tuple[Tensor, list[int]]:
        """Image features (B, E) and the indices of their noise.

        Raises:
            UserError: an image cannot be read.
        """
        _, batch, indices, messages = _collate([_Images(images, self.transform)[i] for i in range(len(images))])
        if messages:
            raise UserError("\n".join(messages.values()))
        return self.trainer.image_features.encode(batch, indices), indices


def check_classnames(classnames: Sequence[str]) -> None:
    """Raise UserError unless these are two or more different names."""
    if isinstance(classnames, str):
        raise UserError(f"Class names are a list of names, not the text {classnames!r}.")
    empty = [i for i, name in enumerate(classnames, start=1) if not str(name).strip()]
    if empty:
        raise UserError(f"Class name {empty[0]} of {len(classnames)} is empty.")
    twice = sorted({name for name in classnames if list(classnames).count(name) > 1})
    if twice:
        raise UserError(f"Class names are given twice: {', '.join(twice)}.")
    if len(classnames) < 2:
        raise UserError(f"It takes at least two class names to choose from; {len(classnames)} given.")


class _Images(Dataset):
    """(position, transformed image or None, index of its noise, message or None) of each image."""

    def __init__(self, images, transform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, position):
        image = self.images[position]
        try:
            if not isinstance(image, Image.Image):
                image = os.fspath(image)
                if not os.path.isfile(image):
                    return position, None, None, f"Image not found: {image}"
                image = read_image(image)
            elif image.mode in ("I", "F") or image.mode.startswith("I;16"):
                message = (
                    f"A PIL image of mode {image.mode} would be clipped at 255: make it RGB first, or name its file."
                )
                return position, None, None, message
            image = image.convert("RGB")
        except Exception as error:  # whatever Pillow makes of a damaged file; the message names it
            return position, None, None, str(error)
        digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        return position, self.transform(image), int.from_bytes(digest[:4], "big"), None


def _collate(rows):
    """Positions, images (B, 3, H, W) and noise indices of those that could be read, and messages of the others."""
    good = [row for row in rows if row[3] is None]
    batch = torch.stack([row[1] for row in good]) if good else None
    messages = {row[0]: row[3] for row in rows if row[3] is not None}
    return [row[0] for row in good], batch, [row[2] for row in good], messages
