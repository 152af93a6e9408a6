"""Find NaN and infinite values in tensors."""

from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError


def all_finite(values: Tensor) -> bool:
    """Whether all values are finite."""
    if not values.is_floating_point():
        return True
    # Any NaN or infinity makes the sum NaN or infinite. The sum reads memory once and writes nothing. It is at least in
    # single precision, where half precision would overflow.
    total = values.sum(dtype=torch.promote_types(values.dtype, torch.float32))
    return bool(total.isfinite()) or bool(values.isfinite().all())


def require_finite(state: Mapping[str, Any], subject: str, fix: str, allow_neg_inf: Container[str] = ()) -> None:
    """Raise UserError if a tensor in nested dicts and lists has NaN or infinite values.

    Args:
        subject: start of the message ("Backbone file x.pt").
        fix: end of the message, with the likely cause.
        allow_neg_inf: names of tensors that may hold -inf.
    """
    for name, tensor in _named_tensors(state):
        if name in allow_neg_inf:
            tensor = tensor[~tensor.isneginf()]
        if not all_finite(tensor):
            count = f"{int((~tensor.isfinite()).sum()):,} of the {tensor.numel():,} numbers"
            raise UserError(f"{subject}: {count} of {name} are not finite (NaN or infinite). {fix}")


def _named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the tensors in dicts, lists and tuples; names are like "optimizer.state.0.exp_avg"."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (Mapping, list, tuple)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _named_tensors(item, f"{name}.{key}" if name else str(key))
