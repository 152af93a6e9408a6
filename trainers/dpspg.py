"""DPSPG (Zhang et al., ICME 2026): stage II, and both stages; prompts of both signs from image features, no noise."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from common.errors import UserError
from common.interruption import check_interruption
from trainers.base.checkpoints import load_prompt_learner
from trainers.dpspg_coop import SIGNS, DPSPG_CoOp
from trainers.spg_labels import LabelTrainer, check_targets, read_labels
from trainers.two_stages import TwoStages

NETWORKS = {"pos": "posencoder", "neg": "negencoder"}


class FeatureTransformer(nn.Module):
    """A transformer on a sequence of one token, the L2-normalised image feature (B, E) -> contexts (B, n_ctx, D)."""

    def __init__(self, feat_dim: int, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = shape
        layer = nn.TransformerEncoderLayer(feat_dim, nhead=8, dim_feedforward=2048, dropout=0.1)
        self.transformer_encoder = nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)
        self.fc = nn.Linear(feat_dim, shape[0] * shape[1])

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            x = self.transformer_encoder(features.unsqueeze(0)).squeeze(0)
        else:
            x = features
            for layer in self.transformer_encoder.layers:
                x = alone(layer, x)
        return self.fc(x).unflatten(-1, self.shape)


def alone(layer: Any, x: Tensor) -> Tensor:
    """A layer on tokens (B, E) that each see only themselves, without dropout: their attention is their own value."""
    attention, n = layer.self_attn, x.shape[-1]
    value = F.linear(x, attention.in_proj_weight[2 * n :], attention.in_proj_bias[2 * n :])
    x = layer.norm1(x + attention.out_proj(value))
    return layer.norm2(x + layer.linear2(F.relu(layer.linear1(x))))


@TRAINER_REGISTRY.register()
class DPSPG_TRANSFORMER(LabelTrainer):
    """Two transformers learn the positive and the negative labels of the images' domains by their squared distance."""

    SETTINGS = "DPSPG"
    LABEL_SIGNS = SIGNS

    def build_prompt_model(self) -> None:
        settings = self.settings
        self.encoder = self.build_encoder(n_ctx=settings.N_CTX, ctx_init=settings.CTX_INIT)
        shape = self.encoder.n_ctx, self.encoder.ctx_dim
        self.generators = {
            sign: self.register_network(NETWORKS[sign], FeatureTransformer(self.backbone.feature_size, shape))
            for sign in NETWORKS
        }

    def train(self) -> None:
        for key in ("EARLY_TARGETS", "LATE_TARGETS"):
            check_targets(self, key, "all of them")
        early, epochs = self.for_targets("EARLY"), self.cfg.OPTIM.MAX_EPOCH
        self.max_epoch = min(early, epochs) if early else epochs
        late = self.for_targets("LATE")
        if late >= self.max_epoch and self.cfg.TEST.FINAL_MODEL == "best_val":
            raise UserError(
                f"TRAINER.DPSPG.LATE is {late}, so validation chooses among later epochs, but the last one is "
                f"{self.max_epoch}; accepted: 0 to {self.max_epoch - 1}. Set TRAINER.DPSPG.LATE 0, or OPTIM.MAX_EPOCH "
                "and TRAINER.DPSPG.EARLY higher."
            )
        super().train()

    def for_targets(self, key: str) -> int:
        """EARLY or LATE, where it is meant for all of the run's target domains; else 0."""
        targets, named = self.dm.dataset.target_domains, self.settings[f"{key}_TARGETS"]
        return self.settings[key] if not named or (targets and set(targets) <= set(named)) else 0

    def may_be_chosen(self) -> bool:
        return self.epoch + 1 > self.for_targets("LATE")

    def load_labels(self) -> Tensor:
        """Labels by sign, in the order of SIGNS: (2, domains, n_ctx, D)."""
        by_sign = [read_labels(self, folder, self.stage1_cfg, "DPSPG_CoOp") for folder in self.label_folders()]
        return torch.stack(by_sign)

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        check_interruption()
        features = self.image_features.of_batch(batch)
        assert self.labels is not None  # training began with them
        labels = dict(zip(SIGNS, self.labels[:, batch["domain"].to(self.device)], strict=True))
        losses = {sign: F.mse_loss(self.generators[sign](features), labels[sign]) for sign in NETWORKS}
        loss = losses["pos"] + losses["neg"]
        self.model_backward_and_update(loss)
        return {"loss": loss.item(), "loss_pos": losses["pos"].item(), "loss_neg": losses["neg"].item()}

    def predict(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        """Logits (B, C) by the positive cosines less ALPHA times the negative ones."""
        with self.backbone.autocast():
            positive, negative = (self.encoder(self.generators[sign](features)) for sign in NETWORKS)
        return self.logits(features, positive) - self.settings.ALPHA * self.logits(features, negative)

    def load_model(self, directory: str | PathLike, epoch: int | None = None) -> None:
        """Load both transformers of a run, ours or a published one."""
        for sign, name in NETWORKS.items():
            load_prompt_learner(self, directory, epoch, name, into=self.generators[sign])


@TRAINER_REGISTRY.register()
class DPSPG(TwoStages, DPSPG_TRANSFORMER):
    """Trains whatever labels of the source domains are missing (stage I), then the transformers (stage II)."""

    STAGE1 = DPSPG_CoOp
