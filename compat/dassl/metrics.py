"""Accuracy of a batch."""

from collections.abc import Sequence

import torch

from dassl.left_out import missing_attribute


def compute_accuracy(
    output: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor, topk: Sequence[int] = (1,)
) -> list[torch.Tensor]:
    """Return the top-k accuracy in percent for each k, as tensors of one element.

    ``output`` are scores (B, C), or a sequence that starts with them.
    """
    if isinstance(output, (tuple, list)):
        output = output[0]
    ranked = output.topk(max(topk), dim=1).indices  # (B, max k)
    hits = ranked == target.view(-1, 1)
    return [hits[:, :k].any(dim=1).float().mean().mul(100).view(1) for k in topk]


def __getattr__(name: str) -> object:
    raise missing_attribute(__name__, name)
