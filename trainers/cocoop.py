"""CoCoOp (Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022)."""

from collections import OrderedDict
from collections.abc import Sequence

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from trainers.base.trainer import PromptTrainer
from trainers.config import NCtx, Precision, Section


class MetaNet(nn.Sequential):
    """Image feature (E) -> shift of the context (D) (Zhou et al., CVPR 2022, Sec. 3.3), with the published keys."""

    def __init__(self, feat_dim: int, ctx_dim: int) -> None:
        hidden = max(1, feat_dim // 16)
        super().__init__(
            OrderedDict(
                linear1=nn.Linear(feat_dim, hidden), relu=nn.ReLU(inplace=True), linear2=nn.Linear(hidden, ctx_dim)
            )
        )


class CoCoOpKeys(Section, node="TRAINER.COCOOP"):
    N_CTX: NCtx = 16
    CTX_INIT: str = ""
    PREC: Precision = "fp16"


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
class CoCoOp(PromptTrainer):
    """A context for each image, learned end to end by cross-entropy."""

    NODE = "COCOOP"
    TAKES_INIT_WEIGHTS = True

    def build_prompt_model(self) -> None:
        self.encoder = self.build_encoder(n_ctx=self.settings.N_CTX, ctx_init=self.settings.CTX_INIT)
        learner = ConditionalPromptLearner(self.encoder.initial_context(), self.backbone.feature_size)
        self.model = self.register_network(self.NETWORK, learner)

    def text_features(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        return self.encoder(self.model(features))
