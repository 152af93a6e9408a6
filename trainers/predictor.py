"""Classify images by the model of a run; no data set is needed."""

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

from common.errors import UserError, join_truncated
from common.progress import progress
from common.threads import loader_workers
from trainers.base.evaluation import classify
from trainers.base.image_features import follow_resize_mode
from trainers.modules.loader_workers import lower_priority, prepare_loader_workers
from trainers.saved_run import build_run

Images = Sequence[str | PathLike | Image.Image]


class Predictor:
    """Classifies images by a trained run of any trainer.

        predictor = Predictor("output/pacs/SPG/ViT-B16/pacs/sketch/seed1")
        predictor(["dog.jpg", "horse.png"])  # [[("dog", 0.98), ("horse", 0.01), ...], ...]

    The noise of an image is a function of its pixels, so a prediction depends on run, seed and image alone.

    Args:
        model_dir: the run's folder.
        classnames: other class names, if the model has one context for all classes.
        backbone: new place of CLIP's weights.
        seed: of the generators' noise; None: the run's.
        n_prompts: contexts generated for each image; None: the run's.
        batch_size: images at a time.
        workers: processes that decode images; 0: none.
        trainer, config_file: method and config (default: the method's) of a folder of checkpoints alone, as CoOp's.
            It needs class names and a backbone as well.
    """

    def __init__(
        self,
        model_dir: str | PathLike,
        classnames: Sequence[str] | None = None,
        backbone: str | PathLike | None = None,
        *,
        seed: int | None = None,
        n_prompts: int | None = None,
        batch_size: int = 100,
        workers: int = 0,
        trainer: str = "",
        config_file: str = "",
    ) -> None:
        if isinstance(classnames, str):
            raise UserError(f"Class names are a list of names, not the text {classnames!r}.")
        if repeated := sorted({name for name in classnames or () if list(classnames or ()).count(name) > 1}):
            raise UserError(f"Class names are given twice: {', '.join(repeated)}.")
        opts: list[Any] = [] if seed is None else ["SEED", seed]
        opts += [] if n_prompts is None else ["TEST.N_PROMPTS", n_prompts]
        with contextlib.redirect_stdout(io.StringIO()):  # the trainer and Dassl's transforms print while they are built
            self.trainer = build_run(model_dir, classnames, backbone, opts, trainer=trainer, config_file=config_file)
            self.transform = build_transform(self.trainer.cfg, is_train=False)
        follow_resize_mode(self.transform, self.trainer.cfg.INPUT, self.trainer.backbone.info)
        self.classnames = self.trainer.dm.dataset.classnames
        self.batch_size, self.workers = batch_size, loader_workers(workers)
        prepare_loader_workers(self.workers)
        self.classifier = self.trainer.classifier()

    def __call__(self, images: Images, top_k: int = 5) -> list[list[tuple[str, float]]]:
        """The most probable classes of each image, as (class name, probability).

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
        self, images: Images, top_k: int = 5
    ) -> tuple[dict[int, list[tuple[str, float]]], dict[int, str]]:
        """Predictions by the image's number, and messages of the images that cannot be read."""
        dataset, n_classes = _Images(list(images), self.transform), min(top_k, len(self.classnames))
        options: Any = {"num_workers": self.workers, "collate_fn": _collate, "worker_init_fn": lower_priority}
        loader = DataLoader(dataset, self.batch_size, **options)
        found: dict[int, list[tuple[str, float]]] = {}
        unreadable: dict[int, str] = {}
        with progress(total=len(dataset), description="Predicting", unit="img") as bar:
            for numbers, batch, indices, messages in loader:
                unreadable.update(messages)
                if numbers:
                    features = self.trainer.image_features.encode(batch, indices)
                    logits = self._logits(features, indices, join_truncated(dataset.name(i) for i in numbers))
                    # By logits, as tests of runs: probabilities of two nearly equal logits may be the same number.
                    labels = logits.topk(n_classes, dim=-1).indices
                    values = logits.softmax(dim=-1).gather(-1, labels)
                    for i, row, top in zip(numbers, values.tolist(), labels.tolist(), strict=True):
                        found[i] = [(self.classnames[label], value) for label, value in zip(top, row, strict=True)]
                bar.update(len(numbers) + len(messages))
        return found, unreadable

    def _logits(self, features: Tensor, indices: list[int], names: str) -> Tensor:
        batches, allow_neg_inf = [(features, indices)], bool(self.trainer.NEG_INF_TENSORS)
        ((_, logits),) = classify(batches, self.classifier, self.trainer.device, lambda _: names, allow_neg_inf)
        return logits

    def encode(self, images: Images) -> tuple[Tensor, list[int]]:
        """Image features (B, E) and the indices of their noise; raises UserError for an image that cannot be read."""
        dataset = _Images(list(images), self.transform)
        _, batch, indices, messages = _collate([dataset[i] for i in range(len(dataset))])
        if messages:
            raise UserError("\n".join(messages.values()))
        return self.trainer.image_features.encode(batch, indices), indices


class _Images(Dataset):
    """(number, transformed image or None, index of its noise, message or None) of each image."""

    def __init__(self, images, transform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def name(self, number):
        image = self.images[number]
        return f"image {number + 1}" if isinstance(image, Image.Image) else os.fspath(image)

    def __getitem__(self, number):
        try:
            image = _read(self.images[number])
        except Exception as error:  # Pillow raises errors of any kind for damaged files
            return number, None, None, str(error)
        digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        return number, self.transform(image), int.from_bytes(digest[:4], "big"), None


def _read(image):
    if not isinstance(image, Image.Image):
        if not os.path.isfile(image):
            raise UserError(f"Image not found: {os.fspath(image)}")
        image = read_image(os.fspath(image))
    elif image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise UserError(
            f"A PIL image of mode {image.mode} would be clipped at 255: make it RGB first, or name its file."
        )
    return image.convert("RGB")


def _collate(rows):
    """Numbers, images (B, 3, H, W) and noise indices of readable images, and messages of the others."""
    good = [row for row in rows if row[3] is None]
    batch = torch.stack([row[1] for row in good]) if good else None
    messages = {row[0]: row[3] for row in rows if row[3] is not None}
    return [row[0] for row in good], batch, [row[2] for row in good], messages
