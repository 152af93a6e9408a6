"""SPG: both stages in one run."""

import os

from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY

from common.dassl_path import REPOSITORY
from common.errors import UserError
from trainers.config import extend_cfg
from trainers.spg_cgan import SPG_CGAN
from trainers.spg_coop import SPG_CoOp
from trainers.spg_labels import label_folder


@TRAINER_REGISTRY.register()
class SPG(SPG_CGAN):
    """Trains whatever prompt labels of the source domains are missing (stage I), then the CGAN (stage II)."""

    def load_labels(self):
        dataset, folder = self.dm.dataset, label_folder(self.cfg)
        for domain in dataset.source_domains:
            if folder.find(domain, dataset.code(domain)) is None:
                print(f"Stage I: learning the prompt label of {domain}")
                SPG_CoOp(self.stage1_cfg(domain), self.clip_model).train()
        print("Stage II: training the generator")
        return super().load_labels()

    def stage1_cfg(self, domain):
        """The config of stage I for a domain: this run's, but for the optimisation, the domain and the folder."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.OPTIM = stage1_optim(cfg.TRAINER.SPG.STAGE1_CONFIG_FILE)
        cfg.merge_from_list(list(cfg.TRAINER.SPG.STAGE1_OPTS))
        cfg.TRAINER.NAME = "SPG_CoOp"
        cfg.DATASET.SOURCE_DOMAINS = cfg.DATASET.TARGET_DOMAINS = (domain,)
        cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "stage1", domain)
        cfg.SEED = label_folder(self.cfg).seed
        cfg.TEST.NO_TEST = True
        cfg.RESUME = ""
        cfg.VERBOSE = False
        cfg.freeze()
        return cfg


def stage1_optim(path):
    """The OPTIM section of a stage I config file; a relative path is looked up here, then in the repository.

    Raises:
        UserError: there is no such file.
    """
    found = [candidate for candidate in (path, REPOSITORY / path) if os.path.isfile(candidate)]
    if not found:
        raise UserError(f"TRAINER.SPG.STAGE1_CONFIG_FILE names {path}, which is not there.")
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_file(str(found[0]))
    return cfg.OPTIM
