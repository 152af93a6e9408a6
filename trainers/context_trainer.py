"""One learned context for all images."""

import torch
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
        self.model = self.register_network("prompt_learner", PromptLearner(self.encoder.initial_context()))

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
