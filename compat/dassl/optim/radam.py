"""Rectified Adam (Liu et al., ICLR 2020).

torch.optim.RAdam with decoupled weight decay is the same up to rounding in fp32, but overflows on fp16 parameters and
has no ``degenerated_to_sgd``.
"""

import math
from collections.abc import Callable

import torch
from torch.optim.optimizer import Optimizer, ParamsT


class RAdam(Optimizer):
    """Adam with decoupled weight decay and rectified steps while it knows too few gradients.

    ``degenerated_to_sgd``: the first few steps follow the first moment alone; otherwise they are skipped.
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
        for name, value, valid in (
            ("lr", lr, lr >= 0),
            ("eps", eps, eps >= 0),
            ("betas", betas, all(0 <= beta < 1 for beta in betas)),
        ):
            if not valid:
                raise ValueError(f"Invalid {name}: {value}")
        self.degenerated_to_sgd = degenerated_to_sgd
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict) -> None:
        if parameter.grad.is_sparse:
            raise RuntimeError("RAdam does not support sparse gradients")
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        value, gradient = parameter.float(), parameter.grad.float()
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(value), exp_avg_sq=torch.zeros_like(value))
        for name in ("exp_avg", "exp_avg_sq"):  # torch loads a state in the parameter's precision
            state[name] = state[name].type_as(value)
        state["step"] += 1
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)

        rest = 1 - beta2 ** state["step"]
        longest = 2 / (1 - beta2) - 1  # length of the moving average, in steps
        length = longest - 2 * state["step"] * beta2 ** state["step"] / rest
        is_rectified = length >= 5
        if not is_rectified and not self.degenerated_to_sgd:
            return
        rate = group["lr"] / (1 - beta1 ** state["step"])
        if group["weight_decay"]:
            value.add_(value, alpha=-group["weight_decay"] * group["lr"])
        if is_rectified:
            known = (length - 4) / (longest - 4) * (length - 2) / length * longest / (longest - 2)
            denominator = state["exp_avg_sq"].sqrt().add_(group["eps"])
            value.addcdiv_(state["exp_avg"], denominator, value=-rate * math.sqrt(rest * known))
        else:
            value.add_(state["exp_avg"], alpha=-rate)
        parameter.copy_(value)
