"""In how many layers of a tower prompts are learned."""

from typing import Any

from common.errors import UserError


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
