"""Learning-rate schedules per epoch: a decay, optionally after a warm-up."""

import math
from bisect import bisect_right
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dassl.utils.errors import UserValueError
from dassl.utils.registry import check_availability

AVAI_SCHEDS = ["single_step", "multi_step", "cosine"]
AVAI_WARMUPS = ("constant", "linear")


class EpochSchedule(LRScheduler):
    """A learning rate that is a function of the epoch.

    Being a function, and not a step from the last value, it goes on exactly after a resume, and its state is
    a few numbers.

    Args:
        optimizer: its groups' present rates are the base rates.
        decay: from the epoch of the decay to a factor on the base rate.
        warmup: from (base rate, epoch) to a rate, for the first ``warmup_epoch`` epochs.
        warmup_epoch (int): epochs of warm-up.
        recount (bool): after the warm-up the decay starts at its epoch 0. Otherwise it starts at its epoch
            ``warmup_epoch``, from the base rate as well: what it would have decayed until then is not made up for.
    """

    def __init__(self, optimizer, decay, warmup=None, warmup_epoch=0, recount=True):
        self._decay = decay
        self._warmup = warmup
        self._warmup_epoch = warmup_epoch
        self._recount = recount
        super().__init__(optimizer)

    def get_lr(self):
        """Return the rate of each parameter group for epoch ``last_epoch``."""
        epoch = self.last_epoch
        if epoch < self._warmup_epoch:
            return [self._warmup(lr, epoch) for lr in self.base_lrs]
        return [lr * self._factor(epoch) for lr in self.base_lrs]

    def _factor(self, epoch):
        if self._recount:
            return self._decay(epoch - self._warmup_epoch)
        first = self._decay(self._warmup_epoch)
        return self._decay(epoch) / first if first else 1.0

    def state_dict(self):
        """Return the state as plain numbers."""
        return {
            "last_epoch": self.last_epoch,
            "base_lrs": list(self.base_lrs),
            "_last_lr": list(self._last_lr),
            "_step_count": self._step_count,
        }

    def load_state_dict(self, state_dict):
        """Go on from a state; the optimizer gets the rates of that epoch.

        Args:
            state_dict (dict): from this class, from torch's StepLR, MultiStepLR or CosineAnnealingLR, or from
                Dassl.pytorch's warm-up schedulers.
        """
        self.last_epoch = state_dict["last_epoch"]
        self.base_lrs = list(state_dict["base_lrs"])
        self._step_count = state_dict.get("_step_count", self.last_epoch + 1)
        successor = state_dict.get("successor")
        if successor is not None and self.last_epoch >= self._warmup_epoch:
            # Dassl.pytorch's warm-up stands still once over; the scheduler that follows counts on.
            self.last_epoch = successor["last_epoch"] + (self._warmup_epoch if self._recount else 0)
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


class _BaseWarmupScheduler(LRScheduler):
    """Another schedule, after a warm-up; for trainers that make their own. :func:`build_lr_scheduler` needs none.

    Args:
        optimizer: the optimizer.
        successor: the schedule of the same optimizer that comes after.
        warmup_epoch (int): epochs of warm-up.
        last_epoch (int): -1: begin at the start.
        verbose (bool): not used; torch has given it up.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def warmup_lr(self, base_lr: float) -> float:
        """Return the rate for epoch ``last_epoch`` of a group whose base rate is ``base_lr``."""
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        """Return the rate of each parameter group."""
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        return [self.warmup_lr(lr) for lr in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Go to the next epoch, or to ``epoch``."""
        if self.last_epoch < self.warmup_epoch:
            super().step(epoch)
            return
        self.successor.step(epoch)
        self._last_lr = self.successor.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers, the successor's among them."""
        state = {key: value for key, value in self.__dict__.items() if key not in ("optimizer", "successor")}
        return {**state, "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, of this class or of Dassl.pytorch's; optimizer and successor stay the own ones."""
        state_dict = dict(state_dict)
        self.successor.load_state_dict(state_dict.pop("successor"))
        self.__dict__.update(state_dict)


class ConstantWarmupScheduler(_BaseWarmupScheduler):
    """A warm-up at the rate ``cons_lr``; for the other arguments see :class:`_BaseWarmupScheduler`."""

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        cons_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

    def warmup_lr(self, base_lr: float) -> float:
        """Return ``cons_lr``."""
        return self.cons_lr


class LinearWarmupScheduler(_BaseWarmupScheduler):
    """A linear warm-up, its first epoch at ``min_lr``; for the other arguments see :class:`_BaseWarmupScheduler`."""

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        min_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

    def warmup_lr(self, base_lr: float) -> float:
        """Return the rate of the epoch: ``min_lr``, 1/n, 2/n ... of the base rate for n epochs."""
        return base_lr * self.last_epoch / self.warmup_epoch if self.last_epoch else self.min_lr


def build_lr_scheduler(optimizer, optim_cfg):
    """Build the schedule that ``optim_cfg.LR_SCHEDULER`` names; its ``step()`` is called once per epoch.

    Args:
        optimizer: the optimizer whose rates it sets.
        optim_cfg: the node ``cfg.OPTIM``.

    Returns:
        EpochSchedule: a torch LRScheduler.

    Raises:
        UserValueError: unknown schedule or warm-up, or steps that do not fit it.
    """
    check_availability(optim_cfg.LR_SCHEDULER, AVAI_SCHEDS, "learning-rate schedule (OPTIM.LR_SCHEDULER)")
    decay = _DECAYS[optim_cfg.LR_SCHEDULER](optim_cfg)
    if optim_cfg.WARMUP_EPOCH <= 0:
        return EpochSchedule(optimizer, decay)
    check_availability(optim_cfg.WARMUP_TYPE, AVAI_WARMUPS, "warm-up (OPTIM.WARMUP_TYPE)")
    warmup = {"constant": _constant_warmup, "linear": _linear_warmup}[optim_cfg.WARMUP_TYPE](optim_cfg)
    return EpochSchedule(optimizer, decay, warmup, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_RECOUNT)


def _stepsizes(optim_cfg):
    stepsize = optim_cfg.STEPSIZE
    return tuple(stepsize) if isinstance(stepsize, (tuple, list)) else (stepsize,)


def _single_step(optim_cfg):
    period = _stepsizes(optim_cfg)[-1]
    if period <= 0:
        period = optim_cfg.MAX_EPOCH
    gamma = optim_cfg.GAMMA
    return lambda epoch: gamma ** (epoch // period)


def _multi_step(optim_cfg):
    milestones = sorted(_stepsizes(optim_cfg))
    if milestones[0] <= 0:
        raise UserValueError(
            f"OPTIM.STEPSIZE is {_stepsizes(optim_cfg)}; multi_step takes the epochs after which the rate "
            "drops, e.g. OPTIM.STEPSIZE (20, 40)."
        )
    gamma = optim_cfg.GAMMA
    return lambda epoch: gamma ** bisect_right(milestones, epoch)


def _cosine(optim_cfg):
    max_epoch = optim_cfg.MAX_EPOCH
    return lambda epoch: (1 + math.cos(math.pi * epoch / max_epoch)) / 2


_DECAYS = {"single_step": _single_step, "multi_step": _multi_step, "cosine": _cosine}


def _constant_warmup(optim_cfg):
    rate = optim_cfg.WARMUP_CONS_LR
    return lambda lr, epoch: rate


def _linear_warmup(optim_cfg):
    first, epochs = optim_cfg.WARMUP_MIN_LR, optim_cfg.WARMUP_EPOCH
    return lambda lr, epoch: first if epoch == 0 else lr * epoch / epochs
