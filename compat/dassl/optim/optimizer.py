"""Optimizers from ``cfg.OPTIM``."""

import warnings
from collections.abc import Iterable

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.utils.errors import UserTypeError
from dassl.utils.registry import check_availability

from .radam import RAdam

# adamw_fused is ours: one kernel, a third of the time of an AdamW step. It rounds differently (1e-8 a step).
AVAI_OPTIMS = ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw", "adamw_fused"]


def build_optimizer(
    model: nn.Module | Iterable, optim_cfg: CfgNode, param_groups: Iterable | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer OPTIM.NAME for a module or its parameters. ``param_groups`` replace both and STAGED_LR."""
    check_availability(optim_cfg.NAME, AVAI_OPTIMS, "optimizer (OPTIM.NAME)")
    if optim_cfg.STAGED_LR and param_groups is not None:
        warnings.warn("OPTIM.STAGED_LR is ignored: the trainer passes its own parameter groups", stacklevel=2)
    elif optim_cfg.STAGED_LR:
        param_groups = _staged(model, optim_cfg)
    elif param_groups is None:
        param_groups = model.parameters() if isinstance(model, nn.Module) else model

    common = {"lr": optim_cfg.LR, "weight_decay": optim_cfg.WEIGHT_DECAY}
    betas = (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2)
    if optim_cfg.NAME in ("adam", "amsgrad"):
        return torch.optim.Adam(param_groups, betas=betas, amsgrad=optim_cfg.NAME == "amsgrad", **common)
    if optim_cfg.NAME in ("adamw", "adamw_fused"):
        fused = True if optim_cfg.NAME == "adamw_fused" else None
        return torch.optim.AdamW(param_groups, betas=betas, fused=fused, **common)
    if optim_cfg.NAME == "radam":
        return RAdam(param_groups, betas=betas, **common)
    if optim_cfg.NAME == "rmsprop":
        return torch.optim.RMSprop(param_groups, momentum=optim_cfg.MOMENTUM, alpha=optim_cfg.RMSPROP_ALPHA, **common)
    return torch.optim.SGD(
        param_groups,
        momentum=optim_cfg.MOMENTUM,
        dampening=optim_cfg.SGD_DAMPNING,
        nesterov=optim_cfg.SGD_NESTEROV,
        **common,
    )


def _staged(model: nn.Module, optim_cfg: CfgNode) -> list[dict]:
    """Two groups: the children in NEW_LAYERS at LR, all others at LR * BASE_LR_MULT."""
    if not isinstance(model, nn.Module):
        raise UserTypeError(
            "OPTIM.STAGED_LR needs a module, to find NEW_LAYERS by name. The trainer passes parameters."
        )
    if isinstance(model, nn.DataParallel):
        model = model.module
    new_layers = optim_cfg.NEW_LAYERS
    new_layers = {new_layers} if isinstance(new_layers, str) else set(new_layers)
    if not new_layers:
        warnings.warn("OPTIM.NEW_LAYERS is empty: with STAGED_LR all layers learn at BASE_LR_MULT", stacklevel=3)
    children = dict(model.named_children())
    unknown = sorted(new_layers - set(children))
    if unknown:  # not an error: clients name the layers of all their models at once
        warnings.warn(
            f"OPTIM.NEW_LAYERS names {', '.join(unknown)}, which this model does not have; it has "
            f"{', '.join(children)}. All layers that are not named learn at LR * BASE_LR_MULT",
            stacklevel=3,
        )
    base = [p for name, child in children.items() if name not in new_layers for p in child.parameters()]
    new = [p for name, child in children.items() if name in new_layers for p in child.parameters()]
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]
