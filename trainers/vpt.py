"""VPT (Jia et al., Visual Prompt Tuning, ECCV 2022), with CLIP's fixed prompts as its classifier."""

from collections.abc import Sequence
from os import PathLike

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from common.errors import UserError
from trainers.base.checkpoints import LEARNER, load_prompt_learner
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
    IMAGE_TOWER_LEARNS = True

    def build_prompt_model(self) -> None:
        settings = self.settings
        n, depth = settings.N_CTX_VISION, settings.PROMPT_DEPTH_VISION
        self.tower = PromptedViT(self.backbone.visual)
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
        load_prompt_learner(self, directory, epoch, learned=learned_tokens)


def learned_tokens(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tokens in a whole model's state_dict of MaPLe's repository, by our names.

    Raises:
        UserError: there are none.
    """
    if "image_encoder.VPT" not in saved:
        raise UserError("The checkpoint holds a whole model without image_encoder.VPT, so it is none of VPT.")
    found = {"vctx": saved["image_encoder.VPT"]}
    if deep := deep_prompts(saved, "image_encoder"):
        found["deep_vctx"] = torch.stack(deep)
    return found


def deep_prompts(saved: dict[str, Tensor], tower: str) -> list[Tensor]:
    """The prompts of layers 2, 3, ... that a whole model's state_dict holds of a tower."""
    keys = [f"{tower}.transformer.resblocks.{i}.VPT_shallow" for i in range(1, 1 + len(saved))]
    return [saved[key] for key in keys if key in saved]
