"""Checkpoint files: find, read, resume from, and fit published prompts to a run."""

import re
from collections.abc import Container, Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from dassl.utils import load_checkpoint
from torch import Tensor

from common.errors import UserError, join_truncated
from common.run import read_run_record
from trainers.config import format_for_shell
from trainers.modules.clip.backbone import Backbone
from trainers.modules.tensor_files import holds_whole_model, require_finite

if TYPE_CHECKING:
    from trainers.base.trainer import PromptTrainer

BEST = "model-best.pth.tar"
CHECKPOINTS = "*/model*.pth.tar*"  # in the folder of a run
PROMPT_LEARNER = "prompt_learner"
# CoOp also saves the words around the context. They follow from the class names, so they are not read.
TOKEN_BUFFERS = ("token_prefix", "token_suffix")


# ---- find and read ----


def find_checkpoint(directory: str | PathLike, network: str, epoch: int | None = None) -> Path:
    """The checkpoint file of a network: of an epoch, else the best one, else the last one."""
    folder = Path(directory) / network
    path = folder / (BEST if epoch is None else f"model.pth.tar-{epoch}")
    epochs, record = sorted(saved_epochs(folder)), read_run_record(directory)
    # CoOp's own runs have no record, and a best model only with FINAL_MODEL best_val.
    has_best = record.history[0]["val_accuracy"] is not None if record and record.history else path.is_file()
    if epoch is None and epochs and not has_best:
        return folder / f"model.pth.tar-{epochs[-1]}"
    if path.is_file():
        return path
    fix = "Name the folder of a trained run (--model-dir)."
    if epochs:
        fix = f"There are checkpoints of these epochs: {', '.join(map(str, epochs))} (--load-epoch)."
    raise UserError(f"Checkpoint not found: {path}. {fix}")


def saved_epochs(folder: Path) -> set[int]:
    found = (re.fullmatch(r"model\.pth\.tar-(\d+)", path.name) for path in folder.glob("model.pth.tar-*"))
    return {int(match[1]) for match in found if match}


def read_model(path: Path, allow_neg_inf: Container[str] = ()) -> dict[str, Any]:
    """Read a checkpoint file with finite numbers; tensors named in `allow_neg_inf` may hold -inf."""
    checkpoint = load_checkpoint(str(path))
    if isinstance(checkpoint, dict):
        saved = checkpoint.get("state_dict", checkpoint)  # published files may hold the state_dict alone
        state = {**(saved if isinstance(saved, dict) else {}), "optimizer": checkpoint.get("optimizer")}
        require_finite(state, str(path), "Use a checkpoint of another epoch or run.", allow_neg_inf)
    return checkpoint


def read_prompts(path: Path, allow_neg_inf: Container[str] = ()) -> tuple[dict[str, Tensor], int | None]:
    """The tensors of a prompt learner's checkpoint or bare state_dict, and the checkpoint's epoch."""
    checkpoint = read_model(path, allow_neg_inf)
    saved = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(saved, dict) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise UserError(f"{path} is no checkpoint of a prompt learner: it holds no state_dict of tensors.")
    # DataParallel prepends a name to all others.
    return {str(key).removeprefix("module."): value for key, value in saved.items()}, checkpoint.get("epoch")


# ---- resume ----


def load_newest(
    directory: str | PathLike,
    networks: list[str],
    history: list[dict[str, Any]],
    selects_by: str | None,
    allow_neg_inf: Container[str] = (),
) -> tuple[int, dict[str, dict[str, Any]]]:
    """Read the newest intact checkpoints of a run: number of completed epochs, checkpoint of each network.

    It is (0, {}) if there are none. The model of the best epoch, by metric `selects_by`, must be intact, too.
    """
    saved = [saved_epochs(Path(directory) / name) for name in networks]
    epochs = sorted(set.intersection(*saved), reverse=True) if saved else []
    for epoch in epochs:
        if epoch > len(history):
            print(f"The record of {directory} has no epoch {epoch}; using an earlier checkpoint.")
            continue
        try:
            files = {name: Path(directory) / name / f"model.pth.tar-{epoch}" for name in networks}
            checkpoints = {name: read_model(path, allow_neg_inf) for name, path in files.items()}
            if selects_by:
                _check_best(Path(directory) / networks[0] / BEST, history[:epoch], selects_by, allow_neg_inf)
        except Exception as error:  # a damaged file ends in any exception of any Dassl
            print(f"The checkpoints of epoch {epoch} cannot be used, trying earlier ones: {error}")
            continue
        print(f"Resuming after epoch {epoch}, from the checkpoints in {directory}")
        return epoch, checkpoints
    print(f"No usable checkpoint in {directory}: training from scratch" if epochs else "Training from scratch")
    return 0, {}


def best_epoch(history: list[dict[str, Any]], metric: str) -> tuple[float, int | None]:
    """(value, epoch from 1) of the first epoch that is best by a metric; (-inf, None) if none is selectable."""
    values = {
        epoch: value
        for epoch, entry in enumerate(history, start=1)
        if (value := entry.get(f"val_{metric}")) is not None and entry["counts"]
    }
    if not values:
        return -float("inf"), None
    best = max(values, key=values.__getitem__)  # the first of equal ones
    return values[best], best


def _check_best(path, history, metric, allow_neg_inf):
    """Raise ValueError unless the best model of these epochs is there, or of a later one, which is trained again."""
    best = best_epoch(history, metric)[1]
    if best is not None:
        found = read_model(path, allow_neg_inf)["epoch"]
        if found != best and found <= len(history):
            raise ValueError(f"{path} is of epoch {found}, not of the best epoch {best}")


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
        saved: the file's tensors.
        own: the network's tensors, by their own names.
        trained_for: class names of the training run, if known.

    Raises:
        UserError: they do not fit; the message names the settings that do.
    """
    if holds_whole_model(saved):
        check_clip(path, saved, trainer.backbone)
    ignored = (*TOKEN_BUFFERS, *trainer.UNUSED_TENSORS)
    saved = {key: value.float() for key, value in trainer.learned_in(saved).items() if not key.startswith(ignored)}
    sizes = trainer.sizes_in(saved)
    saved = {key: value for key, value in own.items() if key.startswith(trainer.OPTIONAL_TENSORS)} | saved
    classes = list(trainer.dm.dataset.classnames)
    if trained_for is not None and trained_for != classes and sizes.get("CSC"):
        raise UserError(
            f"{path} knows only the classes of its training, {', '.join(trained_for)}, not {', '.join(classes)}. Train "
            "a model on these, or use a method with one context for all classes (TRAINER.COOP.CSC False)."
        )
    theirs, ours = ({key: tuple(value.shape) for key, value in state.items()} for state in (saved, own))
    if theirs != ours:
        settings = {key: value for key, value in sizes.items() if trainer.settings.get(key, value) != value}
        if "N_CTX" not in settings:  # the words of this run have as many tokens as the file has vectors
            settings.pop("CTX_INIT", None)
        fix = " ".join(f"TRAINER.{trainer.NODE}.{key} {format_for_shell(value)}" for key, value in settings.items())
        fix = f"Set {fix}, or name" if fix else "Name"
        raise UserError(
            f"{path} does not fit this run: it holds {_listed(theirs.items() - ours.items())} where "
            f"{trainer.cfg.TRAINER.NAME} has {_listed(ours.items() - theirs.items())}. "
            f"{fix} its method, backbone, classes and settings (--trainer, --backbone)."
        )
    return saved


def _listed(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    return join_truncated(f"{key} {shape}" for key, shape in sorted(shapes))


def check_clip(path: Path, saved: dict[str, Tensor], backbone: Backbone) -> None:
    """Raise UserError if the CLIP in a published file of a whole model has other weights than the backbone."""
    own = backbone.model.state_dict()
    for key, value in saved.items():
        name = key.removeprefix("text_encoder.")
        if name.startswith("image_encoder."):
            name = "visual." + name.removeprefix("image_encoder.")
        if name not in own or name.startswith("prompt_learner."):
            continue
        if not _is_equal_but_rounding(value.cpu(), own[name].cpu()):
            raise UserError(
                f"{path} was trained with another CLIP than {backbone.name}: {key} differs. Name the backbone that it "
                "was trained with (--backbone)."
            )


def _is_equal_but_rounding(theirs: Tensor, ours: Tensor) -> bool:
    if theirs.shape != ours.shape:
        return False
    has_half = not {torch.float16, torch.bfloat16}.isdisjoint((theirs.dtype, ours.dtype))
    theirs, ours = theirs.float(), ours.float()
    if not has_half:
        return torch.allclose(theirs, ours, rtol=1e-5)
    # PromptSRC's files hold CLIP as its weighted sum over up to 50 epochs in half precision: single numbers end up
    # far from their start, but not the norm of all of them.
    return bool((theirs - ours).norm() <= 4e-3 * ours.norm() + 1e-5 * ours.numel() ** 0.5)
