"""CoCoOp (Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022)."""

from collections.abc import Sequence
from os import PathLike

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from trainers.base.checkpoints import LEARNER, load_prompt_learner
from trainers.base.trainer import FrozenClipTrainer
from trainers.modules.meta_net import MetaNet


class ConditionalPromptLearner(nn.Module):
    """A learned context (n_ctx, D) and a meta-net that shifts all of its vectors alike for each image."""

    def __init__(self, ctx: Tensor, feat_dim: int) -> None:
        super().__init__()
        self.ctx = nn.Parameter(ctx)
        self.meta_net = MetaNet(feat_dim, ctx.shape[-1])

    def forward(self, features: Tensor) -> Tensor:
        """(B, E) image features -> (B, n_ctx, D) contexts."""
        return self.ctx + self.meta_net(features).unsqueeze(1)


@TRAINER_REGISTRY.register()
class CoCoOp(FrozenClipTrainer):
    """A context for each image, learned end to end by cross-entropy."""

    SETTINGS = "COCOOP"

    def build_prompt_model(self) -> None:
        self.encoder = self.build_encoder(n_ctx=self.settings.N_CTX, ctx_init=self.settings.CTX_INIT)
        learner = ConditionalPromptLearner(self.encoder.initial_context(), self.backbone.feature_size)
        self.model = self.register_network(LEARNER, learner)
        self.start_from_given()

    def text_features(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        return self.encoder(self.model(features))

    def load_model(self, directory: str | PathLike, epoch: int | None = None) -> None:
        """Load the context and meta-net of a run, ours or CoCoOp's."""
        load_prompt_learner(self, directory, epoch)
