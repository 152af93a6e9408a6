"""Trainers for a configuration: on labelled data, and on labelled and unlabelled data."""

import datetime
import os.path as osp
import shutil
import time

import torch
from torch import nn
from tqdm import tqdm

from dassl.data import DataManager
from dassl.evaluation import build_evaluator
from dassl.modeling import build_backbone, build_head
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    mkdir_if_missing,
    resume_from_checkpoint,
    save_checkpoint,
    tolist_if_not,
)
from dassl.utils.errors import UserFileNotFoundError, UserValueError
from dassl.utils.registry import check_availability
from dassl.utils.torchtools import BEST

from .base import TrainerBase
from .progress import Progress

# Dassl's module has all of these, and clients take them from here.
__all__ = [
    "AverageMeter",
    "DataManager",
    "MetricMeter",
    "SimpleNet",
    "SimpleTrainer",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
    "build_backbone",
    "build_evaluator",
    "build_head",
    "build_lr_scheduler",
    "build_optimizer",
    "count_num_param",
    "load_checkpoint",
    "load_pretrained_weights",
    "mkdir_if_missing",
    "resume_from_checkpoint",
    "save_checkpoint",
    "tolist_if_not",
]


def __getattr__(name: str) -> object:
    if name != "SummaryWriter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Only for those who ask: it takes a second to import, and tensorboard may not be installed.
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter


class SimpleNet(nn.Module):
    """A backbone, a head if one is named, and a linear classifier.

    Args:
        cfg: the configuration (VERBOSE).
        model_cfg: the node ``cfg.MODEL``, or one like it.
        num_classes (int): 0: no classifier.
        **kwargs: passed on to backbone and head.

    Raises:
        RegistryError: there is no backbone or head of that name.
    """

    def __init__(self, cfg, model_cfg, num_classes, **kwargs):
        super().__init__()
        backbone, head = model_cfg.BACKBONE, model_cfg.HEAD
        self.backbone = build_backbone(backbone.NAME, verbose=cfg.VERBOSE, pretrained=backbone.PRETRAINED, **kwargs)
        self._fdim = self.backbone.out_features
        self.head = None
        if head.NAME and head.HIDDEN_LAYERS:
            self.head = build_head(
                head.NAME,
                verbose=cfg.VERBOSE,
                in_features=self._fdim,
                hidden_layers=head.HIDDEN_LAYERS,
                activation=head.ACTIVATION,
                bn=head.BN,
                dropout=head.DROPOUT,
                **kwargs,
            )
            self._fdim = self.head.out_features
        self.classifier = nn.Linear(self._fdim, num_classes) if num_classes > 0 else None

    @property
    def fdim(self) -> int:
        """Number of features, which the classifier takes."""
        return self._fdim

    def forward(
        self, x: torch.Tensor, return_feature: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """From images (B, C, H, W) to scores, or to (scores, features); without classifier, to features."""
        features = self.backbone(x)
        if self.head is not None:
            features = self.head(features)
        if self.classifier is None:
            return features
        scores = self.classifier(features)
        return (scores, features) if return_feature else scores


class SimpleTrainer(TrainerBase):
    """Builds data, model and evaluator from a configuration; trains, evaluates, saves and resumes.

    A subclass says what it trains: ``build_model`` and ``forward_backward``, and where its batches or its
    forward pass differ, ``parse_batch_train``, ``parse_batch_test`` and ``model_inference``.

    Attributes: ``cfg``, ``device``, ``output_dir``, ``epoch``, ``start_epoch``, ``max_epoch``, ``dm`` (the
    DataManager), ``train_loader_x``, ``train_loader_u``, ``val_loader``, ``test_loader``, ``num_classes``,
    ``num_source_domains``, ``lab2cname``, ``evaluator``, ``best_result``.

    Args:
        cfg: the configuration.

    Raises:
        UserError: what the configuration names does not exist, see :class:`DataManager` and ``build_model``.
    """

    def __init__(self, cfg):
        super().__init__()
        self.check_cfg(cfg)
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = -float("inf")

    def check_cfg(self, cfg):
        """Check that the configuration suits the trainer; a subclass raises what does not."""

    def build_data_loader(self):
        """Build the loaders and what else is known from the data."""
        dm = DataManager(self.cfg)
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u
        self.val_loader = dm.val_loader
        self.test_loader = dm.test_loader
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname
        self.dm = dm

    def build_model(self):
        """Build and register the model: a :class:`SimpleNet`, unless a subclass has another.

        Raises:
            RegistryError: there is no backbone of the name MODEL.BACKBONE.NAME; this core has none of its own.
        """
        cfg = self.cfg
        print("Building model")
        self.model = SimpleNet(cfg, cfg.MODEL, self.num_classes)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        print(f"# params: {count_num_param(self.model):,}")
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)
        if torch.cuda.device_count() > 1:
            print(f"Detected {torch.cuda.device_count()} GPUs (use nn.DataParallel)")
            self.model = nn.DataParallel(self.model)

    # -- the loop -------------------------------------------------------------------------------

    def train(self):
        """Train from the start, or from where an earlier run in RESUME or OUTPUT_DIR stopped; then test."""
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self):
        """Resume if there is something to resume; start tensorboard and the clock."""
        if self.train_loader_x is None:
            raise UserValueError(
                f"{self.cfg.DATASET.NAME} has no training data for DATASET.SOURCE_DOMAINS "
                f"{list(self.cfg.DATASET.SOURCE_DOMAINS)}: it can be evaluated (--eval-only), not trained on."
            )
        directory = self.cfg.RESUME or self.output_dir
        if self.cfg.RESUME and not osp.isdir(directory):
            raise UserFileNotFoundError(
                f"Nothing to resume from: RESUME names the folder {directory}, which does not exist. "
                "Name the OUTPUT_DIR of an earlier run, or leave it empty."
            )
        self.start_epoch = self.resume_model_if_exist(directory)
        if self.start_epoch:
            self.best_result = self._adopt_best(directory)
        self.init_writer(osp.join(self.output_dir, "tensorboard"))
        # The clock of "Elapsed".
        self.time_start = time.time()

    def _adopt_best(self, directory):
        """Return the val result of the best models in ``directory``, and have them in ``output_dir`` too.

        Without it the first epoch after a resume would always count as the best.
        """
        files = {name: osp.join(directory, name, BEST) for name in self.get_model_names()}
        if not all(map(osp.isfile, files.values())):
            return -float("inf")
        results = {load_checkpoint(fpath).get("val_result") for fpath in files.values()}
        # Models that were saved together have one result.
        if len(results) != 1 or None in results:
            return -float("inf")
        if osp.abspath(directory) != osp.abspath(self.output_dir):
            for name, fpath in files.items():
                mkdir_if_missing(osp.join(self.output_dir, name))
                shutil.copyfile(fpath, osp.join(self.output_dir, name, BEST))
        return results.pop()

    def after_epoch(self):
        """Evaluate on val and keep the best model, if that is asked for; save when it is time."""
        last_epoch = self.epoch + 1 == self.max_epoch
        freq = self.cfg.TRAIN.CHECKPOINT_FREQ
        if not self.cfg.TEST.NO_TEST and self.cfg.TEST.FINAL_MODEL == "best_val":
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=BEST)
        if last_epoch or (freq > 0 and (self.epoch + 1) % freq == 0):
            self.save_model(self.epoch, self.output_dir)

    def after_train(self):
        """Test the best or the last model, print the time and finish tensorboard."""
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        print(f"Elapsed: {datetime.timedelta(seconds=round(time.time() - self.time_start))}")
        self.close_writer()

    # -- evaluation -----------------------------------------------------------------------------

    @torch.no_grad()
    def test(self, split=None):
        """Evaluate and print the results.

        Args:
            split (str): ``"test"`` or ``"val"``; None: TEST.SPLIT. Without a val split, test stands in.

        Returns:
            float: the first result of the evaluator; for Classification the accuracy in percent.
        """
        split, loader = self._evaluation_loader(split or self.cfg.TEST.SPLIT)
        self.set_model_mode("eval")
        self.evaluator.reset()
        print(f"Evaluate on the *{split}* set")
        # None: a bar only where stderr, on which it is drawn, is a terminal.
        for batch in tqdm(loader, disable=None, leave=False):
            input, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(input), label)
        results = self.evaluator.evaluate()
        for key, value in results.items():
            self.write_scalar(f"{split}/{key}", value, self.epoch)
        return next(iter(results.values()))

    def _evaluation_loader(self, split):
        check_availability(split, ("val", "test"), "split (TEST.SPLIT)")
        if split == "val" and self.val_loader is None:
            print("Note: the dataset has no val split, so the test split stands in for it")
            split = "test"
        loader = self.val_loader if split == "val" else self.test_loader
        if loader is None:
            raise UserValueError(
                f"{self.cfg.DATASET.NAME} has no test data for DATASET.TARGET_DOMAINS "
                f"{list(self.cfg.DATASET.TARGET_DOMAINS)}: name a target domain, or set TEST.NO_TEST True."
            )
        return split, loader

    def model_inference(self, input):
        """Return the scores (B, C) of ``self.model`` for images (B, C, H, W)."""
        return self.model(input)

    def parse_batch_test(self, batch):
        """Return images (B, C, H, W) and labels (B,), on the device."""
        return self._to_device(batch["img"]), self._to_device(batch["label"])

    def _to_device(self, value):
        # A list is several views of the images (DATALOADER.K_TRANSFORMS).
        if isinstance(value, list):
            return [self._to_device(item) for item in value]
        # Memory is pinned where there is a GPU, so copies may overlap with computing.
        return value.to(self.device, non_blocking=True)


class TrainerX(SimpleTrainer):
    """Trains on labelled data."""

    def run_epoch(self):
        """Train for one epoch; sets ``batch_idx`` and ``num_batches`` for ``forward_backward``."""
        self.set_model_mode("train")
        self.num_batches = len(self.train_loader_x)
        progress = Progress(self, self.cfg.TRAIN.PRINT_FREQ)
        for self.batch_idx, batch in enumerate(self.train_loader_x):  # noqa: B020
            progress.data_loaded()
            progress.batch_done(self.forward_backward(batch))

    def parse_batch_train(self, batch):
        """Return images, labels and domains, on the device."""
        return tuple(self._to_device(batch[key]) for key in ("img", "label", "domain"))


class TrainerXU(SimpleTrainer):
    """Trains on labelled and unlabelled data: each step takes a batch of both."""

    def run_epoch(self):
        """Train for one epoch, which is as long as TRAIN.COUNT_ITER says."""
        self.set_model_mode("train")
        if self.train_loader_u is None:
            raise UserValueError(
                f"{self.cfg.DATASET.NAME} has no unlabelled training data (train_u), which "
                f"{type(self).__name__} needs. Use a dataset that has, or a trainer of labelled data."
            )
        self.num_batches = self._count_iterations()
        batches_x, batches_u = _EndlessBatches(self.train_loader_x), _EndlessBatches(self.train_loader_u)
        progress = Progress(self, self.cfg.TRAIN.PRINT_FREQ)
        for self.batch_idx in range(self.num_batches):  # noqa: B020
            batch_x, batch_u = next(batches_x), next(batches_u)
            progress.data_loaded()
            progress.batch_done(self.forward_backward(batch_x, batch_u))

    def _count_iterations(self):
        len_x, len_u = _count_batches(self.train_loader_x), _count_batches(self.train_loader_u)
        counts = {"train_x": len_x, "train_u": len_u, "smaller_one": min(len_x, len_u)}
        check_availability(self.cfg.TRAIN.COUNT_ITER, counts, "way to count batches (TRAIN.COUNT_ITER)")
        return counts[self.cfg.TRAIN.COUNT_ITER]

    def parse_batch_train(self, batch_x, batch_u):
        """Return labelled images, their labels, and unlabelled images, on the device."""
        return tuple(self._to_device(x) for x in (batch_x["img"], batch_x["label"], batch_u["img"]))


def _count_batches(loader):
    """Return the number of batches in an epoch: by the first draw of samplers that draw whole epochs, as in Dassl."""
    n_items = getattr(getattr(loader, "sampler", None), "length", None)
    if n_items is None:
        return len(loader)
    return n_items // loader.batch_size if loader.drop_last else -(-n_items // loader.batch_size)


class _EndlessBatches:
    """Batches of a loader, which starts again when they end.

    Both loaders start before the first batch: a loader draws from the random generators when it starts, as in Dassl.
    """

    def __init__(self, loader):
        self.loader = loader
        self.batches = iter(loader)

    def __next__(self):
        try:
            return next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            return next(self.batches)
