"""Prompts of both towers that are learned independently, and their weighted mean over the epochs (PromptSRC)."""

import torch
from torch import Tensor, nn

SUM = "sum_of_"


class IndependentPrompts(nn.Module):
    """Prompts of the text tower, `ctx` (n, D) and `deep_ctx`, and of the image tower, `vctx` (m, W) and `deep_vctx`.

    Its buffers `sum_of_<name>` are the sum of the epochs' weights so far, each by its Gaussian weight: they are part of
    every checkpoint, so that a run that goes on has them.
    """

    deep_ctx: Tensor
    deep_vctx: Tensor

    def __init__(self, ctx: Tensor, deep_ctx: Tensor, vctx: Tensor, deep_vctx: Tensor) -> None:
        super().__init__()
        starts = {"ctx": ctx, "deep_ctx": deep_ctx, "vctx": vctx, "deep_vctx": deep_vctx}
        for name, start in starts.items():
            if len(start):  # none is deep at depth 1
                self.register_parameter(name, nn.Parameter(start))
                self.register_buffer(SUM + name, torch.zeros_like(start))
            else:
                self.register_buffer(name, start, persistent=False)

    @torch.no_grad()
    def add_to_sum(self, weight: float) -> None:
        """Add the weights as they are now to the sum."""
        for name, parameter in self.named_parameters():
            self.get_buffer(SUM + name).add_(weight * parameter)

    @torch.no_grad()
    def take_sum(self) -> None:
        """Have the sum for weights."""
        for name, parameter in self.named_parameters():
            parameter.copy_(self.get_buffer(SUM + name))
