"""Data loaders from the config."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset
from yacs.config import CfgNode

from dassl.utils.errors import UserAssertionError, UserValueError
from dassl.utils.tools import read_image

from .datasets import Datum, build_dataset
from .samplers import build_sampler
from .transforms import INTERPOLATION_MODES, build_plain_transform, build_transform  # noqa: F401 (clients use them)

Transforms = Callable[[Any], Any] | Sequence[Callable[[Any], Any]] | None
Wrapper = Callable[..., Dataset] | None


class DatasetWrapper(Dataset):
    """Reads and transforms images: items are dicts of ``img`` (C, H, W), ``label``, ``domain``, ``impath``, ``index``.

    Several transforms give ``img``, ``img2``, ``img3`` ...; DATALOADER.K_TRANSFORMS > 1 makes each a list of views in
    training; DATALOADER.RETURN_IMG0 adds the image without augmentation as ``img0``.
    """

    def __init__(
        self, cfg: CfgNode, data_source: Sequence[Datum], transform: Transforms = None, is_train: bool = False
    ) -> None:
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise UserValueError(
                f"DATALOADER.K_TRANSFORMS is {self.k_tfm}, but there is no transform to apply that often: "
                "set it to 1, or INPUT.NO_TRANSFORM to False."
            )
        self.to_tensor = build_plain_transform(cfg)

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        item = self.data_source[idx]
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        img0 = read_image(item.impath)
        if self.transform is None:
            output["img"] = img0
        elif isinstance(self.transform, (list, tuple)):
            for i, tfm in enumerate(self.transform, start=1):
                output["img" if i == 1 else f"img{i}"] = self._transform_image(tfm, img0)
        else:
            output["img"] = self._transform_image(self.transform, img0)
        if self.return_img0:
            output["img0"] = self.to_tensor(img0)
        return output

    def _transform_image(self, tfm: Callable[[Any], Any], img0: Any) -> Any:
        views = [tfm(img0) for _ in range(self.k_tfm)]
        return views[0] if len(views) == 1 else views


def build_data_loader(
    cfg: CfgNode,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence[Datum] | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Transforms = None,
    is_train: bool = True,
    dataset_wrapper: Wrapper = None,
) -> DataLoader:
    """Build the loader of a split. In training it drops an incomplete last batch, unless it is the only one.

    Args:
        n_domain: domains in a batch, for RandomDomainSampler; 0: all.
        n_ins: instances per class in a batch, for RandomClassSampler.
        dataset_wrapper: class to use instead of :class:`DatasetWrapper`.
    """
    if not data_source:
        raise UserAssertionError(
            f"The {'training' if is_train else 'evaluation'} split of {cfg.DATASET.NAME} is empty. "
            "Check DATASET.ROOT, DATASET.SOURCE_DOMAINS and DATASET.TARGET_DOMAINS."
        )
    sampler = build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins)
    drop_last = is_train and len(data_source) >= batch_size
    # Not len(sampler), which would draw.
    if getattr(sampler, "length", len(data_source)) < (batch_size if drop_last else 1):
        raise UserAssertionError(
            f"{sampler_type} finds no complete batch of {batch_size} in the {len(data_source)} items of "
            f"{cfg.DATASET.NAME}: lower DATALOADER.TRAIN_X.BATCH_SIZE (or TRAIN_U's), or use RandomSampler."
        )
    # Workers are not persistent: they are seeded as in Dassl, and see a data set's changes between epochs.
    return DataLoader(
        (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )


class DataManager:
    """The data set and its loaders; a loader is None without its split.

    ``custom_tfm_train`` and ``custom_tfm_test`` replace the transforms of the config.
    """

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Transforms = None,
        custom_tfm_test: Transforms = None,
        dataset_wrapper: Wrapper = None,
    ) -> None:
        self.dataset = dataset = build_dataset(cfg)
        transforms = {
            True: _transform(cfg, custom_tfm_train, is_train=True),
            False: _transform(cfg, custom_tfm_test, is_train=False),
        }

        def build(data_source: Sequence[Datum] | None, node: CfgNode, is_train: bool) -> DataLoader | None:
            if not data_source:
                return None
            return build_data_loader(
                cfg,
                sampler_type=node.SAMPLER,
                data_source=data_source,
                batch_size=node.BATCH_SIZE,
                n_domain=node.get("N_DOMAIN", 0),
                n_ins=node.get("N_INS", 2),
                tfm=transforms[is_train],
                is_train=is_train,
                dataset_wrapper=dataset_wrapper,
            )

        loaders = cfg.DATALOADER
        train_u = loaders.TRAIN_X if loaders.TRAIN_U.SAME_AS_X else loaders.TRAIN_U
        self.train_loader_x = build(dataset.train_x, loaders.TRAIN_X, is_train=True)
        self.train_loader_u = build(dataset.train_u, train_u, is_train=True)
        self.val_loader = build(dataset.val, loaders.TEST, is_train=False)
        self.test_loader = build(dataset.test, loaders.TEST, is_train=False)
        self._num_classes = dataset.num_classes
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self._lab2cname = dataset.lab2cname
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    num_classes = property(attrgetter("_num_classes"))
    num_source_domains = property(attrgetter("_num_source_domains"))
    lab2cname = property(attrgetter("_lab2cname"))

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        rows = [["Dataset", cfg.DATASET.NAME]]
        if cfg.DATASET.SOURCE_DOMAINS:
            rows.append(["Source", cfg.DATASET.SOURCE_DOMAINS])
        if cfg.DATASET.TARGET_DOMAINS:
            rows.append(["Target", cfg.DATASET.TARGET_DOMAINS])
        rows.append(["# classes", f"{self.num_classes:,}"])
        for split in ("train_x", "train_u", "val", "test"):
            items = getattr(self.dataset, split)
            if items:
                rows.append([f"# {split}", f"{len(items):,}"])
        print(tabulate(rows))


def _transform(cfg: CfgNode, custom: Any, is_train: bool) -> Any:
    if custom is None:
        return build_transform(cfg, is_train=is_train)
    print(f"* Using custom transform for {'training' if is_train else 'testing'}")
    return custom
