"""Learn one context for all images: CoOp, KgCoOp and stage I of SPG.

It is not in trainers/coop.py, since a CoOp checkout has a file of that name.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from trainers.base.trainer import PromptTrainer


class PromptLearner(nn.Module):
    """The learned context: `ctx` (n_ctx, D), or (C, n_ctx, D) if class-specific."""

    def __init__(self, ctx: Tensor) -> None:
        super().__init__()
        self.ctx = nn.Parameter(ctx)


class ContextTrainer(PromptTrainer):
    """Learns a context by cross-entropy, as CoOp does (Zhou et al., IJCV 2022)."""

    TEST_KEYS: tuple[str, ...] = ("CLASS_TOKEN_POSITION",)
    TAKES_INIT_WEIGHTS = True
    SHARES_TEXT = True

    def build_prompt_model(self) -> None:
        settings = self.settings
        self.encoder = self.build_encoder(
            n_ctx=settings.N_CTX,
            ctx_init=settings.CTX_INIT,
            class_token_position=settings.CLASS_TOKEN_POSITION,
            class_specific=settings.CSC,
        )
        self.model = self.register_network(self.NETWORK, PromptLearner(self.encoder.initial_context()))

    def text_features(self, features: Tensor | None, indices: Sequence[int] | None) -> Tensor:
        return self.encoder(self.model.ctx)
