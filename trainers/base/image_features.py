"""Image features: of a tower that stays as it is, encoded once; of one that learns, whenever they are asked for."""

import copy
import functools
import itertools
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import torch
from dassl.utils import read_image
from torch import Tensor
from torch.utils.data import DataLoader

from common.errors import UserError
from trainers.modules.clip_backbone import Backbone
from trainers.modules.features import FeatureCache, encode_dataset, features_key
from trainers.modules.image_data import Batches, ImageData
from trainers.modules.seeded_items import FirstLooks, RandomViews, SeededItems
from trainers.modules.view_loader import ViewLoader


class ImageFeatures:
    """Features (B, E) of images, L2-normalised unless asked for otherwise.

    Args:
        backbone: whose image tower it is.
        inputs: all settings of the image transforms, as text: part of the cache's key.
        domains: names of the data set's domains, by index.
        cache: where features of a tower that stays as it is are kept.
        workers: loader workers that decode images.
        tower: images (B, 3, H, W) -> features (B, E), where it is not the backbone's own.
        learning: whether training changes what the tower computes. Then gradients flow through it, and nothing is kept,
            neither on disk nor in memory.
        normalised: whether features are L2-normalised.
        drawing: whether the tower takes the images' indices, too, by which it draws; None in training.
    """

    def __init__(
        self,
        backbone: Backbone,
        inputs: str = "",
        domains: tuple[str, ...] = (),
        cache: FeatureCache | None = None,
        workers: int = 0,
        tower: Callable[..., Tensor] | None = None,
        learning: bool = False,
        drawing: bool = False,
        normalised: bool = True,
    ) -> None:
        self.backbone, self.inputs, self.domains, self.workers = backbone, inputs, domains, workers
        self.cache = cache or FeatureCache()
        self.tower: Callable[..., Tensor] = tower or backbone.encode_image
        self.learning, self.drawing, self.normalised = learning, drawing, normalised
        self._kept: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # data set -> {leading: features}

    def encode(self, images: Tensor, indices: Sequence[int] | None = None) -> Tensor:
        """(B, 3, H, W) images -> (B, E) features in single precision.

        Args:
            images: as the loaders give them.
            indices: B indices that what is drawn for an image goes by; None: of a training batch.
        """
        with torch.set_grad_enabled(self.learning and torch.is_grad_enabled()), self.backbone.autocast():
            images = images.to(self.backbone.device, non_blocking=True)
            features = self.tower(images, indices) if self.drawing else self.tower(images)
            features = features.float()
            return features / features.norm(dim=-1, keepdim=True) if self.normalised else features

    def of_batch(self, batch: dict) -> Tensor:
        """Features (B, E) of a training batch: encoded now, or those that it brings from a `ViewLoader`."""
        return self.encode(batch["img"]) if "img" in batch else batch["features"].to(self.backbone.device)

    def of_split(self, loader: DataLoader, description: str) -> np.ndarray:
        """Features (N, E) of a deterministic loader's images in the data set's order."""

        def encode(dataset, out):
            place = itertools.count()

            def encode_next(images):
                return self.encode(images, [next(place) for _ in images] if self.drawing else None)

            self._encode(dataset, out, loader.batch_size or 64, description, encode_next)

        return self._by_domain(loader.dataset, (), encode, description)

    def of_augmented(self, items: SeededItems, batch_size: int, description: str) -> np.ndarray:
        """Features (N, E) of one augmented look at each training image; not kept, as every seed has its own."""
        features = np.empty((len(items), self.backbone.feature_size), np.float32)
        self._encode(FirstLooks(items), features, batch_size, description, self.encode)
        return features

    def views(self, dataset: ImageData, n_views: int, batch_size: int, batches: Batches) -> ViewLoader:
        """A loader of features drawn from random views of each training image, encoded once.

        Args:
            dataset: of training images, with their random transform.
            n_views: K, how many of each image.
            batch_size: images at a time when they are encoded.
            batches: batch sampler that the loader draws by.

        Raises:
            UserError: the tower learns.
        """
        if self.learning:
            raise UserError(
                "TRAINER.FEATURES.TRAIN_VIEWS encodes training images once, but this method's image tower learns, so "
                "their features change with every step. Set it to 0."
            )

        def encode_views(images):
            return self.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2])

        def encode(dataset, out):
            views = RandomViews(dataset, n_views, read_image)
            size = max(1, batch_size // n_views)
            self._encode(views, out.swapaxes(0, 1), size, description, encode_views)

        description = f"train, {n_views} views"
        return ViewLoader(self._by_domain(dataset, (n_views,), encode, description), dataset.data_source, batches)

    def _encode(self, dataset, out, batch_size, description, encode):
        encode_dataset(dataset, encode, out, batch_size, self.workers, description)

    def _by_domain(self, dataset, leading, encode, description):
        """Features (*leading, N, E) of a data set.

        Each domain is an entry of the cache by itself, so that stage I, every stage II and every choice of targets
        share what is encoded of a domain.

        Args:
            encode: called with a data set and an array (*leading, n, E) to fill.
        """
        shape = (*leading, len(dataset.data_source), self.backbone.feature_size)
        if self.learning:
            features = np.empty(shape, np.float32)
            encode(dataset, features)
            return features
        kept = self._kept.setdefault(dataset, {})
        if leading not in kept:
            items = dataset.data_source
            runs = [list(run) for _, run in itertools.groupby(range(len(items)), key=lambda i: items[i].domain)]
            parts = []
            for run in runs:
                part = copy.copy(dataset)
                part.data_source = items[run[0] : run[-1] + 1]
                name = f"{self.domains[items[run[0]].domain]}, {description}"
                shape = (*leading, len(run), self.backbone.feature_size)
                key = self.key(part, *leading)
                parts.append(self.cache.get(key, shape, functools.partial(encode, part), name))
            kept[leading] = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=len(leading))
        return kept[leading]

    def key(self, dataset: ImageData, *more: object) -> str:
        """The cache's name for a data set's features; `more`: what else they depend on, e.g. the number of views."""
        paths = [item.impath for item in dataset.data_source]
        if self.backbone.device.type != "cpu":  # which rounds otherwise
            more = (*more, self.backbone.device.type)
        if not self.normalised:
            more = (*more, "not normalised")
        # The repr of Dassl's own transforms leaves out their settings, which `inputs` has.
        return features_key(
            self.backbone.image_sha256, self.backbone.precision, dataset.transform, paths, self.inputs, *more
        )
