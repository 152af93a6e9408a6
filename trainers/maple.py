"""MaPLe (Khattak et al., Multi-modal Prompt Learning, CVPR 2023)."""

import copy
from collections.abc import Sequence
from typing import Any

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from trainers.base.trainer import PromptTrainer
from trainers.config import FirstNCtx, NonNegativeInt, Precision, Section
from trainers.modules.prompted_vit import PromptedViT


class MaPLeKeys(Section, node="TRAINER.MAPLE"):
    N_CTX: FirstNCtx = 2  # number of vectors, from the first tokens of CTX_INIT
    CTX_INIT: str = "a photo of a"
    PREC: Precision = "fp16"
    PROMPT_DEPTH: NonNegativeInt = 9  # layers of both towers with prompts; 0: 12, or all layers of a smaller tower


class CoupledPrompts(nn.Module):
    """Prompts of the text tower, ctx (n, D) and deep (depth - 1, n, D), and linear maps of them to the image tower."""

    def __init__(self, ctx: Tensor, deep: Tensor, width: int) -> None:
        super().__init__()
        self.ctx = nn.Parameter(ctx)
        self.proj = nn.Linear(ctx.shape[-1], width)
        self.compound_prompts_text = nn.ParameterList([nn.Parameter(vectors.clone()) for vectors in deep])
        # All start equal, as in MaPLe's code.
        first = nn.Linear(ctx.shape[-1], width)
        self.compound_prompt_projections = nn.ModuleList([copy.deepcopy(first) for _ in deep])

    def visual(self) -> tuple[Tensor, list[Tensor]]:
        """Tokens (n, W) of the image tower, and tokens of its layers 2 to depth."""
        maps, texts = self.compound_prompt_projections, self.compound_prompts_text
        return self.proj(self.ctx), [project(vectors) for project, vectors in zip(maps, texts, strict=True)]


@TRAINER_REGISTRY.register()
class MaPLe(PromptTrainer):
    """Prompts in both towers: linear maps of the text tower's prompts are the image tower's; cross-entropy."""

    NODE = "MAPLE"
    TAKES_INIT_WEIGHTS = True
    TEST_KEYS = ("CTX_INIT",)
    SHARES_TEXT = True
    NETWORK = "MultiModalPromptLearner"
    PUBLISHED_NAMES = {}

    def build_prompt_model(self) -> None:
        settings = self.settings
        words = {"n_learned": settings.N_CTX} if settings.CTX_INIT else {}
        self.encoder = self.build_encoder(n_ctx=settings.N_CTX, ctx_init=settings.CTX_INIT, **words)
        self.tower = PromptedViT(self.backbone.visual)
        depth = self.prompt_depth("PROMPT_DEPTH", 12, text=self.encoder.n_layers, image=self.tower.n_layers)
        prompts = CoupledPrompts(self.encoder.initial_context(), self.encoder.initial_deep(depth), self.tower.width)
        self.model = self.register_network(self.NETWORK, prompts)

    def image_tower(self, images: Tensor) -> Tensor:
        return self.tower(images, *self.model.visual())

    def text_features(self, features: Tensor | None, indices: Sequence[int] | None) -> Tensor:
        return self.encoder(self.model.ctx, list(self.model.compound_prompts_text))

    @staticmethod
    def sizes_in(learned: dict[str, Tensor]) -> dict[str, Any]:
        if not {"ctx", "proj.weight"} <= learned.keys():
            return {}
        depth = 1 + sum(key.startswith("compound_prompts_text.") for key in learned)
        return {"N_CTX": len(learned["ctx"]), "PROMPT_DEPTH": depth}
