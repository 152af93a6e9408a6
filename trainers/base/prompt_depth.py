"""In how many layers of a tower prompts are learned."""

from typing import Any

from yacs.config import CfgNode

from common.errors import UserError
from trainers.modules.clip_backbone import Backbone

# What 0 stands for, or all layers of a tower that has fewer: VPT's depth in MaPLe's repository, MaPLe's in SPG's
# comparison (its own is 9), PromptSRC's own. By the keys of each trainer: that depth, and the towers that it is for.
USUAL: dict[str, dict[str, tuple[int, tuple[str, ...]]]] = {
    "VPT": {"PROMPT_DEPTH_VISION": (12, ("image",))},
    "MAPLE": {"PROMPT_DEPTH": (12, ("text", "image"))},
    "PROMPTSRC": {"PROMPT_DEPTH_VISION": (9, ("image",)), "PROMPT_DEPTH_TEXT": (9, ("text",))},
}


def settled_depths(cfg: CfgNode, backbone: Backbone) -> dict[str, int]:
    """The depths that a config leaves to the backbone (0), by their whole keys."""
    found = {}
    for node, keys in USUAL.items() if backbone.is_vit else ():
        for key, (depth, towers) in keys.items():
            if cfg.TRAINER[node][key] == 0:
                layers = {"text": len(backbone.text.blocks), "image": len(backbone.visual.transformer.resblocks)}
                found[f"TRAINER.{node}.{key}"] = min(depth, *(layers[tower] for tower in towers))
    return found


def prompt_depth(trainer: Any, key: str, **n_layers: int) -> int:
    """The depth of prompts that a setting of a trainer names.

    Args:
        trainer: has `settings` and `cfg`.
        key: of its own node.
        n_layers: how many layers the towers have that it is for: text=12, image=24.

    Raises:
        UserError: one has fewer.
    """
    depth = trainer.settings[key]
    tower = min(n_layers, key=n_layers.__getitem__)
    most = n_layers[tower]
    if depth > most:
        name = f"TRAINER.{trainer.SETTINGS}.{key}"
        raise UserError(
            f"{name} is {depth}, but the {tower} tower of {trainer.cfg.MODEL.BACKBONE.NAME} has {most} layers; "
            f"accepted: 1 (prompts at the input alone) to {most}. Set {name} {most}."
        )
    return depth
