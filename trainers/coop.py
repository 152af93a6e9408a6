"""CoOp (Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022)."""

from dassl.engine import TRAINER_REGISTRY

from trainers.base.context_trainer import ContextTrainer


@TRAINER_REGISTRY.register()
class CoOp(ContextTrainer):
    """One context for all images, learned on all source domains together."""

    SETTINGS = "COOP"
