"""Image features: cached for a frozen image tower, recomputed for a learned one."""

import contextlib
import copy
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from dassl.utils import read_image
from torch import Tensor
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from common.errors import UserError
from common.locks import InUse
from trainers.modules.clip.backbone import Backbone
from trainers.modules.clip.info import BackboneInfo
from trainers.modules.features import FeatureCache, encode_dataset, features_key
from trainers.modules.sampling import Batches, FeatureLoader, ImageData, MultiViewDataset, SeededDataset


class _Encoding(NamedTuple):
    """How features of a data set are made.

    Args:
        dataset: of the images.
        leading: sizes of the features before the images': (), or (K,) of K views.
        batch_size: images at a time.
        description: for messages.
        encode: called with a domain of the data set, and an array (*leading, n, E) to fill.
    """

    dataset: ImageData
    leading: tuple[int, ...]
    batch_size: int
    description: str
    encode: Callable[[ImageData, np.ndarray], None]


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
        """Features (B, E) of a training batch: encoded now, or those that it brings from a `FeatureLoader`."""
        return self.encode(batch["img"]) if "img" in batch else batch["features"].to(self.backbone.device)

    def of_split(self, loader: DataLoader, description: str) -> np.ndarray:
        """Features (N, E) of a deterministic loader's images in the data set's order."""
        return self._by_domain(self._split(loader, description))

    def of_augmented(self, items: SeededDataset, batch_size: int, description: str) -> np.ndarray:
        """Features (N, E) of one augmented look at each training image; not kept, as every seed has its own."""
        features = np.empty((len(items), self.backbone.feature_size), np.float32)
        encode_dataset(items, self.encode, features, batch_size, self.workers, description)
        return features

    def views(self, dataset: ImageData, n_views: int, batch_size: int, batches: Batches) -> FeatureLoader:
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
        views = self._by_domain(self._views(dataset, n_views, batch_size))
        return FeatureLoader(views, dataset.data_source, batches)

    def _split(self, loader: DataLoader, description: str) -> "_Encoding":
        dataset: Any = loader.dataset
        batch_size = loader.batch_size or 64

        def encode(dataset, out):
            place = itertools.count()

            def encode_next(images):
                return self.encode(images, [next(place) for _ in images] if self.drawing else None)

            encode_dataset(dataset, encode_next, out, batch_size, self.workers, description)

        return _Encoding(dataset, (), batch_size, description, encode)

    def _views(self, dataset: ImageData, n_views: int, batch_size: int) -> "_Encoding":
        description, size = f"train, {n_views} views", max(1, batch_size // n_views)

        def encode_views(images):
            return self.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2])

        def encode(dataset, out):
            views = MultiViewDataset(dataset, n_views, read_image)
            encode_dataset(views, encode_views, out.swapaxes(0, 1), size, self.workers, description)

        return _Encoding(dataset, (n_views,), size, description, encode)

    def _by_domain(self, what: "_Encoding") -> np.ndarray:
        """Features (*leading, N, E) of a data set.

        Each domain is an entry of the cache by itself, so that stage I, every stage II and every choice of targets
        share what is encoded of a domain.
        """
        if self.learning:
            n = len(what.dataset.data_source)
            features = np.empty((*what.leading, n, self.backbone.feature_size), np.float32)
            what.encode(what.dataset, features)
            return features
        kept = self._kept.setdefault(what.dataset, {})
        if what.leading not in kept:
            entries = [self._entry(domain, what) for domain in self._domains(what.dataset)]
            for entry in entries:  # features that another process encodes come last
                with contextlib.suppress(InUse):
                    self.cache.get(*entry, wait=False)
            parts = [self.cache.get(*entry) for entry in entries]
            kept[what.leading] = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=len(what.leading))
        return kept[what.leading]

    def _domains(self, dataset: ImageData) -> Iterator[ImageData]:
        """Each domain's images in a data set, which has them one after another."""
        items = dataset.data_source
        for _, run in itertools.groupby(range(len(items)), key=lambda i: items[i].domain):
            indices = list(run)
            domain: Any = copy.copy(dataset)
            domain.data_source = items[indices[0] : indices[-1] + 1]
            yield domain

    def _entry(
        self, domain: ImageData, what: "_Encoding"
    ) -> tuple[str, tuple[int, ...], Callable[[np.ndarray], None], str]:
        """Arguments of `FeatureCache.get` for a domain's features."""
        items = domain.data_source
        name = f"{self.domains[items[0].domain]}, {what.description}"
        shape = (*what.leading, len(items), self.backbone.feature_size)
        return self.key(domain, *what.leading), shape, functools.partial(what.encode, domain), name

    def key(self, dataset: ImageData, *more: object) -> str:
        """The cache's name for a data set's features; `more`: what else they depend on, e.g. the number of views."""
        paths = [item.impath for item in dataset.data_source]
        if self.backbone.device.type != "cpu":  # which rounds otherwise
            more = (*more, self.backbone.device.type)
        if not self.normalised:
            more = (*more, "not normalised")
        # The repr of Dassl's own transforms leaves out their settings, which `inputs` has.
        return features_key(self.backbone.sha256, self.backbone.precision, dataset.transform, paths, self.inputs, *more)


def follow_facts(inputs: CfgNode, facts: BackboneInfo) -> list[str]:
    """Put a backbone's mean, standard deviation and interpolation where INPUT has OpenAI's, as configs do.

    Returns:
        the keys that changed, with their values, and the resize mode, for which there is no key.
    """
    openais, taken = BackboneInfo(), []
    for key, in_configs, own in (
        ("PIXEL_MEAN", openais.pixel_mean, list(facts.pixel_mean)),
        ("PIXEL_STD", openais.pixel_std, list(facts.pixel_std)),
        ("INTERPOLATION", openais.interpolation, facts.interpolation),
    ):
        if _alike(inputs[key], in_configs) and not _alike(inputs[key], own):
            inputs[key] = own
            taken.append(f"INPUT.{key} {own}")
    if facts.resize_mode != openais.resize_mode:
        taken.append(f"resize mode {facts.resize_mode} at validation and test")
    return taken


def follow_resize_mode(transform: Any, inputs: CfgNode, facts: BackboneInfo) -> Any:
    """Change one of Dassl's transforms for testing to the resize mode of a backbone, and return it."""
    resize = transform.transforms[0]
    if facts.resize_mode == "squash":
        resize.size = list(inputs.SIZE)
    elif facts.resize_mode == "longest":  # which only open_clip's models have
        from open_clip.transform import CenterCropOrPad, ResizeKeepRatio

        size = tuple(inputs.SIZE)
        transform.transforms[:2] = [
            ResizeKeepRatio(size, longest=1, interpolation=resize.interpolation),
            CenterCropOrPad(size, fill=facts.fill_color),
        ]
    return transform


def warn_of_preprocessing(inputs: CfgNode, backbone: str, facts: BackboneInfo) -> None:
    """Warn if images are normalised or resized in another way than the backbone expects."""
    expected = {"PIXEL_MEAN": facts.pixel_mean, "PIXEL_STD": facts.pixel_std, "INTERPOLATION": facts.interpolation}
    others = [f"INPUT.{key} {value}" for key, value in expected.items() if not _alike(inputs[key], value)]
    others += [] if "normalize" in inputs.TRANSFORMS else ["normalize in INPUT.TRANSFORMS"]
    if others:
        print(f"Warning: {backbone} expects {', '.join(others)}. Accuracies will suffer: leave out these keys.")


def _alike(a, b):
    """Whether two values of a key, texts or numbers, are the same as far as configs write them out."""
    return a == b if isinstance(a, str) else np.allclose(a, b, atol=1e-3)
