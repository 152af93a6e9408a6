"""A resumed run has the learning rates of an uninterrupted run, with our schedules and Dassl's."""

import os
import signal

import pytest
import torch
from dassl.optim import build_lr_scheduler
from dassl.optim.lr_scheduler import ConstantWarmupScheduler, LinearWarmupScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR

from trainers.base import trainer as trainer_module
from trainers.base.trainer import PromptTrainer


def as_in_the_original(cls):
    """A warm-up with its successor and optimizer as objects in its state, like Dassl.pytorch's."""

    class Warmup(cls):
        def state_dict(self):
            return {key: value for key, value in self.__dict__.items() if key != "optimizer"}

        def load_state_dict(self, state_dict):
            self.__dict__.update(state_dict)

    return Warmup


def original_schedule(optimizer, optim):
    """Dassl.pytorch's cosine with warm-up."""
    successor = CosineAnnealingLR(optimizer, float(optim.MAX_EPOCH))
    if optim.WARMUP_TYPE == "constant":
        warmup = as_in_the_original(ConstantWarmupScheduler)
        return warmup(optimizer, successor, optim.WARMUP_EPOCH, optim.WARMUP_CONS_LR)
    return as_in_the_original(LinearWarmupScheduler)(optimizer, successor, optim.WARMUP_EPOCH, optim.WARMUP_MIN_LR)


@pytest.fixture
def rates(monkeypatch):
    """{epoch: learning rate}, filled during training."""
    before_epoch, seen = PromptTrainer.before_epoch, {}

    def spy(self):
        seen[self.epoch] = self.get_current_lr()
        before_epoch(self)

    monkeypatch.setattr(PromptTrainer, "before_epoch", spy)
    return seen


@pytest.mark.parametrize("schedule", [build_lr_scheduler, original_schedule])
@pytest.mark.parametrize("warmup", ["constant", "linear"])
@pytest.mark.parametrize("done", [1, 2, 4])
def test_resumed_run_has_the_scheduled_learning_rates(train, rates, monkeypatch, tmp_path, schedule, warmup, done):
    monkeypatch.setattr(trainer_module, "build_lr_scheduler", schedule)
    opts = "OPTIM.WARMUP_EPOCH", "2", "OPTIM.WARMUP_TYPE", warmup, "OPTIM.MAX_EPOCH", "6", "TEST.NO_TEST", "True"
    opts += ("TRAINER.FEATURES.TRAIN_VIEWS", "1")
    after_epoch = PromptTrainer.after_epoch

    def stop(self):
        after_epoch(self)
        if self.epoch + 1 == done:
            os.kill(os.getpid(), signal.SIGINT)  # the next step ends the run

    assert train("CoOp", "red", *opts) == 0
    expected = dict(rates)
    rates.clear()
    monkeypatch.setattr(PromptTrainer, "after_epoch", stop)
    assert train("CoOp", "red", *opts, flags=["--output-dir", "cut"]) == 130
    monkeypatch.setattr(PromptTrainer, "after_epoch", after_epoch)
    begun = dict(rates)
    rates.clear()
    assert train("CoOp", "red", *opts, flags=["--output-dir", "cut"]) == 0
    assert list(rates) == list(range(done, 6))  # it resumed and did not train from scratch
    assert {**begun, **rates} == expected
    name = "prompt_learner/model.pth.tar-6"
    ends = [torch.load(tmp_path / folder / name, weights_only=True)["state_dict"]["ctx"] for folder in ("run", "cut")]
    assert torch.equal(*ends)
