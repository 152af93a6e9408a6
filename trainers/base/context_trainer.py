"""One learned context for all images."""

from collections.abc import Sequence
from os import PathLike

from torch import Tensor, nn

from trainers.base.checkpoints import LEARNER, load_prompt_learner
from trainers.base.evaluation import Classifier
from trainers.base.trainer import FrozenClipTrainer


class PromptLearner(nn.Module):
    """The learned context: `ctx` (n_ctx, D), or (C, n_ctx, D) when class-specific."""

    def __init__(self, ctx: Tensor) -> None:
        super().__init__()
        self.ctx = nn.Parameter(ctx)


class ContextTrainer(FrozenClipTrainer):
    """Learns a context by cross-entropy on the source domains' images, as CoOp does (Zhou et al., IJCV 2022)."""

    USED_BY = ("CLASS_TOKEN_POSITION",)

    def build_prompt_model(self) -> None:
        settings = self.settings
        self.encoder = self.build_encoder(
            n_ctx=settings.N_CTX,
            ctx_init=settings.CTX_INIT,
            class_token_position=settings.CLASS_TOKEN_POSITION,
            class_specific=settings.CSC,
        )
        self.model = self.register_network(LEARNER, PromptLearner(self.encoder.initial_context()))
        self.start_from_given()

    def text_features(self, features: Tensor | None, indices: Sequence[int] | None) -> Tensor:
        return self.encoder(self.model.ctx)

    def classifier(self) -> Classifier:
        return self.by_one_text()

    def load_model(self, directory: str | PathLike, epoch: int | None = None) -> None:
        """Load the context of a run, ours or CoOp's."""
        load_prompt_learner(self, directory, epoch)
