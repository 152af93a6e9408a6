"""SPG: both stages in one run."""

from dassl.engine import TRAINER_REGISTRY

from trainers.spg_cgan import SPG_CGAN
from trainers.spg_coop import SPG_CoOp
from trainers.two_stages import TwoStages


@TRAINER_REGISTRY.register()
class SPG(TwoStages, SPG_CGAN):
    """Trains whatever prompt labels of the source domains are missing (stage I), then the CGAN (stage II)."""

    STAGE1 = SPG_CoOp
