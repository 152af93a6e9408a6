"""The data of a run: Dassl's, with what our trainers ask of it."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from dassl.data.data_manager import build_data_loader
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from datasets.adapted import adapted
from datasets.readable import warn_of_orientation
from trainers.base.image_features import follow_resize_mode
from trainers.modules.backbone_source import Facts
from trainers.modules.image_data import Batches, Item
from trainers.modules.seeded_items import SeededBatches, SeededItems


class ClassNamesOnly:
    """Takes the place of Dassl's DataManager where there are no images."""

    def __init__(self, classnames: Sequence[str]) -> None:
        self.dataset = SimpleNamespace(classnames=list(classnames), domains=(), source_domains=(), target_domains=())
        self.num_classes = len(classnames)
        self.lab2cname = dict(enumerate(classnames))


def adapt_to_run(trainer: Any, facts: Facts) -> None:
    """Give a trainer's data, which may be written for Dassl alone, what our trainers ask of it.

    Args:
        trainer: whose data set and loaders it is.
        facts: of the backbone, which have the resize mode of tests.
    """
    dataset, cfg = adapted(trainer.dm.dataset, trainer.cfg), trainer.cfg
    if dataset is not trainer.dm.dataset:
        trainer.dm.dataset = dataset
        loaders = (
            (trainer.train_loader_x, dataset.train_x),
            (trainer.val_loader, dataset.val),
            (trainer.test_loader, dataset.test),
        )
        for loader, items in loaders:
            if loader is not None:
                loader.dataset.data_source = items
    if cfg.VERBOSE:
        by_domain: dict[int, list[str]] = {}
        for item in (*dataset.train_x, *dataset.val, *dataset.test):
            by_domain.setdefault(item.domain, []).append(item.impath)
        images = f"images of {cfg.DATASET.NAME} under {cfg.DATASET.ROOT}"
        any(warn_of_orientation(paths, images) for paths in by_domain.values())
    for loader in (trainer.val_loader, trainer.test_loader):
        if loader is not None:
            follow_resize_mode(loader.dataset.transform, cfg.INPUT, facts)


def training_loader(loader: DataLoader, batches: Batches, seed: int, epoch: Callable[[], int]) -> DataLoader:
    """Dassl's training loader, with a trainer's batches and augmentation that any number of workers repeats.

    Args:
        loader: Dassl's.
        batches: of indices.
        seed: the run's; below 0: one of chance, since each worker would augment alike otherwise.
        epoch: says which epoch it is.
    """
    dataset: Any = loader.dataset
    return DataLoader(
        SeededItems(dataset, seed if seed >= 0 else int(np.random.SeedSequence().generate_state(1)[0])),
        batch_sampler=SeededBatches(batches, epoch),
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        persistent_workers=loader.num_workers > 0,
        # Its own, or the draws from the global one would depend on whether workers were just started.
        generator=torch.Generator(),
    )


def loader_in_order(cfg: CfgNode, items: Sequence[Item], transform: Any) -> DataLoader:
    """A loader of images in order, by a transform that augments nothing."""
    return build_data_loader(
        cfg, data_source=items, batch_size=cfg.DATALOADER.TEST.BATCH_SIZE, tfm=transform, is_train=False
    )
