"""Checkpoint files: find, read, resume from, and fit published prompts to a run."""

import hashlib
import re
from collections.abc import Container, Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from dassl.utils import load_checkpoint
from torch import Tensor, nn

from common.errors import UserError
from common.messages import some
from common.run.history import read_history
from trainers.modules.clip.backbone import Backbone
from trainers.modules.finite import require_finite
from trainers.modules.published_names import holds_whole_model

if TYPE_CHECKING:
    from trainers.base.trainer import PromptTrainer

BEST = "model-best.pth.tar"
PROMPT_LEARNER = "prompt_learner"
# CoOp also saves the words around the context. They follow from the class names, so they are not read.
TOKEN_BUFFERS = ("token_prefix", "token_suffix")


# ---- find and read ----


def find_checkpoint(directory: str | PathLike, network: str, epoch: int | None = None) -> Path:
    """The checkpoint file of a network: of an epoch, else the best one, else the last one.

    Raises:
        UserError: the file is missing.
    """
    folder = Path(directory) / network
    path = folder / (BEST if epoch is None else f"model.pth.tar-{epoch}")
    epochs = sorted(saved_epochs(folder))
    history = read_history(directory, 1)
    # CoOp's own runs have no history, and a best model only with FINAL_MODEL best_val.
    has_best = path.is_file() if history is None else history[0]["val_accuracy"] is not None
    if epoch is None and epochs and not has_best:
        return folder / f"model.pth.tar-{epochs[-1]}"
    if path.is_file():
        return path
    mend = "Name the folder of a trained run (--model-dir)."
    if epochs:
        mend = f"There are checkpoints of these epochs: {', '.join(map(str, epochs))} (--load-epoch)."
    raise UserError(f"Checkpoint not found: {path}. {mend}")


def saved_epochs(folder: Path) -> set[int]:
    """Epochs of the checkpoints in a network's folder."""
    found = (re.fullmatch(r"model\.pth\.tar-(\d+)", path.name) for path in folder.glob("model.pth.tar-*"))
    return {int(match[1]) for match in found if match}


def read_model(path: Path, minus_infinity: Container[str] = ()) -> dict[str, Any]:
    """Read a checkpoint file; tensors named in `minus_infinity` may hold -inf.

    Raises:
        UserError: the file is missing or damaged, or holds a number that is not finite.
    """
    checkpoint = load_checkpoint(str(path))
    if isinstance(checkpoint, dict):
        saved = checkpoint.get("state_dict", checkpoint)  # published files may hold the state_dict alone
        state = {**(saved if isinstance(saved, dict) else {}), "optimizer": checkpoint.get("optimizer")}
        cause = "The training that wrote it was broken by then, or the file is damaged: use another epoch or run."
        require_finite(state, str(path), cause, minus_infinity)
    return checkpoint


def read_prompts(path: Path, bare: bool = False) -> tuple[dict[str, Tensor], int | None]:
    """The tensors of a prompt learner's checkpoint, and its epoch; `bare` also accepts a state_dict alone.

    Raises:
        UserError: the file holds something else.
    """
    checkpoint = read_model(path)
    saved = checkpoint.get("state_dict", checkpoint if bare else None) if isinstance(checkpoint, dict) else None
    if not isinstance(saved, dict) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise UserError(f"{path} is no checkpoint of a prompt learner: it holds no state_dict of tensors.")
    # DataParallel prepends a name to all others.
    return {str(key).removeprefix("module."): value for key, value in saved.items()}, checkpoint.get("epoch")


def remove_checkpoint(folder: str | PathLike, networks: Iterable[str], epoch: int) -> None:
    """Remove an epoch's checkpoints from a run's folder."""
    for name in networks:
        Path(folder, name, f"model.pth.tar-{epoch}").unlink(missing_ok=True)


def prompts_sha256(network: nn.Module) -> str:
    """Hash (16 hexadecimal digits) of a network's tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


# ---- resume ----


def load_newest(
    directory: str | PathLike, networks: list[str], selects_by: str | None, minus_infinity: Container[str] = ()
) -> tuple[int, list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Read the newest intact checkpoints of a run.

    Args:
        directory: the run's folder.
        networks: names of its networks.
        selects_by: metric of the best epoch, whose model must be intact too; None: the run selects no epoch.
        minus_infinity: see `read_model`.

    Returns:
        number of completed epochs, their history, checkpoint of each network; (0, [], {}) to train from scratch.
    """
    saved = [saved_epochs(Path(directory) / name) for name in networks]
    epochs = sorted(set.intersection(*saved), reverse=True) if saved else []
    if not epochs:
        print("No checkpoint found, train from scratch")
        return 0, [], {}
    for epoch in epochs:
        history = read_history(directory, epoch)
        if history is None:
            print(f"The history of {directory} does not reach epoch {epoch}; going on from an epoch before.")
            continue
        try:
            files = {name: Path(directory) / name / f"model.pth.tar-{epoch}" for name in networks}
            checkpoints = {name: read_model(path, minus_infinity) for name, path in files.items()}
        except Exception as error:  # a damaged file ends in any exception of any Dassl
            print(f"A checkpoint cannot be used, going on from one before: {error}")
            continue
        if selects_by and not _best_is_intact(directory, networks[0], history, selects_by, minus_infinity):
            continue
        print(f"Going on after epoch {epoch}, from the checkpoints in {directory}")
        return epoch, history, checkpoints
    print(f"No usable checkpoint is left in {directory}; training starts anew.")
    return 0, [], {}


def best_epoch(history: list[dict[str, Any]], metric: str) -> tuple[float, int | None]:
    """(value, epoch from 1) of the first epoch that is best by a metric; (-inf, None) if no epoch counts."""
    values = {
        epoch: value
        for epoch, entry in enumerate(history, start=1)
        if (value := entry.get(f"val_{metric}")) is not None and entry.get("counts", True)
    }
    if not values:
        return -float("inf"), None
    best = max(values, key=values.__getitem__)  # the first of equal ones
    return values[best], best


def _best_is_intact(directory, name, history, metric, minus_infinity):
    """Whether the best model of these epochs is there, or one of a later epoch, which will be trained again."""
    best = best_epoch(history, metric)[1]
    if best is None:
        return True
    try:
        found = read_model(Path(directory) / name / BEST, minus_infinity)["epoch"]
    except Exception as error:
        print(f"The best model so far cannot be used: {error}")
        return False
    return found == best or found > len(history)


# ---- published files ----


def fit_prompts(
    path: Path,
    saved: dict[str, Tensor],
    own: dict[str, Tensor],
    trainer: "PromptTrainer",
    trained_for: list[str] | None,
) -> dict[str, Tensor]:
    """The tensors of a file, ours or a published one, as a network's state_dict.

    Args:
        path: the file, for messages.
        saved: its tensors.
        own: tensors of the network, by their own names.
        trainer: method, config and backbone of the network.
        trained_for: class names of the training run, if known.

    Raises:
        UserError: they do not fit; the message names the settings that do.
    """
    if holds_whole_model(saved):
        check_clip(path, saved, trainer.backbone)
    ignored = (*TOKEN_BUFFERS, *trainer.UNUSED_KEYS)
    saved = {key: value.float() for key, value in trainer.learned_in(saved).items() if not key.startswith(ignored)}
    told = trainer.sizes_in(saved)
    saved = {key: value for key, value in own.items() if key.startswith(trainer.OPTIONAL_KEYS)} | saved
    _check_sizes(path, told, trainer)
    set_here = "" if told or "ctx" in own else _shape_settings(trainer)
    if saved.keys() != own.keys():
        raise UserError(
            f"{path} is of another method (--trainer): it holds {some(sorted(saved)) if saved else 'nothing'}; "
            f"{trainer.cfg.TRAINER.NAME} has {', '.join(sorted(own))}{set_here}."
        )
    if "ctx" in own:
        _check_context(path, saved["ctx"].shape, own["ctx"].shape, trainer)
    if "ctx" in own and saved["ctx"].dim() == 3 and trained_for not in (None, list(trainer.dm.dataset.classnames)):
        raise UserError(
            f"{path}: class-specific contexts do not fit other classes; they are for {', '.join(trained_for or ())}, "
            f"and not for {', '.join(trainer.dm.dataset.classnames)}. Use a model with one context for all classes."
        )
    strange = [f"{key} {tuple(saved[key].shape)}" for key in own if saved[key].shape != own[key].shape]
    if strange:
        raise UserError(
            f"{path} does not fit this backbone, {trainer.cfg.MODEL.BACKBONE.NAME}: it holds {', '.join(strange)}. "
            f"Name the one that it was trained with (--backbone){set_here}."
        )
    return saved


def check_clip(path: Path, saved: dict[str, Tensor], backbone: Backbone) -> None:
    """Raise UserError if the CLIP in a published file of a whole model has other weights than the backbone."""
    own = backbone.model.state_dict()
    for key, value in saved.items():
        name = key.removeprefix("text_encoder.")
        if name.startswith("image_encoder."):
            name = "visual." + name.removeprefix("image_encoder.")
        if name not in own or name.startswith("prompt_learner."):
            continue
        if not _equal_but_rounding(value.cpu(), own[name].cpu()):
            raise UserError(
                f"{path} was trained with another CLIP than {backbone.name}: {key} differs. Name the backbone that it "
                "was trained with (--backbone)."
            )


def _equal_but_rounding(theirs: Tensor, ours: Tensor) -> bool:
    if theirs.shape != ours.shape:
        return False
    half = not {torch.float16, torch.bfloat16}.isdisjoint((theirs.dtype, ours.dtype))
    theirs, ours = theirs.float(), ours.float()
    if not half:
        return torch.allclose(theirs, ours, rtol=1e-5)
    # PromptSRC's files hold CLIP as its weighted sum over up to 50 epochs in half precision: single numbers end up
    # far from their start, but not the norm of all of them.
    rounding = 4e-3 * ours.norm() + 1e-5 * ours.numel() ** 0.5
    return bool((theirs - ours).norm() <= rounding)


def _check_sizes(path, told, trainer):
    """Raise UserError if the tensors of a file show other sizes than the trainer's config."""
    if "CTX_INIT" in told:  # _check_context compares the number of vectors with the words
        return
    node, settings = f"TRAINER.{trainer.SETTINGS}", trainer.settings
    others = [key for key in told if told[key] != settings[key]]
    if others:
        found = ", ".join(f"{key} {told[key]} and not {settings[key]}" for key in others)
        mend = " ".join(f"{node}.{key} {told[key]}" for key in others)
        raise UserError(f"{path} does not fit this run: it was trained with {found}. Set {mend}.")


def _shape_settings(trainer):
    """The config values that shapes depend on, for messages about files that do not show them."""
    named = [key for key in trainer.settings if key.startswith(("N_CTX", "PROMPT_", "METHOD"))]
    given = ", ".join(f"TRAINER.{trainer.SETTINGS}.{key} is {trainer.settings[key]}" for key in named)
    return f" ({given} here; set what it was trained with)" if given else ""


def _check_context(path, saved, own, trainer):
    """Raise UserError unless a saved context has the shape of the trainer's."""
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
