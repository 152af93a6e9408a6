"""Image features: cached for a frozen image tower, recomputed for a learned one."""

import contextlib
import copy
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from dassl.utils import read_image
from torch import Tensor
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from common.errors import warn
from common.locks import InUse
from trainers.modules.clip.backbone import Backbone, BackboneInfo
from trainers.modules.features import FeatureCache, encode_dataset, features_key
from trainers.modules.sampling import Batches, FeatureLoader, ImageData, MultiViewDataset, SeededDataset


@dataclass(eq=False)
class ImageFeatures:
    """Computes features (B, E) of images. Features of a frozen tower are cached."""

    backbone: Backbone
    inputs: str = ""  # all settings of the image transforms as text, a part of the cache key
    domains: tuple[str, ...] = ()  # names of the data set's domains
    cache: FeatureCache = field(default_factory=FeatureCache)
    workers: int = 0
    tower: Callable[..., Tensor] | None = None  # images (B, 3, H, W) -> features (B, E); None: the backbone's
    is_learned: bool = False  # training changes the tower: gradients flow through it, and nothing is cached
    has_draws: bool = False  # the tower also takes the images' indices, as seeds of its draws; None in training
    is_normalised: bool = True
    # Data set -> {views: features}.
    _in_memory: weakref.WeakKeyDictionary = field(default_factory=weakref.WeakKeyDictionary, init=False)

    def encode(self, images: Tensor, indices: Sequence[int] | None = None) -> Tensor:
        """Images (B, 3, H, W) -> features (B, E) in single precision; `indices`: see `has_draws`."""
        with torch.set_grad_enabled(self.is_learned and torch.is_grad_enabled()), self.backbone.autocast():
            tower: Callable[..., Tensor] = self.tower or self.backbone.encode_image
            images = images.to(self.backbone.device, non_blocking=True)
            features = (tower(images, indices) if self.has_draws else tower(images)).float()
            return features / features.norm(dim=-1, keepdim=True) if self.is_normalised else features

    def of_batch(self, batch: dict[str, Any]) -> Tensor:
        """Features (B, E) of a training batch, which has images or, from a `FeatureLoader`, features."""
        return self.encode(batch["img"]) if "img" in batch else batch["features"].to(self.backbone.device)

    def of_split(self, loader: DataLoader, description: str) -> np.ndarray:
        """Features (N, E) of a deterministic loader's images, in the data set's order."""
        dataset: Any = loader.dataset

        def encode(dataset: Any, out: np.ndarray) -> None:
            numbers = itertools.count()

            def encode_batch(images: Tensor) -> Tensor:
                return self.encode(images, [next(numbers) for _ in images] if self.has_draws else None)

            encode_dataset(dataset, encode_batch, out, loader.batch_size or 64, self.workers, description)

        return self._of_data_set(dataset, (), description, encode)

    def of_augmented(self, items: SeededDataset, batch_size: int, description: str) -> np.ndarray:
        """Features (N, E) of one augmented view of each training image; not cached, since each seed has its own."""
        features = np.empty((len(items), self.backbone.feature_size), np.float32)
        encode_dataset(items, self.encode, features, batch_size, self.workers, description)
        return features

    def views(self, dataset: ImageData, n_views: int, batch_size: int, batches: Batches) -> FeatureLoader:
        """A loader of features that draws from `n_views` cached random views of each training image."""
        description, size = f"train, {n_views} views", max(1, batch_size // n_views)

        def encode_views(images: Tensor) -> Tensor:
            return self.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2])

        def encode(dataset: ImageData, out: np.ndarray) -> None:
            views = MultiViewDataset(dataset, n_views, read_image)
            encode_dataset(views, encode_views, out.swapaxes(0, 1), size, self.workers, description)

        features = self._of_data_set(dataset, (n_views,), description, encode)
        return FeatureLoader(features, dataset.data_source, batches)

    def _of_data_set(
        self,
        dataset: ImageData,
        views: tuple[int, ...],
        description: str,
        encode: Callable[[ImageData, np.ndarray], None],
    ) -> np.ndarray:
        """Features (*views, N, E) of a data set.

        Each domain has its own cache entry, which stage I, every stage II and every choice of targets share.

        Args:
            views: (), or (K,) for K views of each image.
            encode: fills an array (*views, n, E) with the features of n images.
        """
        size = self.backbone.feature_size
        if self.is_learned:
            features = np.empty((*views, len(dataset.data_source), size), np.float32)
            encode(dataset, features)
            return features
        in_memory = self._in_memory.setdefault(dataset, {})
        if views not in in_memory:
            entries = []
            for domain in split_domains(dataset):
                items = domain.data_source
                name = f"{self.domains[items[0].domain]}, {description}"
                fill = functools.partial(encode, domain)
                entries.append((self.key(domain, *views), (*views, len(items), size), fill, name))
            for entry in entries:  # domains that another process encodes come last
                with contextlib.suppress(InUse):
                    self.cache.get(*entry, wait=False)
            parts = [self.cache.get(*entry) for entry in entries]
            in_memory[views] = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=len(views))
        return in_memory[views]

    def key(self, dataset: ImageData, *more: object) -> str:
        """The cache key of a data set's features; `more`: other values that they depend on."""
        paths = [item.impath for item in dataset.data_source]
        if self.backbone.device.type != "cpu":  # which rounds otherwise
            more = (*more, self.backbone.device.type)
        if not self.is_normalised:
            more = (*more, "not normalised")
        # The repr of Dassl's own transforms lacks their settings, which `inputs` has.
        return features_key(self.backbone.sha256, self.backbone.precision, dataset.transform, paths, self.inputs, *more)


def split_domains(dataset: ImageData) -> Iterator[ImageData]:
    """The images of each domain; a data set has its domains one after another."""
    items = dataset.data_source
    for _, run in itertools.groupby(range(len(items)), key=lambda i: items[i].domain):
        indices = list(run)
        domain: Any = copy.copy(dataset)
        domain.data_source = items[indices[0] : indices[-1] + 1]
        yield domain


def follow_preprocessing(cfg: CfgNode, backbone: Backbone) -> None:
    """Replace OpenAI's preprocessing in cfg.INPUT by the backbone's; warn if cfg.INPUT has a third one."""
    inputs, info, openais = cfg.INPUT, backbone.info, BackboneInfo()
    changed = [f"resize mode {info.resize_mode}"] if info.resize_mode != openais.resize_mode else []
    differing = [] if "normalize" in inputs.TRANSFORMS else ["normalize in INPUT.TRANSFORMS"]
    for key, fact in (("PIXEL_MEAN", "pixel_mean"), ("PIXEL_STD", "pixel_std"), ("INTERPOLATION", "interpolation")):
        expected = getattr(info, fact)
        if _is_close(inputs[key], expected):
            continue
        if _is_close(inputs[key], getattr(openais, fact)):
            inputs[key] = expected if isinstance(expected, str) else list(expected)
            changed.append(f"INPUT.{key} {inputs[key]}")
        else:
            differing.append(f"INPUT.{key} {expected}")
    if changed and cfg.VERBOSE:
        print(f"Note: images are preprocessed as the backbone {backbone.name} expects: {', '.join(changed)}.")
    if differing:
        warn(f"{backbone.name} expects {', '.join(differing)}. Accuracies will suffer: leave out these keys.")


def follow_resize_mode(transform: Any, inputs: CfgNode, info: BackboneInfo) -> None:
    """Set the resize mode of a backbone in one of Dassl's test transforms."""
    resize = transform.transforms[0]
    if info.resize_mode == "squash":
        resize.size = list(inputs.SIZE)
    elif info.resize_mode == "longest":  # only open_clip's models
        from open_clip.transform import CenterCropOrPad, ResizeKeepRatio

        size = tuple(inputs.SIZE)
        transform.transforms[:2] = [
            ResizeKeepRatio(size, longest=1, interpolation=resize.interpolation),
            CenterCropOrPad(size, fill=info.fill_color),
        ]


def _is_close(a: Any, b: Any) -> bool:
    """Whether two values of a config key are equal up to rounding."""
    return a == b if isinstance(a, str) else np.allclose(a, b, atol=1e-3)
