"""The parts of a block of CLIP's transformers, shared by the prompt encoder and the prompted image tower.

A block computes x + attention(ln_1(x)), then x + mlp(ln_2(x)). OpenCLIP's blocks may have another activation and layer
scales (ls_1, ls_2). The towers define the attention; this module has the rest, with few passes over memory.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from trainers.modules.clip.text_tower import activation_of

QUICK_GELU = 1.702  # x * sigmoid(1.702 x) is SiLU(1.702 x) / 1.702
PROMPT_STD = 0.02  # of random prompts, in CoOp and in all methods with deep prompts


def check_depth(depth: int, n_layers: int, tower: str) -> None:
    """Raise UserError unless a tower of n_layers can have prompts in its first `depth` layers."""
    if not 1 <= depth <= n_layers:
        raise UserError(
            f"A prompt depth of {depth} does not fit the {tower}, which has {n_layers} layers. Set the trainer's "
            f"PROMPT_DEPTH to 1 (prompts at the input alone) to {n_layers}."
        )


def layer_norm(x: Tensor, ln: nn.LayerNorm) -> Tensor:
    """A layer norm in single precision at any tower precision, as CLIP's own."""
    return F.layer_norm(x.float(), ln.normalized_shape, ln.weight.float(), ln.bias.float(), ln.eps).to(x.dtype)


def project(x: Tensor, block: Any, first: int = 0, last: int = 3) -> Tensor:
    """Queries (0), keys (1) and values (2) `first` to `last` - 1 of x (B, T, D): each (B, heads, T, D / heads)."""
    attn, width = block.attn, x.shape[-1]
    rows = slice(first * width, last * width)
    projected = F.linear(x, attn.in_proj_weight[rows], attn.in_proj_bias[rows])
    return projected.view(*x.shape[:2], last - first, attn.num_heads, -1).permute(2, 0, 3, 1, 4)


def after_attention(x: Tensor, attended: Tensor, block: Any) -> Tensor:
    """Output projection, residual, MLP, residual of one block: (B, T, D)."""
    x = _add_linear(x, attended, block.attn.out_proj, _layer_scale(block, "ls_1"))
    fc, rows = block.mlp.c_fc, layer_norm(x, block.ln_2).flatten(0, 1)
    if activation_of(block) != "quick_gelu":
        hidden = block.mlp.gelu(F.linear(rows, fc.weight, fc.bias))
        return _add_linear(x, hidden, block.mlp.c_proj, _layer_scale(block, "ls_2"))
    # addmm and SiLU are two passes; QuickGELU as written would take four.
    hidden = torch.addmm(fc.bias, rows, fc.weight.t(), beta=QUICK_GELU, alpha=QUICK_GELU)
    hidden = F.silu(hidden, inplace=not hidden.requires_grad)
    return _add_linear(x, hidden, block.mlp.c_proj, _layer_scale(block, "ls_2"), 1 / QUICK_GELU)


def _layer_scale(block, name):
    """The factors (D,) of a block's layer scale, or None."""
    return getattr(getattr(block, name, None), "gamma", None)


def _add_linear(x, y, linear, gamma=None, scale=1.0):
    """x + gamma * (bias + scale * y W^T), for x (B, T, D), y with as many rows; without gamma, it is 1."""
    rows = x.flatten(0, 1)
    y = y.reshape(rows.shape[0], -1)
    if gamma is not None or torch.is_autocast_enabled(x.device.type):
        # A fused sum would round the residual stream to the autocast precision.
        added = torch.addmm(linear.bias, y, linear.weight.t(), alpha=scale)
        return x + (added if gamma is None else (added * gamma).to(added.dtype)).view_as(x)
    return torch.addmm(rows, y, linear.weight.t(), alpha=scale).add_(linear.bias).view_as(x)
