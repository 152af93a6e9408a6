"""VPT (Jia et al., Visual Prompt Tuning, ECCV 2022), with CLIP's fixed prompts as its classifier."""

from collections.abc import Sequence
from typing import Any

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from trainers.base.trainer import PromptTrainer
from trainers.config import NonNegativeInt, PositiveInt, Precision, Section, Words
from trainers.modules.prompted_vit import PromptedViT
from trainers.modules.tensor_files import VISION


class VPTKeys(Section, node="TRAINER.VPT"):
    N_CTX_VISION: PositiveInt = 10  # number of tokens in the image tower
    CTX_INIT: Words = "a photo of a"  # words of the fixed prompts
    PREC: Precision = "fp16"
    PROMPT_DEPTH_VISION: NonNegativeInt = 1  # layers with tokens; 1: shallow; 0: 12, or all layers of a smaller tower


class VisualPrompts(nn.Module):
    """Learned tokens `vctx` (n, W), and `deep_vctx` (depth - 1, n, W), which take their places in later layers."""

    deep_vctx: Tensor | None

    def __init__(self, tokens: Tensor, deep: Tensor) -> None:
        super().__init__()
        self.vctx = nn.Parameter(tokens)
        self.register_parameter("deep_vctx", nn.Parameter(deep) if len(deep) else None)


@TRAINER_REGISTRY.register()
class VPT(PromptTrainer):
    """Learns tokens of the image tower, shallow or deep, by cross-entropy with fixed text features."""

    NODE = "VPT"
    TEST_KEYS = ("CTX_INIT",)
    PUBLISHED_NAMES = VISION

    def build_prompt_model(self) -> None:
        settings = self.settings
        self.tower = PromptedViT(self.backbone.visual)
        n, depth = settings.N_CTX_VISION, self.prompt_depth("PROMPT_DEPTH_VISION", 12, image=self.tower.n_layers)
        prompts = VisualPrompts(self.tower.initial_tokens(n), self.tower.initial_deep(depth, n))
        self.model = self.register_network(self.NETWORK, prompts)
        self.fixed_features = self.encode_template(f"{settings.CTX_INIT} {{}}.")

    def image_tower(self, images: Tensor) -> Tensor:
        deep = self.model.deep_vctx
        return self.tower(images, self.model.vctx, () if deep is None else deep)

    def text_features(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        return self.fixed_features

    @staticmethod
    def sizes_in(learned: dict[str, Tensor]) -> dict[str, Any]:
        if "vctx" not in learned:
            return {}
        return {"N_CTX_VISION": len(learned["vctx"]), "PROMPT_DEPTH_VISION": 1 + len(learned.get("deep_vctx", ()))}
