"""VPT (Jia et al., Visual Prompt Tuning, ECCV 2022), with CLIP's fixed prompts as its classifier."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from trainers.base.checkpoints import LEARNER, load_prompt_learner
from trainers.base.prompt_depth import prompt_depth
from trainers.base.trainer import FrozenClipTrainer
from trainers.modules.prompted_vit import PromptedViT


class VisualPrompts(nn.Module):
    """Learned tokens `vctx` (n, W), and `deep_vctx` (depth - 1, n, W), which take their places in later layers."""

    deep_vctx: Tensor | None

    def __init__(self, tokens: Tensor, deep: Tensor) -> None:
        super().__init__()
        self.vctx = nn.Parameter(tokens)
        self.register_parameter("deep_vctx", nn.Parameter(deep) if len(deep) else None)


@TRAINER_REGISTRY.register()
class VPT(FrozenClipTrainer):
    """Learns tokens of the image tower, shallow or deep, by cross-entropy with fixed text features."""

    SETTINGS = "VPT"
    USED_BY = ("CTX_INIT",)
    IMAGE_TOWER_LEARNS = True

    def build_prompt_model(self) -> None:
        settings = self.settings
        self.tower = PromptedViT(self.backbone.visual)
        n, depth = settings.N_CTX_VISION, prompt_depth(self, "PROMPT_DEPTH_VISION", image=self.tower.n_layers)
        prompts = VisualPrompts(self.tower.initial_tokens(n), self.tower.initial_deep(depth, n))
        self.model = self.register_network(LEARNER, prompts)
        self.fixed_features = self.encode_template(f"{settings.CTX_INIT} {{}}.")

    def image_tower(self, images: Tensor) -> Tensor:
        deep = self.model.deep_vctx
        return self.tower(images, self.model.vctx, () if deep is None else deep)

    def text_features(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        return self.fixed_features

    def load_model(self, directory: str | PathLike, epoch: int | None = None) -> None:
        """Load the tokens of a run, ours or one of VPT in MaPLe's repository."""
        load_prompt_learner(self, directory, epoch)

    @staticmethod
    def learned_in(whole: dict[str, Tensor]) -> dict[str, Tensor]:
        return visual_prompts(whole)

    @staticmethod
    def sizes_in(learned: dict[str, Tensor]) -> dict[str, Any]:
        if "vctx" not in learned:
            return {}
        return {"N_CTX_VISION": len(learned["vctx"]), "PROMPT_DEPTH_VISION": 1 + len(learned.get("deep_vctx", ()))}


def visual_prompts(whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """`vctx` and `deep_vctx` in a whole model's state_dict of MaPLe's or PromptSRC's repository."""
    found = {"vctx": whole["image_encoder.VPT"]} if "image_encoder.VPT" in whole else {}
    return found | deep_prompts(whole, "image_encoder", "deep_vctx")


def deep_prompts(whole: dict[str, Tensor], tower: str, name: str) -> dict[str, Tensor]:
    """The prompts of layers 2, 3, ... that such a state_dict holds of a tower, as one tensor by a name; {}: none."""
    keys = [f"{tower}.transformer.resblocks.{i}.VPT_shallow" for i in range(1, 1 + len(whole))]
    deep = [whole[key] for key in keys if key in whole]
    return {name: torch.stack(deep)} if deep else {}
