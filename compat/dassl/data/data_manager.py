"""From the configuration to data loaders."""

import torch
from tabulate import tabulate
from torch.utils.data import DataLoader

from dassl.utils.errors import UserAssertionError
from dassl.utils.tools import read_image  # noqa: F401 (clients take it from here)

from .dataset_wrapper import DatasetWrapper
from .datasets import build_dataset
from .samplers import build_sampler
from .transforms import INTERPOLATION_MODES, build_transform  # noqa: F401 (likewise)

__all__ = ["DataManager", "DatasetWrapper", "build_data_loader"]


def build_data_loader(
    cfg,
    sampler_type="SequentialSampler",
    data_source=None,
    batch_size=64,
    n_domain=0,
    n_ins=2,
    tfm=None,
    is_train=True,
    dataset_wrapper=None,
):
    """Build the loader of one split.

    Workers are started anew for each pass over the loader, as in Dassl: only so are they seeded as there, and
    does what a trainer changes in the data set between epochs reach them.

    Args:
        cfg: the configuration.
        sampler_type (str): see :func:`dassl.data.samplers.build_sampler`.
        data_source: list of Datum.
        batch_size (int): items in a batch. In training an incomplete last batch is dropped, unless it is the
            only one.
        n_domain (int): domains in a batch, for RandomDomainSampler.
        n_ins (int): instances per class in a batch, for RandomClassSampler.
        tfm: a transform or several, see :class:`DatasetWrapper`.
        is_train (bool): training or evaluation.
        dataset_wrapper: the class to use instead of :class:`DatasetWrapper`.

    Returns:
        a torch DataLoader of dicts.

    Raises:
        UserAssertionError: no items, or fewer than the sampler needs.
        UserValueError: unknown sampler.
    """
    if not data_source:
        raise UserAssertionError(
            f"The {'training' if is_train else 'evaluation'} split of {cfg.DATASET.NAME} is empty. "
            "Check DATASET.ROOT, DATASET.SOURCE_DOMAINS and DATASET.TARGET_DOMAINS."
        )
    sampler = build_sampler(
        sampler_type,
        cfg=cfg,
        data_source=data_source,
        batch_size=batch_size,
        n_domain=n_domain,
        n_ins=n_ins,
    )
    drop_last = is_train and len(data_source) >= batch_size
    # Not len(), for which the samplers that have a length of their own would have to draw.
    if getattr(sampler, "length", len(data_source)) < (batch_size if drop_last else 1):
        raise UserAssertionError(
            f"{sampler_type} finds no complete batch of {batch_size} in the {len(data_source)} items of "
            f"{cfg.DATASET.NAME}: lower DATALOADER.TRAIN_X.BATCH_SIZE (or TRAIN_U's), or use RandomSampler."
        )
    return DataLoader(
        (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )


class DataManager:
    """The dataset, its loaders and what trainers ask about it.

    Attributes: ``dataset``, ``num_classes``, ``num_source_domains``, ``lab2cname``, ``train_loader_x``,
    ``train_loader_u``, ``val_loader``, ``test_loader``; a loader is None where the dataset has no such split.

    Args:
        cfg: the configuration.
        custom_tfm_train, custom_tfm_test: used instead of the transforms that the configuration describes.
        dataset_wrapper: used instead of :class:`DatasetWrapper`.

    Raises:
        UserError: unknown dataset, sampler or transform, or an empty split; which one see there.
    """

    def __init__(self, cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None):
        dataset = build_dataset(cfg)
        tfm_train = _transform(cfg, custom_tfm_train, is_train=True)
        tfm_test = _transform(cfg, custom_tfm_test, is_train=False)
        x, u, test = cfg.DATALOADER.TRAIN_X, cfg.DATALOADER.TRAIN_U, cfg.DATALOADER.TEST
        if u.SAME_AS_X:
            u = x

        def training(data_source, node):
            if not data_source:
                return None
            return build_data_loader(
                cfg,
                sampler_type=node.SAMPLER,
                data_source=data_source,
                batch_size=node.BATCH_SIZE,
                n_domain=node.N_DOMAIN,
                n_ins=node.N_INS,
                tfm=tfm_train,
                is_train=True,
                dataset_wrapper=dataset_wrapper,
            )

        def evaluation(data_source):
            if not data_source:
                return None
            return build_data_loader(
                cfg,
                sampler_type=test.SAMPLER,
                data_source=data_source,
                batch_size=test.BATCH_SIZE,
                tfm=tfm_test,
                is_train=False,
                dataset_wrapper=dataset_wrapper,
            )

        self.dataset = dataset
        self.train_loader_x = training(dataset.train_x, x)
        self.train_loader_u = training(dataset.train_u, u)
        self.val_loader = evaluation(dataset.val)
        self.test_loader = evaluation(dataset.test)
        self._num_classes = dataset.num_classes
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self._lab2cname = dataset.lab2cname
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    @property
    def num_classes(self):
        """Number of classes."""
        return self._num_classes

    @property
    def num_source_domains(self):
        """Number of domains in DATASET.SOURCE_DOMAINS."""
        return self._num_source_domains

    @property
    def lab2cname(self):
        """Dict from labels to class names."""
        return self._lab2cname

    def show_dataset_summary(self, cfg):
        """Print a table: dataset, domains, number of classes, sizes of the splits."""
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


def _transform(cfg, custom, is_train):
    if custom is None:
        return build_transform(cfg, is_train=is_train)
    print(f"* Using custom transform for {'training' if is_train else 'testing'}")
    return custom
