"""A multi-layer perceptron."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .build import HEAD_REGISTRY

_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class MLP(nn.Module):
    """Linear layers, each with batch normalisation, activation and dropout.

    Attributes: ``out_features``, the width of the last layer.

    Args:
        in_features (int): width of the input.
        hidden_layers (int or list of int): widths of the layers.
        activation (str): relu or leaky_relu.
        bn (bool): batch normalisation before the activation.
        dropout (float): probability; 0: none.

    Raises:
        AssertionError: no layer.
        NotImplementedError: another activation.
    """

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
        """From (B, in_features) to (B, out_features)."""
        return self.mlp(x)


@HEAD_REGISTRY.register()
def mlp(**kwargs: Any) -> MLP:
    """Build an :class:`MLP`."""
    return MLP(**kwargs)
