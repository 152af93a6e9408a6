"""Heads: layers between backbone and classifier."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dassl.utils.registry import Registry

HEAD_REGISTRY = Registry("HEAD", "Set it by MODEL.HEAD.NAME; the module that registers it must be imported.")
_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


def build_head(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    head = HEAD_REGISTRY.get(name)
    if verbose:
        print(f"Head: {name}")
    return head(**kwargs)


class MLP(nn.Module):
    """Linear layers of the widths ``hidden_layers``, each with batch normalisation, activation and dropout."""

    def __init__(
        self,
        in_features: int = 2048,
        hidden_layers: int | Sequence[int] = (),
        activation: str = "relu",
        bn: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [hidden_layers] if isinstance(hidden_layers, int) else list(hidden_layers)
        assert widths, "MODEL.HEAD.HIDDEN_LAYERS is empty: name the width of each layer, e.g. (512,)"
        if activation not in _ACTIVATIONS:
            raise NotImplementedError(f"Unknown activation {activation!r}. Accepted: {', '.join(_ACTIVATIONS)}.")
        self.out_features = widths[-1]
        layers: list[nn.Module] = []
        for width in widths:
            layers.append(nn.Linear(in_features, width))
            if bn:
                layers.append(nn.BatchNorm1d(width))
            layers.append(_ACTIVATIONS[activation](inplace=True))
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            in_features = width
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(x)


@HEAD_REGISTRY.register()
def mlp(**kwargs: Any) -> MLP:
    return MLP(**kwargs)
