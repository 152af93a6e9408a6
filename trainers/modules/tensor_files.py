"""Tensors in files: read them without running code, find values that are not finite, rename published ones.

Published checkpoints of MaPLe and PromptSRC, and of VPT in MaPLe's repository, have the names of a whole model.
"""

import pickle
import zipfile
from collections.abc import Callable, Container, Iterator, Mapping
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError

LEARNER = "prompt_learner."
VISION = {"vctx": "image_encoder.VPT", "deep_vctx": "image_encoder.transformer.resblocks.{}.VPT_shallow"}
TEXT = {"deep_ctx": "text_encoder.transformer.resblocks.{}.VPT_shallow"}


def read_tensors(path: str | PathLike, kind: str, fix: str) -> Any:
    """Read a file of torch.save or safetensors; tensors are on the CPU.

    Args:
        kind: start of messages ("Prompt label").
        fix: end of messages, a sentence for the user.
    """
    try:
        if _is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch.load does not compare checksums
            if damaged is not None:
                raise ValueError(f"wrong checksum of {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise errors of any kind
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            problem = "it holds more than tensors and might run code when opened"
        else:
            problem = f"it is damaged or has another format ({type(error).__name__})"
        raise UserError(f"{kind} {path} cannot be read: {problem}. {fix}") from error


def _is_safetensors(path: str | PathLike) -> bool:
    """Whether a file begins with the 8 bytes of a header's length, then a JSON header."""
    with open(path, "rb") as handle:
        length, first = int.from_bytes(handle.read(8), "little"), handle.read(1)
        return first == b"{" and 8 + length <= handle.seek(0, 2)


def all_finite(values: Tensor) -> bool:
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


def publish_names(network: nn.Module, names: Mapping[str, str]) -> None:
    """Give the network's state_dict published names; `load_state_dict` accepts both.

    Args:
        names: own name -> published name, with {} where the published file has a tensor for each layer. Other tensors
            get the prefix `prompt_learner.`.
    """
    network.register_state_dict_post_hook(partial(_rename, partial(_published, names=names)))
    network.register_load_state_dict_pre_hook(partial(_rename, partial(extract_prompts, names=names)))


def extract_prompts(saved: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the learned tensors of a published file by their own names; without published names, all tensors."""
    found = {key.removeprefix(LEARNER): value for key, value in saved.items() if key.startswith(LEARNER)}
    for own, name in names.items():
        layers = [saved[key] for i in range(1, 1 + len(saved)) if (key := name.format(i)) in saved]
        if layers:
            found[own] = torch.stack(layers) if "{}" in name else layers[0]
    return found if found or holds_whole_model(saved) else dict(saved)


def holds_whole_model(saved: Mapping[str, Tensor]) -> bool:
    """Whether a file has the tensors of the whole model, CLIP included."""
    return "logit_scale" in saved


def _published(own: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in own.items():
        name = names.get(key, LEARNER + key)
        # Layer 0 has the shallow prompts, so deep prompts begin at layer 1.
        found |= {name.format(i): layer for i, layer in enumerate(value, 1)} if "{}" in name else {name: value}
    return found


def _rename(rename: Callable, module: nn.Module, state: dict[str, Tensor], *_: Any) -> None:
    renamed = rename(state)
    state.clear()
    state.update(renamed)
