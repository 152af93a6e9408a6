"""Tensor names in published checkpoints of a whole model: MaPLe, PromptSRC, and VPT in MaPLe's repository."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

LEARNER = "prompt_learner."
VISION = {"vctx": "image_encoder.VPT", "deep_vctx": "image_encoder.transformer.resblocks.{}.VPT_shallow"}
TEXT = {"deep_ctx": "text_encoder.transformer.resblocks.{}.VPT_shallow"}


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
