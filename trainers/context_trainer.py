"""One learned context for all images."""

import torch
import torch.nn.functional as F
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from torch import nn

from trainers.prompt_trainer import PromptTrainer


class PromptLearner(nn.Module):
    """The learned context: `ctx` (n_ctx, D), or (C, n_ctx, D) when class-specific."""

    def __init__(self, ctx):
        super().__init__()
        self.ctx = nn.Parameter(ctx)


class ContextTrainer(PromptTrainer):
    """Learns a context by cross-entropy on the source domains' images, as CoOp does (Zhou et al., IJCV 2022)."""

    def build_prompt_model(self):
        settings = self.settings
        self.encoder = self.build_encoder(
            n_ctx=settings.N_CTX,
            ctx_init=settings.CTX_INIT,
            class_token_position=settings.CLASS_TOKEN_POSITION,
            class_specific=settings.CSC,
        )
        self.model = PromptLearner(self.encoder.initial_context()).to(self.device)
        optimizer = build_optimizer(self.model, self.cfg.OPTIM)
        self.register_model("prompt_learner", self.model, optimizer, build_lr_scheduler(optimizer, self.cfg.OPTIM))

    def forward_backward(self, batch):
        features, labels = self.batch_features(batch), batch["label"].to(self.device)
        with self.autocast():
            text_features = self.encoder(self.model.ctx)
        logits = self.logits(features, text_features)
        loss = F.cross_entropy(logits, labels)
        self.model_backward_and_update(loss)
        return {"loss": loss.item(), "acc": compute_accuracy(logits, labels)[0].item()}

    def text_features(self, features, indices):
        return self.encoder(self.model.ctx)

    @torch.no_grad()
    def test(self, split=None):
        # The same for every batch: encoded once, for as long as the evaluation takes.
        text_features = self.text_features(None, None)
        self.text_features = lambda features, indices: text_features
        try:
            return super().test(split)
        finally:
            del self.text_features
