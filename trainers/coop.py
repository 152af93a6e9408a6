"""CoOp: one learned context for all images (Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022)."""

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from torch import nn

from trainers.prompt_trainer import PromptTrainer


class PromptLearner(nn.Module):
    """The learned context: `ctx` (n_ctx, D), or (C, n_ctx, D) when class-specific."""

    def __init__(self, ctx):
        super().__init__()
        self.ctx = nn.Parameter(ctx)


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """Learns the context by cross-entropy on the source domains' images."""

    SETTINGS = "COOP"

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

    def text_features(self, features, indices):
        return self.encoder(self.model.ctx)

    def forward_backward(self, batch):
        features, labels = self.batch_features(batch), batch["label"].to(self.device)
        with self.autocast():
            text_features = self.encoder(self.model.ctx)
        logits = self.logits(features, text_features)
        loss = F.cross_entropy(logits, labels)
        self.model_backward_and_update(loss)
        return {"loss": loss.item(), "acc": compute_accuracy(logits, labels)[0].item()}

    @torch.no_grad()
    def test(self, split=None):
        # One context for all images: their text features are the same in every batch.
        encode, once = self.text_features, None

        def encode_once(features, indices):
            nonlocal once
            if once is None:
                once = encode(features, indices)
            return once

        self.text_features = encode_once
        try:
            return super().test(split)
        finally:
            del self.text_features
