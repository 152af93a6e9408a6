"""The life of a run on top of Dassl's loop: threads, randomness, epochs, what is kept, tested and recorded."""

import contextlib
import os
import time
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from dassl.engine import TrainerX
from dassl.utils import set_random_seed
from torch import Tensor
from yacs.config import CfgNode

from common.progress import progress
from common.run.history import read_history, write_history
from common.run.identity import TRAINED_FILE, read_identity, write_identity
from common.run.records import write_record
from common.threads import Threads
from trainers.base.checkpoints import BEST
from trainers.base.evaluation import Classifier, evaluate
from trainers.base.event_files import remove_scalars
from trainers.base.image_features import ImageFeatures
from trainers.base.not_finite import check_loss, check_networks
from trainers.base.resume import goes_on, holds_objects, remove_checkpoints, resume
from trainers.base.run_backbone import check_trained_with
from trainers.base.run_record import (
    Course,
    OtherRun,
    Tested,
    check_use,
    identity_of,
    read_training_record,
    settings_of,
    training_record,
    write_outcome,
)
from trainers.base.run_threads import threads_of_run
from trainers.base.selection import best_of, check_validation, chosen_by, how_chosen
from trainers.config_check import counted_contexts
from trainers.modules.clip_backbone import Backbone
from trainers.modules.finite import require_finite


class RunTrainer(TrainerX):
    """Base class of what trains, tests and records a run, whatever it is that learns.

    A subclass builds data and model, among them what is named below, and says what classifies (`classifier`) and what a
    step is (`forward_backward`).

    Args:
        cfg: frozen config with the keys of trainers.config.

    Attributes:
        asked_cfg: cfg as it was given, without what follows from the backbone and from other keys.
        threads: that it computes with.
        course: of the training.
        tested: split -> what came out of its last evaluation.
        other: the run whose model was loaded to be tested; None: this one's.
    """

    SETTINGS = ""  # name of the trainer's node under cfg.TRAINER
    # Names of weights that are minus infinity for classes without training images, whose logits are, too.
    MINUS_INFINITY: tuple[str, ...] = ()
    # Keys of its node that say how what was learned is used, where no shape of it tells: tests need those of training.
    USED_BY: tuple[str, ...] = ()
    started_from = ""  # fingerprint of the prompts that training starts from, where they are given
    restart_on_difference = False  # whether a run starts anew where the folder holds one with other settings

    # What a subclass builds.
    backbone: Backbone
    image_features: ImageFeatures
    scaler: Any  # GradScaler of mixed precision; None: of another

    # What Dassl's trainer sets.
    cfg: CfgNode
    dm: Any
    train_loader_x: Any
    val_loader: Any
    test_loader: Any
    _scheds: dict[str, Any]

    def __init__(self, cfg: CfgNode) -> None:
        self.asked_cfg = cfg
        self.course = Course()
        self.tested: dict[str, Tested] = {}
        self.other: OtherRun | None = None
        super().__init__(cfg)

    def classifier(self) -> Classifier:
        """What classifies images until something is learned again."""
        raise NotImplementedError

    # ---- threads ----

    def settle_threads(self, threads: Threads) -> None:
        """Compute with these numbers of threads from now on."""
        self.threads = threads
        threads.use(self.cfg.DATALOADER.NUM_WORKERS)

    def take_threads(self, note: bool = True) -> None:
        """Take the threads of the run that the output folder holds, and note there those of a new one.

        Args:
            note: False where only another run's model is tested, maybe in that run's folder.
        """
        workers = self.cfg.DATALOADER.NUM_WORKERS
        self.settle_threads(threads_of_run(self.output_dir, self.threads, workers, note, self.cfg.VERBOSE))

    # ---- training ----

    def train(self) -> None:
        self.take_threads()
        try:
            super().train()
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                self.close_writer()  # whose thread would outlive the run, in a process that goes on to others
            raise

    def before_train(self) -> None:
        check_validation(self.cfg, self.val_loader)
        super().before_train()
        self.epoch = max(0, self.start_epoch - 1)  # the step of a test that has no epoch before it
        course = self.course
        self.best_result, course.best_epoch = best_of(course.history, self.cfg.TEST.SELECT_BY)
        if course.history:
            course.started = time.time() - course.history[-1]["seconds"]
            if self.scaler is not None:
                self.scaler.load_state_dict(course.history[-1]["scaler"])
        write_identity(self.output_dir, self.identity())
        self.epoch_bar = progress(
            total=self.max_epoch,
            initial=self.start_epoch,
            description=f"{self.cfg.TRAINER.NAME} ({', '.join(self.dm.dataset.source_domains)})",
            unit="epoch",
        )

    def before_epoch(self) -> None:
        super().before_epoch()
        self._train_scalars: dict[str, float] = {}
        if self.cfg.SEED >= 0:
            # Each epoch's randomness follows from seed and epoch alone, so that a resumed run draws the same batches
            # and noise, and no random state needs to be saved. (Augmentation: see SeededItems.)
            mixed = np.random.SeedSequence([self.cfg.SEED, self.epoch]).generate_state(1)[0]
            set_random_seed(int(mixed))

    def run_epoch(self) -> None:
        loader, title = self.train_loader_x, f"Epoch {self.epoch + 1}"
        try:
            # Dassl's loop takes the bar for the loader.
            with progress(loader, len(loader), description=title, unit="batch") as bar:
                self.train_loader_x = bar
                super().run_epoch()
        finally:
            self.train_loader_x = loader
        self.update_lr()

    def init_writer(self, log_dir: str) -> None:
        """As Dassl's, without what a run that was stopped wrote of the epochs that it repeats."""
        first, n_batches = self.start_epoch, len(self.train_loader_x)

        def is_repeated(tag: str, step: int) -> bool:
            return tag.startswith("test/") or step >= first * (n_batches if tag.startswith("train/") else 1)

        with contextlib.suppress(ImportError):  # without tensorboard Dassl writes nothing
            remove_scalars(log_dir, is_repeated)
        super().init_writer(log_dir)

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        # Dassl's running means of the epoch pass by here, so the last ones are the epoch's means.
        if tag.startswith("train/") and tag != "train/lr":
            self._train_scalars[tag.removeprefix("train/")] = float(scalar_value)
        super().write_scalar(tag, scalar_value, global_step)

    def detect_anomaly(self, loss: Tensor) -> None:
        check_loss(self, loss)

    def model_backward_and_update(self, loss: Tensor, names: str | list[str] | None = None) -> None:
        if self.scaler is None:
            super().model_backward_and_update(loss, names)
            return
        self.detect_anomaly(loss)
        self.model_zero_grad(names)
        self.scaler.scale(loss).backward()
        for name in self.get_model_names(names):
            self.scaler.step(self._optims[name])
        self.scaler.update()

    def after_epoch(self) -> None:
        """Training-domain validation: keep the epoch that is best on the source domains' val splits.

        Killed at any point in here, a run does the epoch again, and all of this with it.
        """
        check_networks(self)
        course, is_best = self.course, False
        entry: dict[str, Any] = {"val_accuracy": None, "losses": self._train_scalars}
        if self.cfg.TEST.FINAL_MODEL == "best_val":
            value = self.test(split="val")
            entry["val_accuracy"] = self.tested["val"].metrics["accuracy"]
            entry[f"val_{self.cfg.TEST.SELECT_BY}"] = value
            is_best = self.may_be_chosen() and value > self.best_result
            self.epoch_bar.set_postfix(val=f"{value:.1f} %")
        # Begun anew, a run finds what it had made itself.
        entry["found"] = course.reused if course.history else self.reused()
        entry["seconds"] = course.seconds
        if self.scaler is not None:
            entry["scaler"] = self.scaler.state_dict()
        if not self.may_be_chosen():
            entry["counts"] = False
        if self._writer is not None:
            self._writer.flush()  # after its checkpoint an epoch is not repeated
        course.history.append(entry)
        write_history(self.output_dir, course.history)
        if is_best:
            self.best_result, course.best_epoch = value, self.epoch + 1
            self.save_model(self.epoch, self.output_dir, val_result=value, model_name=BEST)
        self.epoch_bar.update()
        self.save_model(self.epoch, self.output_dir)
        # Epochs are counted from 1 in file names. Two are kept, since one of them may turn out to be damaged.
        self._remove_checkpoint(self.epoch - 1)

    def may_be_chosen(self) -> bool:
        """Whether the epoch that just ended is among those that validation chooses from."""
        return True

    def after_train(self) -> None:
        self.epoch_bar.close()
        # Its workers end here; left to the garbage collector, they might be waited for in a process forked later.
        self.train_loader_x = None
        self._remove_checkpoint(self.max_epoch - 1)
        folders = [Path(self.output_dir, name) for name in self.get_model_names()]
        n_bytes = sum(path.stat().st_size for folder in folders for path in folder.glob("model*"))
        print(f"Checkpoints take {n_bytes / 2**20:.1f} MB in {self.output_dir}")
        super().after_train()
        self.write_outcome()

    # ---- checkpoints ----

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """As Dassl's, without the state of schedules that could not be read back, see `resume.holds_objects`."""
        schedules = self._scheds
        self._scheds = {
            name: None if schedule is None or holds_objects(schedule) else schedule
            for name, schedule in schedules.items()
        }
        try:
            super().save_model(*args, **kwargs)
        finally:
            self._scheds = schedules

    def _remove_checkpoint(self, epoch: int) -> None:
        remove_checkpoints(self.output_dir, self.get_model_names(), epoch, self.cfg.TRAIN.CHECKPOINT_FREQ)

    def load_model(self, directory: str | PathLike, epoch: int | None = None) -> None:
        """Load the networks of a run, as Dassl does.

        Raises:
            UserError: one is missing or damaged, does not fit, or is not finite.
        """
        super().load_model(directory, epoch=epoch)
        for name in self.get_model_names():
            cause = "The training that wrote it was broken by then: use another epoch (--load-epoch) or run."
            require_finite(self._models[name].state_dict(), f"{name} in {directory}", cause, self.MINUS_INFINITY)

    def resume_model_if_exist(self, directory: str | PathLike) -> int:
        if read_history(self.output_dir, 1):  # a run that was begun from another one goes on by itself
            directory = self.output_dir
        identity, aside = self.identity(), [*counted_contexts(self.cfg, self.backbone.text.tokenizer)]
        if None in (identity["images tested on"], read_identity(directory).get("images tested on")):
            aside.append("images tested on")  # one of the two runs is not tested
        if not goes_on(directory, identity, aside, self.restart_on_difference):
            return 0
        networks = {name: (self._models[name], self._optims[name], self._scheds[name]) for name in self._models}
        selects = self.cfg.TEST.SELECT_BY if self.cfg.TEST.FINAL_MODEL == "best_val" else None
        start_epoch, self.course.history = resume(directory, networks, selects, self.MINUS_INFINITY)
        return start_epoch

    # ---- evaluation ----

    def test(self, split: str | None = None) -> float:
        """Evaluate on a split ("val" or "test", default cfg.TEST.SPLIT).

        Returns:
            the metric that TEST.SELECT_BY names.

        Raises:
            UserError: the evaluator has no such metric.
        """
        split = split or self.cfg.TEST.SPLIT
        print(f"Evaluate on the *{split}* set")
        if split == "test":
            _ = self.dm.dataset.test_fingerprint  # before any image is decoded, so that later changes show
        found, self.tested[split] = evaluate(self, split)
        metrics = self.tested[split].metrics
        for name, value in metrics.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return chosen_by(self.cfg.TEST, split, metrics, found)

    def test_run(self, model_dir: str, epoch: int | None = None) -> None:
        """Test the model of another run (or of none, for methods that learn nothing).

        Raises:
            UserError: it was trained with another backbone or by another method, would be used otherwise than it was
                trained, or cannot be loaded.
        """
        check_trained_with(model_dir, self.cfg.MODEL.BACKBONE.NAME, self.backbone)
        if self.get_model_names():
            keys = [f"TRAINER.{self.SETTINGS}.{key}" for key in self.USED_BY]
            check_use(model_dir, self.asked_cfg, type(self), keys)
        self.take_threads(note=False)
        self.load_model(model_dir, epoch=epoch)
        record = read_training_record(model_dir)
        if names := self.get_model_names():
            record["selection"] = how_chosen(model_dir, names[0], epoch)
        self.other = OtherRun(os.path.abspath(model_dir), epoch, record)
        self.test()

    # ---- records ----

    def write_outcome(self) -> None:
        """Write the results of a run that was tested; of another, what its model was trained on."""
        if "test" in self.tested:
            self.write_results()
        else:
            write_record(Path(self.output_dir) / TRAINED_FILE, self.training_record())

    def training_record(self) -> dict:
        """What results of this run's model have to say of its training, by the names of results.json."""
        return training_record(self.cfg, self.dm.dataset, self.run_settings(), self.n_trained(), self.course)

    def n_trained(self) -> list[int]:
        """Numbers of parameters that training changes, stage by stage; [] of a method that learns nothing."""
        networks = [self._models[name] for name in self.get_model_names()]
        return [sum(weights.numel() for network in networks for weights in network.parameters())] if networks else []

    def reused(self) -> dict[str, float | None]:
        """What earlier runs had made for this one, with the seconds that took them; None: not known."""
        return {"image features": None} if self.image_features.cache.oldest_read < self.course.started else {}

    def write_results(self) -> None:
        """Write predictions and results.json of a run whose test is done."""
        write_outcome(
            self.cfg,
            self.dm.dataset,
            self.backbone,
            self.tested["test"],
            self.course,
            self.training_record() if self.other is None else self.other.record,
            self.run_settings(),
            self.other,
            self.threads,
        )

    def run_settings(self) -> dict[str, Any]:
        """All that changes this run's numbers and can be set, plain values by name."""
        # As asked for, as in runs from before the number of a context's words took the place of N_CTX in the config.
        settings = settings_of(self.asked_cfg, self.SETTINGS)
        return {**settings, "MODEL.INIT_WEIGHTS": self.started_from} if self.started_from else settings

    def identity(self) -> dict[str, Any]:
        """What makes this run what it is, plain values by name."""
        return identity_of(self.asked_cfg, self.run_settings(), self.dm.dataset, self.backbone)
