"""Checkpoints: which there are, what they hold, and prompts of theirs, which may be published ones, in a trainer."""

import hashlib
import re
from collections.abc import Container, Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from dassl.utils import load_checkpoint
from torch import Tensor, nn

from common.errors import UserError
from common.messages import some
from common.run.history import read_history
from common.run.identity import read_identity
from trainers.modules.clip_backbone import Backbone
from trainers.modules.finite import require_finite
from trainers.modules.published_names import holds_whole_model

BEST = "model-best.pth.tar"
LEARNER = "prompt_learner"
# CoOp saves the words around the context as well. They follow from the class names, so they are not read.
TOKEN_BUFFERS = ("token_prefix", "token_suffix")


def find_checkpoint(directory: str | PathLike, network: str, epoch: int | None = None) -> Path:
    """The file of a run's network: the best one's, or that of an epoch.

    Runs with TEST.FINAL_MODEL last_step, CoOp's default, keep no best; theirs is the last one.

    Raises:
        UserError: it is not there; the message names those that are.
    """
    folder = Path(directory) / network
    path = folder / (BEST if epoch is None else f"model.pth.tar-{epoch}")
    epochs = sorted(epochs_kept(folder))
    history = read_history(directory, 1)
    # CoOp's own runs have no history, and a best model only where they chose by it.
    keeps_best = path.is_file() if history is None else history[0]["val_accuracy"] is not None
    if epoch is None and epochs and not keeps_best:
        return folder / f"model.pth.tar-{epochs[-1]}"
    if path.is_file():
        return path
    mend = "Name the folder of a trained run (--model-dir)."
    if epochs:
        mend = f"There are checkpoints of these epochs: {', '.join(map(str, epochs))} (--load-epoch)."
    raise UserError(f"Checkpoint not found: {path}. {mend}")


def read_model(path: Path, minus_infinity: Container[str] = ()) -> dict[str, Any]:
    """A checkpoint of finite numbers.

    Args:
        path: the file.
        minus_infinity: names of weights that may be minus infinity, by design.

    Raises:
        UserError: it is missing or damaged, or a number in it is not finite.
    """
    checkpoint = load_checkpoint(str(path))
    if isinstance(checkpoint, dict):
        saved = checkpoint.get("state_dict", checkpoint)  # which may be there alone
        state = {**(saved if isinstance(saved, dict) else {}), "optimizer": checkpoint.get("optimizer")}
        cause = "The training that wrote it was broken by then, or the file is damaged: use another epoch or run."
        require_finite(state, str(path), cause, minus_infinity)
    return checkpoint


def load_prompt_learner(
    trainer: Any,
    directory: str | PathLike,
    epoch: int | None = None,
    network: str = "",
    optional: Iterable[str] = (),
    into: nn.Module | None = None,
) -> None:
    """Load a run's prompts into `trainer.model`; the run may be a published one, and have had other class names.

    Of a published file that holds the whole model, what was learned is taken, and its CLIP compared with the backbone.

    Args:
        trainer: has a `model`.
        directory: the run's folder.
        epoch: which checkpoint; None: the best one, or the last where there is no best.
        network: its name, of the folder in there; "": that of the trainer's NETWORK.
        into: the network, where it is not `trainer.model`.
        optional: keys that published files do not have; they stay as they are.

    Raises:
        UserError: it is missing or damaged, or does not fit the trainer.
    """
    path = find_checkpoint(directory, network or trainer.NETWORK, epoch)
    saved, of_epoch = read_prompt_learner(path)
    _load_fitting(trainer, path, saved, directory, optional, into)
    print(f"Prompt learner loaded from {path} (epoch {of_epoch})")


def start_prompt_learner(trainer: Any, place: str) -> str:
    """Let `trainer.model` start from given prompts, in place of words or random numbers.

    Args:
        trainer: has a `model`.
        place: MODEL.INIT_WEIGHTS: a checkpoint, a file with its state_dict alone, or a run's folder.

    Returns:
        sha256 of what it starts from (16 hexadecimal digits).

    Raises:
        UserError: it is damaged, or does not fit the trainer.
    """
    path = Path(place).expanduser()
    path = find_checkpoint(path, trainer.NETWORK) if path.is_dir() else path
    saved, _ = read_prompt_learner(path, bare=True)
    _load_fitting(trainer, path, saved, path.parent.parent)
    print(f"Training starts from the prompt learner in {path}")
    digest = hashlib.sha256()
    for name, value in sorted(trainer.model.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_prompt_learner(path: Path, bare: bool = False) -> tuple[dict[str, Tensor], int | None]:
    """The tensors of a checkpoint of a prompt learner, by name, and its epoch.

    Args:
        path: the file.
        bare: whether it may hold the state_dict alone.

    Raises:
        UserError: it is something else.
    """
    checkpoint = read_model(path)
    saved = checkpoint.get("state_dict", checkpoint if bare else None) if isinstance(checkpoint, dict) else None
    if not isinstance(saved, dict) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise UserError(f"{path} is no checkpoint of a prompt learner: it holds no state_dict of tensors.")
    # DataParallel puts a name before all others.
    return {str(key).removeprefix("module."): value for key, value in saved.items()}, checkpoint.get("epoch")


def _load_fitting(trainer, path, saved, directory, optional=(), into=None):
    """Load tensors of a prompt learner, of the run in a directory, or raise UserError where they do not fit."""
    if holds_whole_model(saved):
        check_clip(path, saved, trainer.backbone)
    left_aside = (*TOKEN_BUFFERS, *trainer.UNUSED_IN_FILES)
    saved = {key: value.float() for key, value in trainer.learned_in(saved).items() if not key.startswith(left_aside)}
    model = trainer.model if into is None else into
    own, told = trainer.learned_in(model.state_dict()), trainer.sizes_in(saved)
    saved = {key: own[key] for key in optional} | saved
    _check_sizes(path, told, trainer)
    set_here = "" if told or "ctx" in own else _what_is_set(trainer)
    if saved.keys() != own.keys():
        raise UserError(
            f"{path} is of another method (--trainer): it holds {some(sorted(saved)) if saved else 'nothing'}; "
            f"{trainer.cfg.TRAINER.NAME} has {', '.join(sorted(own))}{set_here}."
        )
    if "ctx" in own:
        _check_context(path, saved["ctx"].shape, own["ctx"].shape, trainer)
    if "ctx" in own and saved["ctx"].dim() == 3:
        _check_classes(path, read_identity(directory).get("class names"), trainer.dm.dataset.classnames)
    strange = [f"{key} {tuple(saved[key].shape)}" for key in own if saved[key].shape != own[key].shape]
    if strange:
        raise UserError(
            f"{path} does not fit this backbone, {trainer.cfg.MODEL.BACKBONE.NAME}: it holds {', '.join(strange)}. "
            f"Name the one that it was trained with (--backbone){set_here}."
        )
    model.load_state_dict(saved)


def check_clip(path: Path, saved: dict[str, Tensor], backbone: Backbone) -> None:
    """Raise UserError if the CLIP in a published file of a whole model has other weights than the backbone."""
    own = backbone.model.state_dict()
    for key, value in saved.items():
        name = key.removeprefix("text_encoder.")
        if name.startswith("image_encoder."):
            name = "visual." + name.removeprefix("image_encoder.")
        if name not in own or name.startswith("prompt_learner."):
            continue
        if not _alike(value.cpu(), own[name].cpu()):
            raise UserError(
                f"{path} was trained with another CLIP than {backbone.name}: {key} differs. Name the backbone that it "
                "was trained with (--backbone)."
            )


def _alike(theirs, ours):
    """Whether weights are the same but for rounding."""
    if theirs.shape != ours.shape:
        return False
    half = not {torch.float16, torch.bfloat16}.isdisjoint((theirs.dtype, ours.dtype))
    theirs, ours = theirs.float(), ours.float()
    if not half:
        return torch.allclose(theirs, ours, rtol=1e-5)
    # PromptSRC's files hold CLIP as its sum over the epochs by their weights, too, in half precision: that rounds at
    # each of 50 epochs, and single numbers end up far from where they were, though all of them together do not.
    rounding = 4e-3 * ours.norm() + 1e-5 * ours.numel() ** 0.5
    return bool((theirs - ours).norm() <= rounding)


def _check_sizes(path, told, trainer):
    """Raise UserError, with the settings that mend it, if a file tells of other sizes than the trainer's settings."""
    if "CTX_INIT" in told:  # its number of vectors has to fit the words: see _check_context
        return
    node, settings = f"TRAINER.{trainer.SETTINGS}", trainer.settings
    others = [key for key in told if told[key] != settings[key]]
    if others:
        found = ", ".join(f"{key} {told[key]} and not {settings[key]}" for key in others)
        mend = " ".join(f"{node}.{key} {told[key]}" for key in others)
        raise UserError(f"{path} does not fit this run: it was trained with {found}. Set {mend}.")


def _what_is_set(trainer):
    """The settings of the trainer that shapes depend on, where files do not tell them."""
    named = [key for key in trainer.settings if key.startswith(("N_CTX", "PROMPT_", "METHOD"))]
    given = ", ".join(f"TRAINER.{trainer.SETTINGS}.{key} is {trainer.settings[key]}" for key in named)
    return f" ({given} here; set what it was trained with)" if given else ""


def _check_context(path, saved, own, trainer):
    """Raise UserError, with the setting that mends it, unless a saved context has the shape of the trainer's."""
    node = f"TRAINER.{trainer.SETTINGS}"
    if len(saved) != len(own):
        if len(saved) not in (2, 3):
            raise UserError(f"{path} holds a context of shape {tuple(saved)}; accepted: (N_CTX, width).")
        csc = len(saved) == 3
        kind = "class-specific contexts" if csc else "one context for all classes"
        takes_both = "CSC" in trainer.settings and trainer.SETTINGS != "SPG"
        mend = f"Set {node}.CSC {csc}" if takes_both else "Use --trainer CoOp"
        raise UserError(f"{path} does not fit this run: it holds {kind}. {mend}.")
    if saved[-2] != own[-2]:
        mend = f"{node}.N_CTX {saved[-2]}"
        if trainer.settings.CTX_INIT:
            mend += f' {node}.CTX_INIT ""'
        raise UserError(
            f"{path} does not fit this run: its context has {saved[-2]} vectors, this run's has {own[-2]}. Set {mend}."
        )
    if len(own) == 3 and saved[0] != own[0]:
        raise UserError(
            f"{path}: class-specific contexts do not fit other classes; they are for {saved[0]} classes, and here are "
            f"{own[0]}. Use the class names they were trained with, or a model with one context for all classes "
            f"({node}.CSC False)."
        )


def _check_classes(path, trained_for, classnames):
    """Raise UserError if a run that noted its class names has class-specific contexts for others."""
    if trained_for not in (None, list(classnames)):
        raise UserError(
            f"{path}: class-specific contexts do not fit other classes; they are for {', '.join(trained_for)}, and not "
            f"for {', '.join(classnames)}. Use a model with one context for all classes."
        )


def epochs_kept(folder: Path) -> set[int]:
    """Epochs of the checkpoints in a network's folder."""
    found = (re.fullmatch(r"model\.pth\.tar-(\d+)", path.name) for path in folder.glob("model.pth.tar-*"))
    return {int(match[1]) for match in found if match}
