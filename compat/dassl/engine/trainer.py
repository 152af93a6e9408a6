"""The training loop. TrainerBase has models, checkpoints and hooks; SimpleTrainer and below are built from a config."""

import datetime
import os.path as osp
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm import tqdm
from yacs.config import CfgNode

from dassl.data import DataManager
from dassl.evaluation import build_evaluator
from dassl.modeling import build_backbone, build_head
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    check_availability,
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    mkdir_if_missing,
    resume_from_checkpoint,  # noqa: F401 (this and the last one are for clients that import them from here)
    save_checkpoint,
    tolist_if_not,  # noqa: F401
)
from dassl.utils.errors import UserAssertionError, UserFileNotFoundError, UserValueError
from dassl.utils.torchtools import BEST, load_weights, newest_checkpoint, restore

Names = str | Sequence[str] | None


def __getattr__(name: str) -> object:
    if name != "SummaryWriter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torch.utils.tensorboard import SummaryWriter  # takes a second to import, and may not be installed

    return SummaryWriter


class SimpleNet(nn.Module):
    """A backbone, a head if ``model_cfg`` names one, and a linear classifier unless ``num_classes`` is 0.

    ``kwargs`` go to backbone and head.
    """

    def __init__(self, cfg: CfgNode, model_cfg: CfgNode, num_classes: int, **kwargs: Any) -> None:
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
        """Number of features."""
        return self._fdim

    def forward(self, x: torch.Tensor, return_feature: bool = False) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """From images (B, C, H, W) to scores, or to (scores, features); without classifier to features."""
        features = self.backbone(x)
        if self.head is not None:
            features = self.head(features)
        if self.classifier is None:
            return features
        scores = self.classifier(features)
        return (scores, features) if return_feature else scores


class TrainerBase:
    """Registered models with their optimizers and schedules; checkpoints; the loop over epochs with its hooks."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, Optimizer | None] = OrderedDict()
        self._scheds: OrderedDict[str, LRScheduler | None] = OrderedDict()
        self._writer = None

    # -- models ---------------------------------------------------------------------------------

    def register_model(
        self,
        name: str = "model",
        model: nn.Module | None = None,
        optim: Optimizer | None = None,
        sched: LRScheduler | None = None,
    ) -> None:
        """Save, load, resume and switch this model from now on. ``name`` is its folder in OUTPUT_DIR."""
        if "_models" not in self.__dict__:
            raise AttributeError("Cannot register a model before super().__init__() is called")
        if name in self._models:
            raise AssertionError(f"There is already a model called {name!r}")
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: Names = None) -> list[str]:
        """Return all names, or ``names`` if models of these names are registered."""
        if names is None:
            return list(self._models)
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            check_availability(name, self._models, "model", UserAssertionError)
        return names

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Set models to ``"train"``, or to ``"eval"`` (also ``"test"``)."""
        if mode not in ("train", "eval", "test"):
            raise KeyError(f"Unknown mode {mode!r}. Accepted: train, eval, test.")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # -- checkpoints ----------------------------------------------------------------------------

    def save_model(
        self,
        epoch: int,
        directory: str,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Save each model to ``<directory>/<name>/model.pth.tar-<epoch + 1>`` (or ``model_name``)."""
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                # A NumPy number would not load without running code.
                "val_result": None if val_result is None else float(val_result),
            }
            save_checkpoint(state, osp.join(directory, name), is_best=is_best, model_name=model_name)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load each model's weights of an epoch (None: the best ones) from ``<directory>/<name>/``."""
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        file_name = BEST if epoch is None else f"model.pth.tar-{epoch}"
        for name in self.get_model_names():
            fpath = osp.join(directory, name, file_name)
            checkpoint = load_checkpoint(fpath)
            val_result = checkpoint.get("val_result")
            val_result = f"{val_result:.1f}" if isinstance(val_result, float) else val_result
            print(f"Load {fpath} to {name} (epoch={checkpoint.get('epoch')}, val_result={val_result})")
            load_weights(self._models[name], checkpoint["state_dict"], fpath)

    def resume_model_if_exist(self, directory: str) -> int:
        """Load models, optimizers and schedules, and return the epoch to start from; 0 without checkpoints."""
        names = self.get_model_names()
        files = self._newest_common(directory, names)
        if not files:
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        for name, fpath in files.items():
            start_epoch = restore(fpath, self._models[name], self._optims[name], self._scheds[name])
        return start_epoch

    def _newest_common(self, directory: str, names: list[str]) -> dict[str, str]:
        """Return the checkpoint of each model from their newest common epoch: a run may die between two saves."""
        newest = {name: newest_checkpoint(osp.join(directory, name)) for name in names}
        if not names or None in newest.values():
            return {}
        if len(names) == 1:
            return newest
        epochs = {name: load_checkpoint(fpath)["epoch"] for name, fpath in newest.items()}
        if len(set(epochs.values())) == 1:
            return newest
        print(f"The newest checkpoints are from different epochs: {epochs}")
        for epoch in range(min(epochs.values()), 0, -1):
            files = {name: osp.join(directory, name, f"model.pth.tar-{epoch}") for name in names}
            if all(map(osp.isfile, files.values())):
                return files
        return {}

    # -- TensorBoard ----------------------------------------------------------------------------

    def init_writer(self, log_dir: str) -> None:
        """Start a TensorBoard file; without tensorboard, print a note."""
        if self._writer is not None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            print("Tensorboard is not installed (pip install tensorboard): no scalars are written")
            return
        print(f"Initialize tensorboard (log_dir={log_dir})")
        mkdir_if_missing(log_dir)
        self._writer = SummaryWriter(log_dir=log_dir)

    def close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # -- the loop -------------------------------------------------------------------------------

    def train(self, start_epoch: int, max_epoch: int) -> None:
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()  # may move start_epoch
        for self.epoch in range(self.start_epoch, self.max_epoch):  # noqa: B020
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_train(self) -> None:
        pass

    def after_train(self) -> None:
        pass

    def before_epoch(self) -> None:
        pass

    def after_epoch(self) -> None:
        pass

    def run_epoch(self) -> None:
        raise NotImplementedError

    def test(self) -> float:
        raise NotImplementedError

    def parse_batch_train(self, batch: dict[str, Any]) -> Any:
        """Move the parts of a batch that training needs to the device."""
        raise NotImplementedError

    def parse_batch_test(self, batch: dict[str, Any]) -> Any:
        raise NotImplementedError

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float] | None:
        """Do a training step and return the numbers to print."""
        raise NotImplementedError

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    # -- steps ----------------------------------------------------------------------------------

    def detect_anomaly(self, loss: torch.Tensor) -> None:
        if not torch.isfinite(loss).all():
            raise FloatingPointError(
                "Loss is infinite or NaN! Try a lower learning rate (OPTIM.LR), or fp32 instead of fp16."
            )

    def model_zero_grad(self, names: Names = None) -> None:
        for optim in self._present(self._optims, names):
            optim.zero_grad()

    def model_backward(self, loss: torch.Tensor) -> None:
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: Names = None) -> None:
        for optim in self._present(self._optims, names):
            optim.step()

    def model_backward_and_update(self, loss: torch.Tensor, names: Names = None) -> None:
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def update_lr(self, names: Names = None) -> None:
        """Step the schedules: once per epoch."""
        for sched in self._present(self._scheds, names):
            sched.step()

    def get_current_lr(self, names: Names = None) -> float:
        """Return the learning rate of the first model with an optimizer; 0 if none has one."""
        for optim in self._present(self._optims, names):
            return optim.param_groups[0]["lr"]
        return 0.0

    def _present(self, table: dict[str, Any], names: Names) -> list:
        return [table[name] for name in self.get_model_names(names) if table[name] is not None]


class SimpleTrainer(TrainerBase):
    """Builds data, model and evaluator from a config; trains, evaluates, saves and resumes.

    Subclasses override ``build_model`` and ``forward_backward``, and ``parse_batch_train``, ``parse_batch_test`` and
    ``model_inference`` where their batches or their forward pass differ.
    """

    def __init__(self, cfg: CfgNode) -> None:
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

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise an error if the config does not suit the trainer."""

    def build_data_loader(self) -> None:
        dm = DataManager(self.cfg)
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u
        self.val_loader = dm.val_loader
        self.test_loader = dm.test_loader
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname
        self.dm = dm

    def build_model(self) -> None:
        """Build and register the model: a :class:`SimpleNet` by default."""
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

    def train(self) -> None:
        """Train from the start, or from the end of an earlier run in RESUME or OUTPUT_DIR; then test."""
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
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
        self.time_start = time.time()

    def _adopt_best(self, directory: str) -> float:
        """Return the val result of the best models of an earlier run, and copy them to ``output_dir``.

        Without it the first epoch after a resume would always be the best.
        """
        files = {name: osp.join(directory, name, BEST) for name in self.get_model_names()}
        if not all(map(osp.isfile, files.values())):
            return -float("inf")
        results = {load_checkpoint(fpath).get("val_result") for fpath in files.values()}
        if len(results) != 1 or None in results:  # models that were not saved together
            return -float("inf")
        if osp.abspath(directory) != osp.abspath(self.output_dir):
            for name, fpath in files.items():
                mkdir_if_missing(osp.join(self.output_dir, name))
                shutil.copyfile(fpath, osp.join(self.output_dir, name, BEST))
        return results.pop()

    def after_epoch(self) -> None:
        """Validate and save the best model with TEST.FINAL_MODEL best_val; save checkpoints."""
        last_epoch = self.epoch + 1 == self.max_epoch
        freq = self.cfg.TRAIN.CHECKPOINT_FREQ
        if not self.cfg.TEST.NO_TEST and self.cfg.TEST.FINAL_MODEL == "best_val":
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=BEST)
        if last_epoch or (freq > 0 and (self.epoch + 1) % freq == 0):
            self.save_model(self.epoch, self.output_dir)

    def after_train(self) -> None:
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
    def test(self, split: str | None = None) -> float:
        """Evaluate on ``"test"`` or ``"val"`` (None: TEST.SPLIT) and return the evaluator's first metric."""
        split, loader = self._evaluation_loader(split or self.cfg.TEST.SPLIT)
        self.set_model_mode("eval")
        self.evaluator.reset()
        print(f"Evaluate on the *{split}* set")
        for batch in tqdm(loader, disable=None, leave=False):  # None: a bar only on a terminal
            input, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(input), label)
        results = self.evaluator.evaluate()
        for key, value in results.items():
            self.write_scalar(f"{split}/{key}", value, self.epoch)
        return next(iter(results.values()))

    def _evaluation_loader(self, split: str) -> tuple[str, DataLoader]:
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

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        return self.model(input)

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[Any, ...]:
        """Return images and labels on the device."""
        return self._to_device(batch["img"]), self._to_device(batch["label"])

    def _to_device(self, value: Any) -> Any:
        if isinstance(value, list):  # several views (DATALOADER.K_TRANSFORMS)
            return [self._to_device(item) for item in value]
        # Memory is pinned with a GPU, so copies overlap with computing.
        return value.to(self.device, non_blocking=True)


class _Progress:
    """Times the batches of an epoch, averages their numbers, and prints a line every TRAIN.PRINT_FREQ batches."""

    def __init__(self, trainer: SimpleTrainer) -> None:
        self.trainer = trainer
        self.losses = MetricMeter()
        self.batch_time = AverageMeter()
        self.data_time = AverageMeter()
        self._since = time.time()

    def data_loaded(self) -> None:
        self.data_time.update(time.time() - self._since)

    def batch_done(self, loss_summary: dict[str, float] | None) -> None:
        trainer, print_freq = self.trainer, self.trainer.cfg.TRAIN.PRINT_FREQ
        self.batch_time.update(time.time() - self._since)
        self.losses.update(loss_summary)
        if (trainer.batch_idx + 1) % print_freq == 0 or trainer.num_batches < print_freq:
            self._print()
        step = trainer.epoch * trainer.num_batches + trainer.batch_idx
        for name, meter in self.losses.meters.items():
            trainer.write_scalar(f"train/{name}", meter.avg, step)
        trainer.write_scalar("train/lr", trainer.get_current_lr(), step)
        self._since = time.time()

    def _print(self) -> None:
        trainer = self.trainer
        left = (trainer.max_epoch - trainer.epoch) * trainer.num_batches - trainer.batch_idx - 1
        print(
            f"epoch [{trainer.epoch + 1}/{trainer.max_epoch}] "
            f"batch [{trainer.batch_idx + 1}/{trainer.num_batches}] "
            f"time {self.batch_time.val:.3f} ({self.batch_time.avg:.3f}) "
            f"data {self.data_time.val:.3f} ({self.data_time.avg:.3f}) "
            f"{self.losses} "
            f"lr {trainer.get_current_lr():.4e} "
            f"eta {datetime.timedelta(seconds=int(self.batch_time.avg * left))}"
        )


class TrainerX(SimpleTrainer):
    """Trains on labelled data. ``forward_backward`` may read ``self.batch_idx`` and ``self.num_batches``."""

    def run_epoch(self) -> None:
        self.set_model_mode("train")
        self.num_batches = len(self.train_loader_x)
        progress = _Progress(self)
        for self.batch_idx, batch in enumerate(self.train_loader_x):  # noqa: B020
            progress.data_loaded()
            progress.batch_done(self.forward_backward(batch))

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Any, ...]:
        """Return images, labels and domains on the device."""
        return tuple(self._to_device(batch[key]) for key in ("img", "label", "domain"))


class TrainerXU(SimpleTrainer):
    """Trains on batches of labelled and unlabelled data: ``forward_backward(batch_x, batch_u)``."""

    def run_epoch(self) -> None:
        self.set_model_mode("train")
        if self.train_loader_u is None:
            raise UserValueError(
                f"{self.cfg.DATASET.NAME} has no unlabelled training data (train_u), which "
                f"{type(self).__name__} needs. Use a dataset that has, or a trainer of labelled data."
            )
        self.num_batches = self._count_iterations()
        # Both loaders start before the first batch, as in Dassl: a loader draws random numbers when it starts.
        batches_x = _repeat(self.train_loader_x, iter(self.train_loader_x))
        batches_u = _repeat(self.train_loader_u, iter(self.train_loader_u))
        progress = _Progress(self)
        for self.batch_idx in range(self.num_batches):  # noqa: B020
            batch_x, batch_u = next(batches_x), next(batches_u)
            progress.data_loaded()
            progress.batch_done(self.forward_backward(batch_x, batch_u))

    def _count_iterations(self) -> int:
        len_x, len_u = _count_batches(self.train_loader_x), _count_batches(self.train_loader_u)
        counts = {"train_x": len_x, "train_u": len_u, "smaller_one": min(len_x, len_u)}
        check_availability(self.cfg.TRAIN.COUNT_ITER, counts, "way to count batches (TRAIN.COUNT_ITER)")
        return counts[self.cfg.TRAIN.COUNT_ITER]

    def parse_batch_train(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> tuple[Any, ...]:
        """Return labelled images, their labels, and unlabelled images on the device."""
        return tuple(self._to_device(x) for x in (batch_x["img"], batch_x["label"], batch_u["img"]))


def _count_batches(loader: DataLoader) -> int:
    """Count the batches of an epoch. A sampler that draws whole epochs counts its first draw, as in Dassl."""
    n_items = getattr(getattr(loader, "sampler", None), "length", None)
    if n_items is None:
        return len(loader)
    return n_items // loader.batch_size if loader.drop_last else -(-n_items // loader.batch_size)


def _repeat(loader: DataLoader, batches: Iterator) -> Iterator[dict[str, Any]]:
    while True:
        yield from batches
        batches = iter(loader)
