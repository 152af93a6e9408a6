"""KgCoOp (Yao et al., Visual-Language Prompt Tuning with Knowledge-guided Context Optimization, CVPR 2023)."""

import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor

from trainers.base.context_trainer import ContextTrainer
from trainers.config import ClassTokenPosition, NCtx, NonNegativeFloat, Precision, Section
from trainers.modules.templates import TEMPLATE


class KgCoOpKeys(Section, node="TRAINER.KGCOOP"):
    N_CTX: NCtx = 4
    CSC: bool = False
    CTX_INIT: str = "a photo of a"
    PREC: Precision = "fp16"
    CLASS_TOKEN_POSITION: ClassTokenPosition = "end"
    W: NonNegativeFloat = 8.0  # weight of the distance to the fixed prompts' text features


@TRAINER_REGISTRY.register()
class KgCoOp(ContextTrainer):
    """CoOp's context, regularised towards the text features of "a photo of a <class>."."""

    NODE = "KGCOOP"
    UNUSED_TENSORS = ("bias_vectors", "meta_net.linear1.weight", "meta_net.linear1.bias")

    def build_prompt_model(self) -> None:
        super().build_prompt_model()
        self.fixed_features = self.encode_template(TEMPLATE)

    def loss(self, logits: Tensor, labels: Tensor, text_features: Tensor) -> Tensor:
        """Cross-entropy + W times the mean distance 1 - cos of the classes' features (paper, Eq. 4 and 5)."""
        distance = 1 - F.cosine_similarity(text_features, self.fixed_features, dim=-1).mean()
        return super().loss(logits, labels, text_features) + self.settings.W * distance
