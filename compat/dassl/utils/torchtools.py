"""Checkpoints and parameters."""

import os.path as osp
import shutil
import warnings
from collections import OrderedDict
from functools import partial  # noqa: F401 (clients take it from here)

import torch
from torch import nn

from .checkpoint_file import read_checkpoint_file
from .errors import UserAssertionError, UserFileNotFoundError, UserRuntimeError
from .tools import atomic_write, mkdir_if_missing  # noqa: F401 (clients take mkdir_if_missing from here)

__all__ = [
    "count_num_param",
    "init_network_weights",
    "load_checkpoint",
    "load_pretrained_weights",
    "open_all_layers",
    "open_specified_layers",
    "resume_from_checkpoint",
    "save_checkpoint",
]

NEWEST = "checkpoint"
BEST = "model-best.pth.tar"


def _without_module(state_dict):
    """Strip the ``module.`` that nn.DataParallel puts before every key."""
    return OrderedDict((key.removeprefix("module."), value) for key, value in state_dict.items())


def save_checkpoint(state, save_dir, is_best=False, remove_module_from_keys=True, model_name=""):
    """Save a checkpoint; a run that is killed meanwhile leaves the former files whole.

    Writes ``<save_dir>/model.pth.tar-<epoch>`` (or ``<save_dir>/<model_name>``) and names it in the text file
    ``<save_dir>/checkpoint``.

    Args:
        state (dict): holds ``state_dict`` and ``epoch`` (the number of finished epochs), and may hold
            ``optimizer``, ``scheduler`` and ``val_result``: plain data that loads without running code.
        save_dir (str): the folder; it is made.
        is_best (bool): also save it as ``model-best.pth.tar``.
        remove_module_from_keys (bool): strip the ``module.`` of nn.DataParallel from the keys.
        model_name (str): the name of the file; empty: after the epoch.
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


def load_checkpoint(fpath):
    """Load a checkpoint, its tensors on the CPU.

    Args:
        fpath (str): the file; also one written by Dassl.pytorch.

    Returns:
        dict: what was saved.

    Raises:
        UserFileNotFoundError: the file is missing.
        UserRuntimeError: it is damaged, or would run code on loading.
    """
    if fpath is None:
        raise ValueError("The path of the checkpoint is None")
    return read_checkpoint_file(fpath)


def newest_checkpoint(fdir):
    """Return the file that ``<fdir>/checkpoint`` names, or None if there is no such text file."""
    try:
        with open(osp.join(fdir, NEWEST), encoding="utf-8") as handle:
            return osp.join(fdir, handle.readline().strip())
    except FileNotFoundError:
        return None


def resume_from_checkpoint(fdir, model, optimizer=None, scheduler=None):
    """Load model, optimizer and scheduler from the newest checkpoint in a folder.

    Args:
        fdir (str): a folder in which :func:`save_checkpoint` saved.
        model (nn.Module): gets the weights.
        optimizer, scheduler: get their state, where given and saved.

    Returns:
        int: the epoch to start from, counted from 0.

    Raises:
        UserFileNotFoundError: no checkpoint there.
        UserRuntimeError: one that cannot be loaded or does not fit the model.
    """
    fpath = newest_checkpoint(fdir)
    if fpath is None:
        raise UserFileNotFoundError(f"No checkpoint to resume from: {osp.join(fdir, NEWEST)} does not exist.")
    return restore(fpath, model, optimizer, scheduler)


def restore(fpath, model, optimizer=None, scheduler=None):
    """Like :func:`resume_from_checkpoint`, from one file."""
    print(f'Loading checkpoint from "{fpath}"')
    checkpoint = load_checkpoint(fpath)
    load_weights(model, checkpoint["state_dict"], fpath)
    print("Loaded model weights")
    if optimizer is not None and checkpoint.get("optimizer") is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
        print("Loaded optimizer")
    if scheduler is not None and checkpoint.get("scheduler") is not None:
        scheduler.load_state_dict(checkpoint["scheduler"])
        print("Loaded scheduler")
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def load_weights(model, state_dict, fpath):
    """``model.load_state_dict(state_dict)`` with an error that names the file.

    Raises:
        UserRuntimeError: names or shapes differ.
    """
    if isinstance(model, nn.DataParallel):
        model = model.module
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        raise UserRuntimeError(
            f"The weights in {fpath} do not fit the model. They come from other settings (backbone, context "
            f"length, classes ...): use those, or another folder. {error}"
        ) from error


def load_pretrained_weights(model, weight_path):
    """Load those weights of a file that fit the model by name and shape, and say which were left out.

    Args:
        model (nn.Module): gets the weights.
        weight_path (str): a state_dict or a checkpoint that holds one.

    Raises:
        UserFileNotFoundError: the file is missing.
        UserRuntimeError: it is damaged, or would run code on loading.
    """
    checkpoint = load_checkpoint(weight_path)
    saved = _without_module(checkpoint.get("state_dict", checkpoint))
    if isinstance(model, nn.DataParallel):
        model = model.module
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


def count_num_param(model=None, params=None):
    """Return the number of parameters of ``model``, or in ``params`` (tensors, or an optimizer's groups)."""
    if model is not None:
        return sum(p.numel() for p in model.parameters())
    if params is None:
        raise ValueError("either model or params must be given")
    return sum(sum(q.numel() for q in p["params"]) if isinstance(p, dict) else p.numel() for p in params)


def open_all_layers(model):
    """Make all parameters trainable and set the model to training mode."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model, open_layers):
    """Train some children of ``model`` only; all others are frozen and in evaluation mode.

    Args:
        model (nn.Module): the model.
        open_layers (str or list of str): names of its direct children.

    Raises:
        UserAssertionError: the model has no such child.
    """
    if isinstance(model, nn.DataParallel):
        model = model.module
    open_layers = [open_layers] if isinstance(open_layers, str) else list(open_layers)
    children = dict(model.named_children())
    for name in open_layers:
        if name not in children:
            raise UserAssertionError(f"The model has no layer {name!r}. Accepted: {', '.join(children)}.")
    for name, child in children.items():
        child.train(name in open_layers)
        child.requires_grad_(name in open_layers)


def set_bn_to_eval(m: nn.Module) -> None:
    """For ``model.apply``: keep the running statistics of batch normalisation; its weights learn on."""
    if "BatchNorm" in type(m).__name__:
        m.eval()


def adjust_learning_rate(
    optimizer: torch.optim.Optimizer,
    base_lr: float,
    epoch: int,
    stepsize: int = 20,
    gamma: float = 0.1,
    linear_decay: bool = False,
    final_lr: float = 0,
    max_epoch: int = 100,
) -> None:
    """Set the rate of all parameter groups for one epoch; :func:`dassl.optim.build_lr_scheduler` does more.

    Args:
        optimizer: the optimizer.
        base_lr (float): the rate of epoch 0.
        epoch (int): counted from 0.
        stepsize (int): after so many epochs each
        gamma (float): the rate is multiplied by this;
        linear_decay (bool): instead, it goes in a straight line
        final_lr (float): to this rate
        max_epoch (int): at this epoch.
    """
    lr = base_lr * gamma ** (epoch // stepsize)
    if linear_decay:
        done = epoch / max_epoch
        lr = done * final_lr + (1 - done) * base_lr
    for group in optimizer.param_groups:
        group["lr"] = lr


_INITIALISERS = {
    "normal": lambda weight, gain: nn.init.normal_(weight, 0.0, gain),
    "xavier": lambda weight, gain: nn.init.xavier_normal_(weight, gain),
    "kaiming": lambda weight, gain: nn.init.kaiming_normal_(weight, a=0, mode="fan_in"),
    "orthogonal": lambda weight, gain: nn.init.orthogonal_(weight, gain),
}


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Draw the weights of all convolutions and linear layers anew; normalisation layers start as identity.

    Args:
        model (nn.Module): the network.
        init_type (str): normal, xavier, kaiming or orthogonal.
        gain (float): standard deviation for normal, gain for xavier and orthogonal.

    Raises:
        NotImplementedError: another ``init_type``.
    """
    if init_type not in _INITIALISERS:
        raise NotImplementedError(f"Unknown init_type {init_type!r}. Accepted: {', '.join(_INITIALISERS)}.")
    for module in model.modules():
        kind = type(module).__name__
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        learns = "Conv" in kind or "Linear" in kind
        if weight is None or not (learns or "BatchNorm" in kind or "InstanceNorm" in kind):
            continue
        if learns:
            _INITIALISERS[init_type](weight.data, gain)
        else:
            nn.init.ones_(weight.data)
        if bias is not None:
            nn.init.zeros_(bias.data)
