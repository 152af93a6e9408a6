"""What to say where numbers of a run are not finite: which, and what most likely made them so."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from common.messages import some
from trainers.modules.finite import all_finite, require_finite


def check_loss(trainer: Any, loss: Tensor) -> None:
    """Stop a trainer at a loss that is not finite, with all that helps to find out why.

    Raises:
        UserError: it is not.
    """
    if torch.isfinite(loss).all():
        return
    raise UserError(
        f"The loss became {loss.item()} in epoch {trainer.epoch + 1} of {trainer.max_epoch}, step "
        f"{trainer.batch_idx + 1} of {trainer.num_batches} (learning rate {trainer.get_current_lr():.2g}, precision "
        f"{trainer.backbone.precision}). Most likely the learning rate is too high (OPTIM.LR), or half precision "
        f"overflows (PREC fp32). {_kept(trainer)}Changed settings need another --output-dir."
    )


def check_networks(trainer: Any) -> None:
    """Stop a trainer where the last step of an epoch broke a network, before anything of that epoch is kept.

    Raises:
        UserError: a weight, a buffer or what an optimiser keeps is not finite.
    """
    for name in trainer.get_model_names():
        optimizer, cause = trainer._optims[name], ""
        state = dict(trainer._models[name].state_dict())
        if optimizer is not None:
            state["optimizer"] = optimizer.state_dict()["state"]
            cause = (
                f"The last step broke it: most likely the learning rate is too high (OPTIM.LR, now "
                f"{trainer.get_current_lr(name):.2g}), or half precision overflows (PREC fp32, now "
                f"{trainer.backbone.precision}). {_kept(trainer)}Changed settings need another --output-dir."
            )
        what = f"{name} after epoch {trainer.epoch + 1} of {trainer.max_epoch}"
        require_finite(state, what, cause, trainer.MINUS_INFINITY)


def why_not_finite(trainer: Any, images: str, features: Tensor, indices: Sequence[int]) -> str:
    """What to say of images whose logits are not finite: what is not, and the likely cause.

    Args:
        trainer: that classifies them.
        images: what they are ("images 1 to 100 of the test split (sketch)").
        features, indices: as its `predict` takes them.
    """
    overflow = "Half precision may overflow: try PREC fp32."
    cause = overflow
    if trainer.get_model_names():
        cause = (
            "Most likely training broke the model, by too high a learning rate (OPTIM.LR), or half precision "
            "overflows (PREC fp32)."
        )
    found = f"The logits of {images} are not finite"
    if not all_finite(features):
        return f"{found}, since their image features are not. {overflow}"
    try:
        with trainer.backbone.autocast():
            text_features = trainer.text_features(features, indices)
    except NotImplementedError:  # a method without texts
        return f"{found}. {cause}"
    # (C, E), (B, C, E), or (2C, E) of texts of both signs.
    wrong = ~text_features.isfinite().all(dim=-1).reshape(-1, trainer.num_classes).all(dim=0)
    names = [name for name, is_wrong in zip(trainer.dm.dataset.classnames, wrong.tolist(), strict=True) if is_wrong]
    if not names:
        return f"{found}, though image and text features are. {cause}"
    whose = some(names) if len(names) < len(wrong) else "every class"
    return f"{found}, since the text features of {whose} are not. {cause}"


def _kept(trainer: Any) -> str:
    return f"The checkpoint of epoch {trainer.epoch} is kept. " if trainer.epoch else ""
