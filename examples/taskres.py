"""TaskRes (Yu et al., Task Residual for Tuning Vision-Language Models, CVPR 2023): text features that learn a shift."""

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import nn

from trainers.base.trainer import PromptTrainer
from trainers.config import PositiveFloat, Precision, Section


class TaskResKeys(Section, node="TRAINER.TASKRES"):
    PREC: Precision = "fp16"
    ALPHA: PositiveFloat = 0.5  # scale of the shift


class Residual(nn.Module):
    """Fixed text features (C, E) and a learned shift of the same shape."""

    def __init__(self, fixed: torch.Tensor, alpha: float) -> None:
        super().__init__()
        self.register_buffer("fixed", fixed, persistent=False)
        self.alpha, self.shift = alpha, nn.Parameter(torch.zeros_like(fixed))

    def forward(self) -> torch.Tensor:
        """L2-normalised text features (C, E)."""
        return F.normalize(self.fixed + self.alpha * self.shift, dim=-1)


@TRAINER_REGISTRY.register()
class TaskRes(PromptTrainer):
    """Classifies by zero-shot text features plus a residual that is learned by cross-entropy."""

    NODE = "TASKRES"

    def build_prompt_model(self):
        encoder = self.build_encoder(ctx_init="a photo of a")
        with torch.no_grad():
            fixed = encoder(encoder.initial_context()).float()
        self.model = self.register_network("residual", Residual(fixed, self.settings.ALPHA))

    def text_features(self, features, indices):
        return self.model()
