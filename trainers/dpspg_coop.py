"""DPSPG, stage I: a positive and a negative prompt label of a source domain, learned on that domain alone."""

from collections.abc import Sequence
from os import PathLike

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from common.errors import UserError
from trainers.base.checkpoints import LEARNER, load_prompt_learner
from trainers.base.evaluation import Classifier
from trainers.label_learner import LabelLearner

SIGNS = ("neg", "pos")  # folders of labels; who finds one in the last has both


class TwoContexts(nn.Module):
    """A context that says what an image is, `ctx_pos` (n_ctx, D), and one that says what it is not, `ctx_neg`."""

    def __init__(self, positive: Tensor, negative: Tensor) -> None:
        super().__init__()
        self.ctx_pos = nn.Parameter(positive)
        self.ctx_neg = nn.Parameter(negative)


@TRAINER_REGISTRY.register()
class DPSPG_CoOp(LabelLearner):
    """Both contexts of the domain's best validation epoch are written as its labels."""

    SETTINGS = "DPSPG"
    LABEL_SIGNS = SIGNS

    def build_prompt_model(self) -> None:
        settings = self.settings
        self.encoder = self.build_encoder(n_ctx=settings.N_CTX, ctx_init=settings.CTX_INIT)
        other = self.build_encoder(n_ctx=settings.N_CTX, ctx_init=settings.NEG_CTX_INIT)
        contexts = TwoContexts(self.encoder.initial_context(), other.initial_context())
        if contexts.ctx_pos.shape != contexts.ctx_neg.shape:
            raise UserError(
                f"TRAINER.DPSPG.CTX_INIT {settings.CTX_INIT!r} has {len(contexts.ctx_pos)} tokens, and NEG_CTX_INIT "
                f"{settings.NEG_CTX_INIT!r} has {len(contexts.ctx_neg)}; accepted: as many in both."
            )
        self.model = self.register_network(LEARNER, contexts)

    def text_features(self, features: Tensor | None, indices: Sequence[int] | None) -> Tensor:
        """Of both contexts: (2C, E), first the positive ones."""
        return self.encoder(torch.stack([self.model.ctx_pos, self.model.ctx_neg])).flatten(0, 1)

    def loss(self, logits: Tensor, labels: Tensor, text_features: Tensor) -> Tensor:
        """Cross-entropy of the positive logits, and of the negative ones whether a class is not the image's."""
        positive, negative = logits.chunk(2, dim=-1)
        others = 1 - F.one_hot(labels, self.num_classes).to(negative)
        weight = torch.tensor(self.num_classes - 1.0, device=logits.device)
        return F.cross_entropy(positive, labels) + F.binary_cross_entropy_with_logits(
            negative, others, pos_weight=weight
        )

    def classifier(self) -> Classifier:
        """By the positive logits less the negative ones."""
        with torch.no_grad(), self.backbone.autocast():
            text_features = self.text_features(None, None)

        def classify(features: Tensor, indices: Sequence[int]) -> Tensor:
            positive, negative = self.logits(features, text_features).chunk(2, dim=-1)
            return positive - negative

        return classify

    def load_model(self, directory: str | PathLike, epoch: int | None = None) -> None:
        """Load the contexts of a run."""
        load_prompt_learner(self, directory, epoch)

    def learned_label(self, sign: str) -> Tensor:
        return getattr(self.model, f"ctx_{sign}")
