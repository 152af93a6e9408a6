"""One learned context for all images."""

import torch
from dassl.utils import load_checkpoint
from torch import nn

from common.errors import UserError
from common.run.identity import read_identity
from trainers.base.checkpoints import find_checkpoint
from trainers.base.trainer import FrozenClipTrainer

LEARNER = "prompt_learner"
# CoOp saves the words around the context as well. They follow from the class names, so they are not read.
TOKEN_BUFFERS = ("token_prefix", "token_suffix")


class PromptLearner(nn.Module):
    """The learned context: `ctx` (n_ctx, D), or (C, n_ctx, D) when class-specific."""

    def __init__(self, ctx):
        super().__init__()
        self.ctx = nn.Parameter(ctx)


class ContextTrainer(FrozenClipTrainer):
    """Learns a context by cross-entropy on the source domains' images, as CoOp does (Zhou et al., IJCV 2022)."""

    def build_prompt_model(self):
        settings = self.settings
        self.encoder = self.build_encoder(
            n_ctx=settings.N_CTX,
            ctx_init=settings.CTX_INIT,
            class_token_position=settings.CLASS_TOKEN_POSITION,
            class_specific=settings.CSC,
        )
        self.model = self.register_network(LEARNER, PromptLearner(self.encoder.initial_context()))

    def text_features(self, features, indices):
        return self.encoder(self.model.ctx)

    def load_model(self, directory, epoch=None):
        """Load the context of a run, ours or CoOp's."""
        load_prompt_learner(self, directory, epoch)

    @torch.no_grad()
    def test(self, split=None):
        # The same for every batch: encoded once, for as long as the evaluation takes.
        with self.autocast():
            text_features = self.text_features(None, None)
        self.text_features = lambda features, indices: text_features
        try:
            return super().test(split)
        finally:
            del self.text_features


def load_prompt_learner(trainer, directory, epoch=None):
    """Load a run's `prompt_learner` into `trainer.model`; the run may be CoOp's, and have had other class names.

    Args:
        trainer: has a `model` with `ctx`.
        directory: the run's folder.
        epoch: which checkpoint; None: the best one, or the last where there is no best.

    Raises:
        UserError: it is missing or damaged, or does not fit the trainer.
    """
    path = find_checkpoint(directory, LEARNER, epoch)
    checkpoint = load_checkpoint(str(path))
    saved = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(saved, dict) or not all(isinstance(value, torch.Tensor) for value in saved.values()):
        raise UserError(f"{path} is no checkpoint of a prompt learner: it holds no state_dict of tensors.")
    saved = {key: value for key, value in saved.items() if key not in TOKEN_BUFFERS}
    own = trainer.model.state_dict()
    if saved.keys() != own.keys():
        raise UserError(
            f"{path} is of another method (--trainer): it holds {', '.join(sorted(saved)) or 'nothing'}; "
            f"{trainer.cfg.TRAINER.NAME} has {', '.join(sorted(own))}."
        )
    _check_context(path, saved["ctx"].shape, own["ctx"].shape, trainer)
    if saved["ctx"].dim() == 3:
        _check_classes(path, read_identity(directory).get("class names"), trainer.dm.dataset.classnames)
    strange = [f"{key} {tuple(saved[key].shape)}" for key in own if saved[key].shape != own[key].shape]
    if strange:
        raise UserError(
            f"{path} does not fit this backbone, {trainer.cfg.MODEL.BACKBONE.NAME}: it holds {', '.join(strange)}. "
            "Name the one that it was trained with (--backbone)."
        )
    trainer.model.load_state_dict(saved)
    print(f"Prompt learner loaded from {path} (epoch {checkpoint.get('epoch')})")


def _check_context(path, saved, own, trainer):
    """Raise UserError, with the setting that mends it, unless a saved context has the shape of the trainer's."""
    node = f"TRAINER.{trainer.SETTINGS}"
    if len(saved) != len(own):
        if len(saved) not in (2, 3):
            raise UserError(f"{path} holds a context of shape {tuple(saved)}; accepted: (N_CTX, width).")
        csc = len(saved) == 3
        kind = "class-specific contexts" if csc else "one context for all classes"
        mend = f"Set {node}.CSC {csc}" if "CSC" in trainer.settings else "Use --trainer CoOp"
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
