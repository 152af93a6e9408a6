"""Learning-rate schedules of torch, after a warm-up. A step is an epoch."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR
from yacs.config import CfgNode

from dassl.utils.errors import UserValueError
from dassl.utils.registry import check_availability

AVAI_SCHEDS = ["single_step", "multi_step", "cosine"]


class _BaseWarmupScheduler(LRScheduler):
    """A warm-up of ``warmup_epoch`` epochs before ``successor``, a schedule of the same optimizer."""

    def __init__(self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int, last_epoch: int = -1) -> None:
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def _warmup_lr(self, base_lr: float) -> float:
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        return [self._warmup_lr(lr) for lr in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch < self.warmup_epoch:
            super().step(epoch)
        else:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers. Dassl.pytorch returns objects, which load_checkpoint reads as dicts."""
        state = {key: value for key, value in self.__dict__.items() if key not in ("optimizer", "successor")}
        return {**state, "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state_dict = dict(state_dict)
        self.successor.load_state_dict(state_dict.pop("successor"))
        self.__dict__.update(state_dict)


class ConstantWarmupScheduler(_BaseWarmupScheduler):
    """Warm-up at the rate ``cons_lr``. ``verbose`` has no effect, as torch dropped it."""

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
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def _warmup_lr(self, base_lr: float) -> float:
        return self.cons_lr


class LinearWarmupScheduler(_BaseWarmupScheduler):
    """Linear warm-up over n epochs: ``min_lr``, then 1/n, 2/n ... of the base rate."""

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
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def _warmup_lr(self, base_lr: float) -> float:
        return base_lr * self.last_epoch / self.warmup_epoch if self.last_epoch else self.min_lr


def build_lr_scheduler(optimizer: Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    """Build the schedule OPTIM.LR_SCHEDULER, after the warm-up OPTIM.WARMUP_TYPE if WARMUP_EPOCH > 0."""
    check_availability(optim_cfg.LR_SCHEDULER, AVAI_SCHEDS, "learning-rate schedule (OPTIM.LR_SCHEDULER)")
    steps = optim_cfg.STEPSIZE
    steps = tuple(steps) if isinstance(steps, (tuple, list)) else (steps,)
    if optim_cfg.LR_SCHEDULER == "cosine":
        schedule = CosineAnnealingLR(optimizer, optim_cfg.MAX_EPOCH)
    elif optim_cfg.LR_SCHEDULER == "single_step":
        schedule = StepLR(optimizer, steps[-1] if steps[-1] > 0 else optim_cfg.MAX_EPOCH, optim_cfg.GAMMA)
    elif min(steps) > 0:
        schedule = MultiStepLR(optimizer, steps, optim_cfg.GAMMA)
    else:
        raise UserValueError(
            f"OPTIM.STEPSIZE is {steps}; multi_step takes the epochs after which the rate drops, "
            "e.g. OPTIM.STEPSIZE (20, 40)."
        )
    epochs = optim_cfg.WARMUP_EPOCH
    if epochs <= 0:
        return schedule
    check_availability(optim_cfg.WARMUP_TYPE, ("constant", "linear"), "warm-up (OPTIM.WARMUP_TYPE)")
    if not optim_cfg.WARMUP_RECOUNT:
        schedule.last_epoch = epochs
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, schedule, epochs, optim_cfg.WARMUP_CONS_LR)
    return LinearWarmupScheduler(optimizer, schedule, epochs, optim_cfg.WARMUP_MIN_LR)
