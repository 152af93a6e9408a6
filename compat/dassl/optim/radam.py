"""Rectified Adam (Liu et al., ICLR 2020), and Adam with decoupled weight decay and a warm-up of its own."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class _Adam(Optimizer):
    """The two moments of the gradient, and how the subclasses' steps use them."""

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        **more: object,
    ) -> None:
        for name, value, valid in (
            ("lr", lr, lr >= 0),
            ("eps", eps, eps >= 0),
            ("betas", betas, all(0 <= beta < 1 for beta in betas)),
        ):
            if not valid:
                raise ValueError(f"Invalid {name}: {value}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, **more})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient; returns what ``closure`` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter, group):
        if parameter.grad.is_sparse:
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        # In single precision, whatever that of the parameter is.
        value, gradient = parameter.float(), parameter.grad.float()
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(value)
            state["exp_avg_sq"] = torch.zeros_like(value)
        for name in ("exp_avg", "exp_avg_sq"):  # a loaded state has the parameter's precision
            state[name] = state[name].type_as(value)
        state["step"] += 1
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)

        rate, factor, adaptive = self.step_size(state["step"], group)
        if factor is None:
            return
        if group["weight_decay"]:
            value.add_(value, alpha=-group["weight_decay"] * rate)
        if adaptive:
            value.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-factor * rate)
        else:
            value.add_(state["exp_avg"], alpha=-factor * rate)
        parameter.copy_(value)

    def step_size(self, step: int, group: dict[str, Any]) -> tuple[float, float | None, bool]:
        """How far a step goes.

        Args:
            step (int): counted from 1.
            group (dict): the parameter group.

        Returns:
            the rate, by which weights decay; the factor on it for the step, None for no step at all; and
            whether the step is divided by the second moment.
        """
        raise NotImplementedError


class RAdam(_Adam):
    """Adam whose steps are rectified while too few gradients are known for their variance.

    Args:
        params: parameters or groups of them.
        lr (float): the rate.
        betas (tuple of float): decay of the moments.
        eps (float): added to the root of the second moment.
        weight_decay (float): decoupled, as in AdamW.
        degenerated_to_sgd (bool): take the first few steps by the first moment alone; otherwise not at all.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        degenerated_to_sgd: bool = True,
    ) -> None:
        self.degenerated_to_sgd = degenerated_to_sgd
        super().__init__(params, lr, betas, eps, weight_decay)

    def step_size(self, step: int, group: dict[str, Any]) -> tuple[float, float | None, bool]:
        """As in :class:`_Adam`."""
        beta1, beta2 = group["betas"]
        rest = 1 - beta2**step
        longest = 2 / (1 - beta2) - 1  # of the moving average, in steps
        length = longest - 2 * step * beta2**step / rest
        if length >= 5:
            known = (length - 4) / (longest - 4) * (length - 2) / length * longest / (longest - 2)
            return group["lr"], math.sqrt(rest * known) / (1 - beta1**step), True
        return group["lr"], 1 / (1 - beta1**step) if self.degenerated_to_sgd else None, False


class PlainRAdam(RAdam):
    """The same; Dassl has it a second time, without a buffer of step sizes."""


class AdamW(_Adam):
    """Adam with decoupled weight decay, whose rate grows linearly over the first ``warmup`` steps.

    Args:
        params: parameters or groups of them.
        lr (float): the rate after the warm-up.
        betas (tuple of float): decay of the moments.
        eps (float): added to the root of the second moment.
        weight_decay (float): by the present rate.
        warmup (int): steps; 0: none.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup: int = 0,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, warmup=warmup)

    def step_size(self, step: int, group: dict[str, Any]) -> tuple[float, float | None, bool]:
        """As in :class:`_Adam`."""
        beta1, beta2 = group["betas"]
        rate = group["lr"]
        if group["warmup"] > step:
            rate = 1e-8 + step * rate / group["warmup"]
        return rate, math.sqrt(1 - beta2**step) / (1 - beta1**step), True
