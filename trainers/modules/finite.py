"""Find NaN and infinite values in tensors."""

from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError


def all_finite(numbers: Tensor) -> bool:
    """Whether all of some numbers are finite: by their sum, which any NaN or infinity spoils.

    So they are read once and nothing is written, which takes a fraction of what looking at each would.
    """
    if not numbers.is_floating_point():
        return True
    # In at least single precision, since sums overflow sooner than their numbers.
    total = numbers.sum(dtype=torch.promote_types(numbers.dtype, torch.float32))
    return bool(total.isfinite()) or bool(numbers.isfinite().all())


def require_finite(state: Mapping[str, Any], what: str, cause: str, minus_infinity: Container[str] = ()) -> None:
    """Check all tensors of a state_dict, or of dicts and lists inside.

    Args:
        state: tensors by name; anything else in it is passed over.
        what: whose they are, to begin the message with ("Backbone file x.pt").
        cause: sentences on what the likely cause is and what to do.
        minus_infinity: names of tensors that may hold minus infinity, by design.

    Raises:
        UserError: a number is NaN or infinite.
    """
    for name, tensor in _named_tensors(state):
        if name in minus_infinity:
            tensor = tensor[~tensor.isneginf()]
        if not all_finite(tensor):
            of_all = f"{int((~tensor.isfinite()).sum()):,} of the {tensor.numel():,} numbers of {name}"
            raise UserError(f"{what}: {of_all} are not finite (NaN or infinite). {cause}")


def _named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the tensors in dicts, lists and tuples; names are like "optimizer.state.0.exp_avg"."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (Mapping, list, tuple)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _named_tensors(item, f"{name}.{key}" if name else str(key))
