"""The training loop and the models in it, whatever they learn from."""

import os.path as osp
from collections import OrderedDict

import torch

from dassl.utils.errors import UserAssertionError
from dassl.utils.registry import check_availability
from dassl.utils.tools import mkdir_if_missing
from dassl.utils.torchtools import (
    BEST,
    load_checkpoint,
    load_weights,
    newest_checkpoint,
    restore,
    save_checkpoint,
)


class TrainerBase:
    """Loops over epochs and looks after registered models, their optimizers and schedules."""

    def __init__(self):
        self._models = OrderedDict()
        self._optims = OrderedDict()
        self._scheds = OrderedDict()
        self._writer = None

    # -- models ---------------------------------------------------------------------------------

    def register_model(self, name="model", model=None, optim=None, sched=None):
        """Hand a model over: it is saved, loaded, resumed and set to training or evaluation mode from now on.

        Args:
            name (str): the name of its folder below OUTPUT_DIR.
            model (nn.Module): the model.
            optim: its optimizer, or None if it does not learn.
            sched: the schedule of ``optim``, or None.
        """
        if "_models" not in self.__dict__:
            raise AttributeError("Cannot register a model before super().__init__() is called")
        if name in self._models:
            raise AssertionError(f"There is already a model called {name!r}")
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names=None):
        """Return the names of all models, or ``names`` (str or list).

        Raises:
            UserAssertionError: there is no model of one of these names.
        """
        if names is None:
            return list(self._models)
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            check_availability(name, self._models, "model", UserAssertionError)
        return names

    def set_model_mode(self, mode="train", names=None):
        """Set models to ``"train"``, or to ``"eval"`` (also called ``"test"``)."""
        if mode not in ("train", "eval", "test"):
            raise KeyError(f"Unknown mode {mode!r}. Accepted: train, eval, test.")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # -- checkpoints ----------------------------------------------------------------------------

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        """Save every model in ``<directory>/<name>/``.

        Args:
            epoch (int): the epoch that was just finished, counted from 0.
            directory (str): usually OUTPUT_DIR.
            is_best (bool): also save as ``model-best.pth.tar``.
            val_result (float): the result that the model was chosen by.
            model_name (str): name of the file; empty: ``model.pth.tar-<epoch + 1>``.
        """
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                # A number of numpy's would not load without running code.
                "val_result": None if val_result is None else float(val_result),
            }
            save_checkpoint(state, osp.join(directory, name), is_best=is_best, model_name=model_name)

    def load_model(self, directory, epoch=None):
        """Load the weights of every model from ``<directory>/<name>/``.

        Args:
            directory (str): the folder of a run; empty: nothing is loaded, for models that need no training.
            epoch (int): which checkpoint; None: the best one.

        Raises:
            UserFileNotFoundError: it is missing.
            UserRuntimeError: it is damaged, or does not fit the model.
        """
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

    def resume_model_if_exist(self, directory):
        """Load every model, its optimizer and its schedule from their newest checkpoints in ``directory``.

        A run may have been killed after it saved some of its models: then the newest epoch that all of them
        have is taken.

        Returns:
            int: the epoch to start from, counted from 0; 0 if there are no checkpoints.

        Raises:
            UserRuntimeError: a checkpoint that is damaged or does not fit.
        """
        names = self.get_model_names()
        files = self._newest_common(directory, names)
        if not files:
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        for name, fpath in files.items():
            start_epoch = restore(fpath, self._models[name], self._optims[name], self._scheds[name])
        return start_epoch

    def _newest_common(self, directory, names):
        """Return a dict from names to checkpoint files that were saved together; empty if there are none."""
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

    # -- tensorboard ----------------------------------------------------------------------------

    def init_writer(self, log_dir):
        """Start writing scalars to ``log_dir``; where tensorboard is not installed, say so and go on."""
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

    def close_writer(self):
        """Finish the tensorboard file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag, scalar_value, global_step=None):
        """Write one number for tensorboard; without a writer, do nothing."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # -- the loop -------------------------------------------------------------------------------

    def train(self, start_epoch, max_epoch):
        """Run the epochs from ``start_epoch`` to ``max_epoch`` - 1, with the hooks around them."""
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()
        for self.epoch in range(self.start_epoch, self.max_epoch):  # noqa: B020
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_train(self):
        """Called once before the first epoch; may move ``start_epoch``."""

    def after_train(self):
        """Called once after the last epoch."""

    def before_epoch(self):
        """Called before each epoch."""

    def after_epoch(self):
        """Called after each epoch."""

    def run_epoch(self):
        """Train for one epoch."""
        raise NotImplementedError

    def test(self):
        """Evaluate."""
        raise NotImplementedError

    def parse_batch_train(self, batch):
        """Take what training needs out of a batch and move it to the device."""
        raise NotImplementedError

    def parse_batch_test(self, batch):
        """Take what evaluation needs out of a batch and move it to the device."""
        raise NotImplementedError

    def forward_backward(self, batch):
        """Do one training step and return a dict of numbers to print."""
        raise NotImplementedError

    def model_inference(self, input):
        """Return the model's output for ``input``."""
        raise NotImplementedError

    # -- steps ----------------------------------------------------------------------------------

    def detect_anomaly(self, loss):
        """Raise a FloatingPointError if ``loss`` is infinite or not a number."""
        if not torch.isfinite(loss).all():
            raise FloatingPointError(
                "Loss is infinite or NaN! A lower learning rate (OPTIM.LR) often mends it, or fp32 for fp16."
            )

    def model_zero_grad(self, names=None):
        """Clear the gradients of the parameters that the optimizers hold."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss):
        """Backpropagate a finite ``loss``."""
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names=None):
        """Let the optimizers step."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss, names=None):
        """One optimisation step on ``loss`` for all models, or for ``names``."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def update_lr(self, names=None):
        """Let the schedules step: once per epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names=None):
        """Return the learning rate of the first model (of ``names``) that has an optimizer; 0 if none has."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                return self._optims[name].param_groups[0]["lr"]
        return 0.0
