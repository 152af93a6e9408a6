"""DPL (Zhang et al., Domain Prompt Learning for Efficiently Adapting CLIP to Unseen Domains, 2021).

A prediction depends on the other images of its batch: the context is a mean over the batch. predict.py uses the mean
over the source domains' training images instead, which is in the checkpoint.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from common.errors import UserError
from trainers.base.evaluation import Classifier
from trainers.base.trainer import PromptTrainer
from trainers.config import PositiveInt, Precision, Section

SOURCE = "source_context"
WIDTH, DROPOUT = 512, 0.1
BIAS = 0.01  # initial, with XAVIER


class DPLKeys(Section, node="TRAINER.DPL"):
    N_CTX: PositiveInt = 4
    XAVIER: bool = False  # initial weights: Xavier's, as the original, or PyTorch's, as SPG's authors
    BY_DOMAIN: bool = False  # True: one context for the images of each domain in training, as in the original
    PREC: Precision = "fp16"


class ContextMLP(nn.Module):
    """Image features (B, E), not normalised -> contexts (B, n_ctx, D)."""

    source_context: Tensor  # (n_ctx, D), mean over the source domains' training images; NaN before the first epoch

    def __init__(self, feat_dim: int, shape: tuple[int, int], xavier: bool) -> None:
        super().__init__()
        self.shape = shape
        self.input = nn.Linear(feat_dim, WIDTH)
        self.hiddens = nn.ModuleList([nn.Linear(WIDTH, WIDTH)])
        self.output = nn.Linear(WIDTH, shape[0] * shape[1])
        self.dropout = nn.Dropout(DROPOUT)
        self.register_buffer(SOURCE, torch.full(shape, float("nan")))
        for layer in (self.input, *self.hiddens, self.output) if xavier else ():
            nn.init.xavier_uniform_(layer.weight)
            nn.init.constant_(layer.bias, BIAS)

    def forward(self, features: Tensor) -> Tensor:
        for layer in (self.input, *self.hiddens):
            features = F.relu(self.dropout(layer(features)))
        return self.output(features).unflatten(-1, self.shape)


@TRAINER_REGISTRY.register()
class DPL(PromptTrainer):
    """A context for each batch: the mean of an MLP's outputs for its images; cross-entropy."""

    NODE = "DPL"
    LEAST_BATCH = dict.fromkeys(("TRAIN_X", "TEST"), (2, "its context is a mean over the images of a batch"))
    NETWORK = "mlp_model"
    OPTIONAL_TENSORS = (SOURCE,)

    @property
    def normalises_features(self) -> bool:
        return False

    def build_prompt_model(self) -> None:
        self.encoder = self.build_encoder(n_ctx=self.settings.N_CTX)
        shape = self.encoder.n_ctx, self.encoder.ctx_dim
        mlp = ContextMLP(self.backbone.feature_size, shape, self.settings.XAVIER)
        self.model = self.register_network(self.NETWORK, mlp)

    def text_features(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        return self.encoder(self.model(features).mean(dim=0))

    def training_text_features(self, features: Tensor, batch: dict[str, Any]) -> Tensor:
        if not self.settings.BY_DOMAIN:
            return super().training_text_features(features, batch)
        domains, of_image = batch["domain"].to(self.device).unique(return_inverse=True)
        contexts = self.model(features)
        means = torch.stack([contexts[of_image == index].mean(dim=0) for index in range(len(domains))])
        return self.encoder(means)[of_image]

    def logits(self, features: Tensor, text_features: Tensor) -> Tensor:
        return super().logits(F.normalize(features, dim=-1), text_features)

    def classifier(self) -> Classifier:
        """By batches of a split, or without a data set by the context of the source domains."""
        if self.classnames is None:
            return self.predict
        if not torch.isfinite(self.model.source_context).all():
            raise UserError(
                "This checkpoint of DPL has no mean context of the source domains, which predict.py needs. Test it by "
                "train.py --eval-only, or train the model here."
            )
        with torch.no_grad(), self.backbone.autocast():
            text_features = self.encoder(self.model.source_context)
        return lambda features, indices: self.logits(features, text_features)

    def run_epoch(self) -> None:
        super().run_epoch()
        self.set_model_mode("eval")
        features = torch.tensor(self.image_features.of_split(self.source_loader, "train"))
        with torch.no_grad():
            parts = [self.model(part.to(self.device)).double().sum(dim=0) for part in features.split(WIDTH)]
            self.model.source_context.copy_(torch.stack(parts).sum(dim=0) / len(features))

    @staticmethod
    def sizes_in(learned: dict[str, Tensor]) -> dict[str, Any]:
        return {"N_CTX": len(learned[SOURCE])} if SOURCE in learned else {}
