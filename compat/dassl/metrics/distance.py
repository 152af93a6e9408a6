"""Distances between two sets of vectors."""

import torch
from torch.nn import functional as F


def compute_distance_matrix(input1: torch.Tensor, input2: torch.Tensor, metric: str = "euclidean") -> torch.Tensor:
    """Return the distances (M, N) between each of M and each of N vectors.

    Args:
        input1: tensor (M, D).
        input2: tensor (N, D).
        metric (str): ``"euclidean"``, which is the square of it, or ``"cosine"``.

    Raises:
        AssertionError: the inputs are not two tensors of that kind.
        ValueError: another metric.
    """
    for name, value in (("input1", input1), ("input2", input2)):
        assert isinstance(value, torch.Tensor), f"{name} must be a tensor, got {type(value).__name__}"
        assert value.dim() == 2, f"{name} must be of shape (vectors, dimensions), got {tuple(value.shape)}"
    assert input1.size(1) == input2.size(1), f"vectors of {input1.size(1)} and {input2.size(1)} dimensions"
    if metric == "euclidean":
        return euclidean_squared_distance(input1, input2)
    if metric == "cosine":
        return cosine_distance(input1, input2)
    raise ValueError(f"Unknown metric: {metric!r}. Accepted: euclidean, cosine.")


def euclidean_squared_distance(input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
    """Return ``|x - y|^2`` for each x of ``input1`` (M, D) and y of ``input2`` (N, D): (M, N)."""
    squares = input1.pow(2).sum(dim=1, keepdim=True) + input2.pow(2).sum(dim=1)
    return torch.addmm(squares, input1, input2.t(), alpha=-2)


def cosine_distance(input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
    """Return ``1 - cos(x, y)`` for each x of ``input1`` (M, D) and y of ``input2`` (N, D): (M, N)."""
    return 1 - F.normalize(input1, dim=1) @ F.normalize(input2, dim=1).t()
