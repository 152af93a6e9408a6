"""SPG, stage I: the prompt label of a source domain, learned by CoOp on that domain alone (SPG, Sec. 3.2)."""

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor

from trainers.base.context_trainer import ContextTrainer
from trainers.label_learner import LabelLearner


@TRAINER_REGISTRY.register()
class SPG_CoOp(LabelLearner, ContextTrainer):
    """CoOp on one domain; the context of its best validation epoch is written as the domain's prompt label."""

    SETTINGS = "SPG"

    def learned_label(self, sign: str) -> Tensor:
        return self.model.ctx
