"""A resumed run has the learning rates of an uninterrupted run, with our schedules and Dassl's."""

import pytest
import torch
from dassl.optim import build_lr_scheduler
from dassl.optim.lr_scheduler import ConstantWarmupScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR

from trainers.base import trainer as trainer_module
from trainers.base.trainer import PromptTrainer


def original_schedule(optimizer, optim):
    """Dassl.pytorch's cosine with a constant warm-up, which has its successor and optimizer as objects in its state."""

    class Warmup(ConstantWarmupScheduler):
        def state_dict(self):
            return {key: value for key, value in self.__dict__.items() if key != "optimizer"}

        def load_state_dict(self, state_dict):
            self.__dict__.update(state_dict)

    successor = CosineAnnealingLR(optimizer, float(optim.MAX_EPOCH))
    return Warmup(optimizer, successor, optim.WARMUP_EPOCH, optim.WARMUP_CONS_LR)


@pytest.mark.parametrize(("schedule", "warmup"), [(build_lr_scheduler, "linear"), (original_schedule, "constant")])
def test_resumed_run_has_the_scheduled_learning_rates(train, monkeypatch, tmp_path, capsys, schedule, warmup):
    monkeypatch.setattr(trainer_module, "build_lr_scheduler", schedule)
    opts = "OPTIM.WARMUP_EPOCH", "2", "OPTIM.WARMUP_TYPE", warmup, "OPTIM.MAX_EPOCH", "6", "TEST.NO_TEST", "True"
    opts += ("TRAINER.FEATURES.TRAIN_VIEWS", "1")
    before_epoch = PromptTrainer.before_epoch

    def stop(self):
        if self.epoch == 4:
            raise KeyboardInterrupt
        before_epoch(self)

    assert train("CoOp", "red", *opts) == 0
    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "before_epoch", stop)
        assert train("CoOp", "red", *opts, flags=["--output-dir", "cut"]) == 130
    assert train("CoOp", "red", *opts, flags=["--output-dir", "cut"]) == 0
    assert "Resuming after epoch 4" in capsys.readouterr().out
    paths = (tmp_path / folder / "prompt_learner/model.pth.tar-6" for folder in ("run", "cut"))
    ends = [torch.load(path, weights_only=True) for path in paths]
    assert torch.equal(*(end["state_dict"]["ctx"] for end in ends))
    assert ends[0]["optimizer"]["param_groups"][0]["lr"] == ends[1]["optimizer"]["param_groups"][0]["lr"]
