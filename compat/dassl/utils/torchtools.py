"""Checkpoints and parameters."""

import os.path as osp
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial  # noqa: F401 (clients import it from here)
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .checkpoint_file import read_checkpoint_file
from .errors import UserAssertionError, UserFileNotFoundError, UserRuntimeError
from .tools import atomic_write, mkdir_if_missing  # noqa: F401 (likewise)

NEWEST = "checkpoint"
BEST = "model-best.pth.tar"


def _without_module(state_dict: dict[str, Any]) -> OrderedDict[str, Any]:
    """Strip the ``module.`` of nn.DataParallel from the keys."""
    return OrderedDict((key.removeprefix("module."), value) for key, value in state_dict.items())


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.DataParallel) else model


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Save ``<save_dir>/model.pth.tar-<epoch>`` (or ``model_name``) and name it in ``<save_dir>/checkpoint``.

    Args:
        state: ``state_dict`` and ``epoch`` (completed epochs); also ``optimizer``, ``scheduler`` and ``val_result``.
        is_best: save it as ``model-best.pth.tar`` as well.
    """
    if remove_module_from_keys:
        state = {**state, "state_dict": _without_module(state["state_dict"])}
    model_name = model_name or f"model.pth.tar-{state['epoch']}"
    fpath = osp.join(save_dir, model_name)
    with atomic_write(fpath) as handle:
        torch.save(state, handle)
    print(f"Checkpoint saved to {fpath}")
    with atomic_write(osp.join(save_dir, NEWEST), "w") as handle:
        handle.write(f"{model_name}\n")
    if is_best:
        best = osp.join(save_dir, BEST)
        with open(fpath, "rb") as source, atomic_write(best) as handle:
            shutil.copyfileobj(source, handle)
        print(f'Best checkpoint saved to "{best}"')


def load_checkpoint(fpath: str) -> Any:
    """Load a checkpoint to the CPU without running code from it; see :func:`read_checkpoint_file` for errors."""
    if fpath is None:
        raise ValueError("The path of the checkpoint is None")
    return read_checkpoint_file(fpath)


def newest_checkpoint(fdir: str) -> str | None:
    """Return the file that ``<fdir>/checkpoint`` names; None without that text file."""
    try:
        with open(osp.join(fdir, NEWEST), encoding="utf-8") as handle:
            return osp.join(fdir, handle.readline().strip())
    except FileNotFoundError:
        return None


def resume_from_checkpoint(
    fdir: str, model: nn.Module, optimizer: Optimizer | None = None, scheduler: LRScheduler | None = None
) -> int:
    """Load the newest checkpoint of a folder and return the epoch to start from, counted from 0."""
    fpath = newest_checkpoint(fdir)
    if fpath is None:
        raise UserFileNotFoundError(f"No checkpoint to resume from: {osp.join(fdir, NEWEST)} does not exist.")
    return restore(fpath, model, optimizer, scheduler)


def restore(
    fpath: str, model: nn.Module, optimizer: Optimizer | None = None, scheduler: LRScheduler | None = None
) -> int:
    """Load one checkpoint file; see :func:`resume_from_checkpoint`."""
    print(f'Loading checkpoint from "{fpath}"')
    checkpoint = load_checkpoint(fpath)
    load_weights(model, checkpoint["state_dict"], fpath)
    print("Loaded model weights")
    for name, target in (("optimizer", optimizer), ("scheduler", scheduler)):
        if target is not None and checkpoint.get(name) is not None:
            target.load_state_dict(checkpoint[name])
            print(f"Loaded {name}")
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def load_weights(model: nn.Module, state_dict: dict[str, Any], fpath: str) -> None:
    """Load all weights of the model; the error for others names the file."""
    try:
        _unwrapped(model).load_state_dict(state_dict)
    except RuntimeError as error:
        raise UserRuntimeError(
            f"The weights in {fpath} do not fit the model. They come from other settings (backbone, context "
            f"length, classes ...): use those, or another folder. {error}"
        ) from error


def load_pretrained_weights(model: nn.Module, weight_path: str) -> None:
    """Load the weights that fit the model by name and shape from a state_dict or a checkpoint; print the others."""
    checkpoint = load_checkpoint(weight_path)
    saved = _without_module(checkpoint.get("state_dict", checkpoint))
    model = _unwrapped(model)
    own = model.state_dict()
    fitting = {key: value for key, value in saved.items() if key in own and own[key].shape == value.shape}
    if not fitting:
        warnings.warn(
            f'Cannot load "{weight_path}": none of its {len(saved)} weights fits the model by name and shape '
            f"(file: {', '.join(list(saved)[:3])} ...; model: {', '.join(list(own)[:3])} ...)",
            stacklevel=2,
        )
        return
    model.load_state_dict(fitting, strict=False)
    print(f"Successfully loaded pretrained weights from {weight_path}")
    discarded = [key for key in saved if key not in fitting]
    if discarded:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")


def count_num_param(model: nn.Module | None = None, params: Iterable | None = None) -> int:
    """Count the parameters of ``model``, or in ``params``: tensors, or groups of an optimizer."""
    if model is not None:
        return sum(p.numel() for p in model.parameters())
    if params is None:
        raise ValueError("either model or params must be given")
    return sum(sum(q.numel() for q in p["params"]) if isinstance(p, dict) else p.numel() for p in params)


def open_all_layers(model: nn.Module) -> None:
    """Make all parameters trainable and set the model to training mode."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | Sequence[str]) -> None:
    """Train the named children of ``model``; freeze all others and set them to evaluation mode."""
    open_layers = [open_layers] if isinstance(open_layers, str) else list(open_layers)
    children = dict(_unwrapped(model).named_children())
    for name in open_layers:
        if name not in children:
            raise UserAssertionError(f"The model has no layer {name!r}. Accepted: {', '.join(children)}.")
    for name, child in children.items():
        child.train(name in open_layers)
        child.requires_grad_(name in open_layers)
