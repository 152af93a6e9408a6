"""PromptSRC (Khattak et al., Self-regulating Prompts: Foundational Model Adaptation without Forgetting, ICCV 2023)."""

from collections.abc import Sequence
from functools import cached_property, reduce
from typing import Any

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from dassl.metrics import compute_accuracy
from torch import Tensor, nn

from common.interruption import check_interruption
from trainers.base.trainer import PromptTrainer
from trainers.config import FirstNCtx, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Precision, Section
from trainers.modules.prompted_vit import PromptedViT
from trainers.modules.templates import imagenet_templates
from trainers.modules.tensor_files import TEXT, VISION

SUM = "sum_of_"


class IndependentPrompts(nn.Module):
    """Prompts of the text tower, `ctx` (n, D) and `deep_ctx`, and of the image tower, `vctx` (m, W) and `deep_vctx`.

    Buffers `sum_of_<name>` have the Gaussian-weighted sum of the weights over the epochs so far. Checkpoints include
    them, so a resumed run continues the sum.
    """

    deep_ctx: Tensor
    deep_vctx: Tensor

    def __init__(self, ctx: Tensor, deep_ctx: Tensor, vctx: Tensor, deep_vctx: Tensor) -> None:
        super().__init__()
        starts = {"ctx": ctx, "deep_ctx": deep_ctx, "vctx": vctx, "deep_vctx": deep_vctx}
        for name, start in starts.items():
            if len(start):  # none is deep at depth 1
                self.register_parameter(name, nn.Parameter(start))
                self.register_buffer(SUM + name, torch.zeros_like(start))
            else:
                self.register_buffer(name, start, persistent=False)

    @torch.no_grad()
    def add_to_sum(self, weight: float) -> None:
        for name, parameter in self.named_parameters():
            self.get_buffer(SUM + name).add_(weight * parameter)

    @torch.no_grad()
    def take_sum(self) -> None:
        for name, parameter in self.named_parameters():
            parameter.copy_(self.get_buffer(SUM + name))


class PromptSRCKeys(Section, node="TRAINER.PROMPTSRC"):
    N_CTX_VISION: PositiveInt = 4
    N_CTX_TEXT: FirstNCtx = 4  # number of vectors, from the first tokens of CTX_INIT
    CTX_INIT: str = "a photo of a"
    PREC: Precision = "fp16"
    PROMPT_DEPTH_VISION: NonNegativeInt = 9  # layers with prompts; 0: 9, or all layers of a smaller tower
    PROMPT_DEPTH_TEXT: NonNegativeInt = 9
    TEXT_LOSS_WEIGHT: NonNegativeFloat = 25.0  # of the mean distance to the frozen text features
    IMAGE_LOSS_WEIGHT: NonNegativeFloat = 10.0  # of the mean distance to the frozen image features
    GPA_MEAN: float = 15.0  # Gaussian weights of the epochs in the final model: mean and standard deviation
    GPA_STD: PositiveFloat = 1.0


@TRAINER_REGISTRY.register()
class PromptSRC(PromptTrainer):
    """Prompts in both towers, regularised towards the frozen CLIP; the model is a Gaussian mean over the epochs."""

    NODE = "PROMPTSRC"
    TEST_KEYS = ("CTX_INIT",)
    SHARES_TEXT = True
    NETWORK = "VLPromptLearner"
    PUBLISHED_NAMES = VISION | TEXT
    OPTIONAL_TENSORS = (SUM,)
    UNUSED_TENSORS = ("ZS_image_encoder.",)

    def build_prompt_model(self) -> None:
        settings = self.settings
        words = {"n_learned": settings.N_CTX_TEXT} if settings.CTX_INIT else {}
        self.encoder = self.build_encoder(n_ctx=settings.N_CTX_TEXT, ctx_init=settings.CTX_INIT, **words)
        self.tower = PromptedViT(self.backbone.visual)
        n, deep = settings.N_CTX_VISION, self.prompt_depth("PROMPT_DEPTH_VISION", 9, image=self.tower.n_layers)
        prompts = IndependentPrompts(
            self.encoder.initial_context(),
            self.encoder.initial_deep(self.prompt_depth("PROMPT_DEPTH_TEXT", 9, text=self.encoder.n_layers)),
            self.tower.initial_tokens(n),
            self.tower.initial_deep(deep, n),
        )
        self.model = self.register_network(self.NETWORK, prompts)

    @cached_property
    def fixed_features(self) -> Tensor:
        """Text features (C, E) of the mean over CLIP's first 60 templates, which only training needs."""
        encoded = (self.encode_template(template, normalised=False) for template in imagenet_templates(60))
        return F.normalize(reduce(torch.add, encoded), dim=-1)

    def image_tower(self, images: Tensor) -> Tensor:
        return self.tower(images, self.model.vctx, self.model.deep_vctx)

    def text_features(self, features: Tensor | None, indices: Sequence[int] | None) -> Tensor:
        return self.encoder(self.model.ctx, self.model.deep_ctx)

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """A step on cross-entropy, the distances to the frozen features, and KL(zero-shot || prompted), Eq. 3 to 6."""
        check_interruption()
        features, labels = self.image_features.of_batch(batch), batch["label"].to(self.device)
        with torch.no_grad(), self.backbone.autocast():
            frozen = F.normalize(self.tower(batch["img"].to(self.device), self.model.vctx[:0]).float(), dim=-1)
        with self.backbone.autocast():
            text_features = self.text_features(None, None).float()
        logits, settings = self.logits(features, text_features), self.settings
        zero_shot = self.logits(frozen, self.fixed_features).log_softmax(dim=-1)
        kl = F.kl_div(logits.log_softmax(dim=-1), zero_shot, reduction="sum", log_target=True) / logits.numel()
        loss = (
            F.cross_entropy(logits, labels)
            + settings.TEXT_LOSS_WEIGHT * F.l1_loss(text_features, self.fixed_features)
            + settings.IMAGE_LOSS_WEIGHT * F.l1_loss(features, frozen)
            + kl
        )
        self.model_backward_and_update(loss)
        return {"loss": loss.item(), "acc": compute_accuracy(logits, labels)[0].item()}

    def run_epoch(self) -> None:
        super().run_epoch()
        self.model.add_to_sum(self.epoch_weights()[self.epoch])
        if self.epoch + 1 == self.max_epoch:
            self.model.take_sum()

    def epoch_weights(self) -> list[float]:
        """The weight of each epoch in the mean: a Gaussian of its number, counted from 1."""
        epochs = torch.arange(1, self.max_epoch + 1, dtype=torch.float64)
        distance = (epochs - self.settings.GPA_MEAN) / self.settings.GPA_STD
        return (-(distance**2) / 2).softmax(dim=0).tolist()

    @staticmethod
    def sizes_in(learned: dict[str, Tensor]) -> dict[str, Any]:
        towers = {"TEXT": "ctx", "VISION": "vctx"}
        if not learned.keys() >= set(towers.values()):
            return {}
        n_vectors = {f"N_CTX_{tower}": len(learned[ctx]) for tower, ctx in towers.items()}
        depths = {f"PROMPT_DEPTH_{tower}": 1 + len(learned.get(f"deep_{ctx}", ())) for tower, ctx in towers.items()}
        return n_vectors | depths
