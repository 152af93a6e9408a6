"""CoCoOp's meta-net."""

from collections import OrderedDict

from torch import nn


class MetaNet(nn.Sequential):
    """Image feature -> shift of the context (Zhou et al., CVPR 2022, Sec. 3.3): Linear, ReLU, Linear.

    Keys of the state_dict are the published ones (`linear1.weight`, ...).

    Args:
        feat_dim: E; the bottleneck is a sixteenth of it.
        ctx_dim: D.
    """

    def __init__(self, feat_dim: int, ctx_dim: int) -> None:
        hidden = max(1, feat_dim // 16)
        super().__init__(
            OrderedDict(
                linear1=nn.Linear(feat_dim, hidden), relu=nn.ReLU(inplace=True), linear2=nn.Linear(hidden, ctx_dim)
            )
        )
