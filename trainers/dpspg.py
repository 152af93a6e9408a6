"""DPSPG (Zhang et al., ICME 2026), the successor of SPG: both stages.

Stage I, `DPSPG_CoOp`, learns a positive and a negative prompt label of one source domain. Stage II,
`DPSPG_TRANSFORMER`, trains two transformers that map an image feature to a prompt of each sign, without noise. `DPSPG`
runs stage I for every missing label, then stage II.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from common.errors import UserError
from common.interruption import check_interruption
from trainers.base.evaluation import Classifier
from trainers.config import NCtx, NonNegativeFloat, NonNegativeInt, Precision, Section, Seed
from trainers.spg import SPG_CoOp, StageTwoTrainer

NETWORKS = {"pos": "posencoder", "neg": "negencoder"}


class DPSPGKeys(Section, node="TRAINER.DPSPG"):
    N_CTX: NCtx = 4
    CTX_INIT: str = "a photo of a"
    NEG_CTX_INIT: str = "a photo without a"  # of the negative label; the same number of tokens
    PREC: Precision = "fp16"
    ALPHA: NonNegativeFloat = 0.2  # weight of the negative cosines
    EARLY: NonNegativeInt = 0  # last epoch of stage II, on the schedule of OPTIM.MAX_EPOCH; 0: OPTIM.MAX_EPOCH
    EARLY_TARGETS: tuple[str, ...] = ()  # target domains (full names) with EARLY; (): all
    LATE: NonNegativeInt = 0  # validation chooses among the later epochs of stage II; 0: among all
    LATE_TARGETS: tuple[str, ...] = ()  # target domains (full names) with LATE; (): all
    LABEL_DIR: str = ""  # <LABEL_DIR>/{pos,neg}/<dataset>/<backbone>/seed_<k>/<domain>.pt; "": as SPG's
    LABEL_SEED: Seed = -1  # seed of the prompt labels; -1: SEED
    STAGE1_CONFIG_FILE: str = "configs/trainers/DPSPG_CoOp/default.yaml"  # as SPG's
    STAGE1_OPTS: tuple[Any, ...] = ()


class TwoContexts(nn.Module):
    """A positive context (n_ctx, D) and a negative one."""

    def __init__(self, positive: Tensor, negative: Tensor) -> None:
        super().__init__()
        self.ctx_pos = nn.Parameter(positive)
        self.ctx_neg = nn.Parameter(negative)


@TRAINER_REGISTRY.register()
class DPSPG_CoOp(SPG_CoOp):
    """Two contexts on one domain. The best validation epoch's contexts become the domain's prompt labels."""

    NODE = "DPSPG"
    TEST_KEYS = ()
    TAKES_INIT_WEIGHTS = False
    CTX_INIT_KEYS = ("CTX_INIT", "NEG_CTX_INIT")
    SIGNS = ("neg", "pos")  # in the order of writing

    def build_prompt_model(self) -> None:
        settings = self.settings
        self.encoder = self.build_encoder(n_ctx=settings.N_CTX, ctx_init=settings.CTX_INIT)
        other = self.build_encoder(n_ctx=settings.N_CTX, ctx_init=settings.NEG_CTX_INIT)
        contexts = TwoContexts(self.encoder.initial_context(), other.initial_context())
        self.model = self.register_network(self.NETWORK, contexts)

    def text_features(self, features: Tensor | None, indices: Sequence[int] | None) -> Tensor:
        """Text features (2C, E) of both contexts, the positive ones first."""
        return self.encoder(torch.stack([self.model.ctx_pos, self.model.ctx_neg])).flatten(0, 1)

    def loss(self, logits: Tensor, labels: Tensor, text_features: Tensor) -> Tensor:
        """Cross-entropy of the positive logits + binary cross-entropy of the negative ones with 1 - one-hot labels."""
        positive, negative = logits.chunk(2, dim=-1)
        others = 1 - F.one_hot(labels, self.num_classes).to(negative)
        weight = torch.tensor(self.num_classes - 1.0, device=logits.device)
        binary = F.binary_cross_entropy_with_logits(negative, others, pos_weight=weight)
        return F.cross_entropy(positive, labels) + binary

    def classifier(self) -> Classifier:
        """Positive minus negative logits."""
        both = super().classifier()

        def classify(features: Tensor, indices: Sequence[int]) -> Tensor:
            positive, negative = both(features, indices).chunk(2, dim=-1)
            return positive - negative

        return classify

    def learned_label(self, sign: str) -> Tensor:
        return getattr(self.model, f"ctx_{sign}")


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
            features = self.transformer_encoder(features.unsqueeze(0)).squeeze(0)
        else:
            for layer in self.transformer_encoder.layers:
                features = encode_one_token(layer, features)
        return self.fc(features).unflatten(-1, self.shape)


def encode_one_token(layer: Any, x: Tensor) -> Tensor:
    """A transformer layer on sequences of one token (B, E), without dropout: attention is the token's own value."""
    attention, n = layer.self_attn, x.shape[-1]
    value = F.linear(x, attention.in_proj_weight[2 * n :], attention.in_proj_bias[2 * n :])
    x = layer.norm1(x + attention.out_proj(value))
    return layer.norm2(x + layer.linear2(F.relu(layer.linear1(x))))


@TRAINER_REGISTRY.register()
class DPSPG_TRANSFORMER(StageTwoTrainer):
    """Two transformers learn the prompt labels of the images' domains by mean squared error."""

    NODE = "DPSPG"
    STAGE1 = DPSPG_CoOp

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
            self.check_targets(key, "all domains")
        early, epochs = self.for_targets("EARLY"), self.cfg.OPTIM.MAX_EPOCH
        self.max_epoch = min(early, epochs) if early else epochs
        late = self.for_targets("LATE")
        if late >= self.max_epoch and self.cfg.TEST.FINAL_MODEL == "best_val":
            raise UserError(
                f"TRAINER.DPSPG.LATE is {late}, so validation selects later epochs, but the last one is "
                f"{self.max_epoch}. Set TRAINER.DPSPG.LATE to 0 to {self.max_epoch - 1}."
            )
        super().train()

    def for_targets(self, key: str) -> int:
        """EARLY or LATE if the key applies to all target domains of the run, else 0."""
        targets, named = self.dm.dataset.target_domains, self.settings[f"{key}_TARGETS"]
        return self.settings[key] if not named or (targets and set(targets) <= set(named)) else 0

    def is_selectable(self) -> bool:
        return self.epoch + 1 > self.for_targets("LATE")

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        check_interruption()
        features = self.image_features.of_batch(batch)
        assert self.prompt_labels is not None
        labels = dict(zip(self.STAGE1.SIGNS, self.prompt_labels[:, batch["domain"].to(self.device)], strict=True))
        losses = {sign: F.mse_loss(self.generators[sign](features), labels[sign]) for sign in NETWORKS}
        loss = losses["pos"] + losses["neg"]
        self.model_backward_and_update(loss)
        return {"loss": loss.item(), "loss_pos": losses["pos"].item(), "loss_neg": losses["neg"].item()}

    def predict(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        """Logits (B, C): positive ones minus ALPHA times negative ones."""
        with self.backbone.autocast():
            positive, negative = (self.encoder(self.generators[sign](features)) for sign in NETWORKS)
        return self.logits(features, positive) - self.settings.ALPHA * self.logits(features, negative)


@TRAINER_REGISTRY.register()
class DPSPG(DPSPG_TRANSFORMER):
    """Both stages: learn the missing prompt labels of both signs, then train the transformers."""

    LEARNS_LABELS = True
    CTX_INIT_KEYS = ("CTX_INIT", "NEG_CTX_INIT")
