"""CoOp (Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022)."""

from dassl.engine import TRAINER_REGISTRY

from trainers.base.context_trainer import ContextTrainer
from trainers.config import ClassTokenPosition, NCtx, Precision, Section


class CoOpKeys(Section, node="TRAINER.COOP"):
    N_CTX: NCtx = 16  # number of context vectors; the tokens of CTX_INIT override it
    CSC: bool = False  # class-specific contexts
    CTX_INIT: str = ""  # initial words; "": random vectors
    PREC: Precision = "fp16"  # of the frozen CLIP
    CLASS_TOKEN_POSITION: ClassTokenPosition = "end"


@TRAINER_REGISTRY.register()
class CoOp(ContextTrainer):
    """One context for all images, learned on all source domains together."""

    NODE = "COOP"
