"""SPG: both stages in one run."""

import os
from dataclasses import replace

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import set_random_seed
from torch import Tensor
from yacs.config import CfgNode

from common.dassl_path import REPOSITORY
from common.errors import UserError
from common.held import held
from common.run.identity import RunIdentity
from trainers.config import apply_settings, default_cfg, merge_file
from trainers.config_check import check_values
from trainers.config_keys import KEYS
from trainers.spg_cgan import SPG_CGAN
from trainers.spg_coop import SPG_CoOp
from trainers.spg_labels import label_folder


@TRAINER_REGISTRY.register()
class SPG(SPG_CGAN):
    """Trains whatever prompt labels of the source domains are missing (stage I), then the CGAN (stage II)."""

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        stage1 = stage1_settings(cfg)
        if not self.done:
            check_values(stage1, [key for key in KEYS if key.startswith("OPTIM.")], "Stage I, by its config and opts: ")
        if cfg.SEED < 0 and cfg.DATASET.NUM_SHOTS > 0:
            raise UserError(
                f"DATASET.NUM_SHOTS {cfg.DATASET.NUM_SHOTS} without a seed would draw other images for each stage; "
                "pass --seed."
            )

    def settled_cfg(self, cfg: CfgNode) -> CfgNode:
        cfg = super().settled_cfg(cfg)
        spg = cfg.TRAINER.SPG
        if cfg.SEED < 0 and spg.LABEL_SEED < 0:
            # Runs without a seed are independent of each other, labels and all.
            own = os.path.join(cfg.OUTPUT_DIR, "prompt_labels")
            if self.asked_cfg.TRAINER.SPG.LABEL_DIR not in ("", own) and cfg.VERBOSE:
                print(
                    f"Note: the prompt labels in TRAINER.SPG.LABEL_DIR {spg.LABEL_DIR} are left aside, since a run "
                    "without a seed learns its own. Pass --seed, or name theirs by TRAINER.SPG.LABEL_SEED."
                )
            cfg.defrost()
            spg.LABEL_DIR = own
            cfg.freeze()
        return cfg

    def load_labels(self) -> Tensor:
        dataset, folder = self.dm.dataset, label_folder(self.cfg)
        for domain in dataset.source_domains:
            if folder.find(domain, dataset.code(domain)) is None:
                # Of several runs that need a label one learns it, and the others take that one.
                with held(folder.file_for(domain), f"the prompt label of {domain}"):
                    if folder.find(domain, dataset.code(domain)) is None:
                        self.learn_label(domain)
        print("Stage II: training the generator")
        return super().load_labels()

    def learn_label(self, domain: str) -> None:
        """Stage I: learn the prompt label of a domain and write it."""
        print(f"Stage I: learning the prompt label of {domain}")
        cfg = self.stage1_cfg(domain)
        if cfg.SEED >= 0:
            # A label does not depend on which others were missing.
            set_random_seed(cfg.SEED)
        stage1 = SPG_CoOp(cfg, self.backbone)
        stage1.restart_on_difference = True
        stage1.settle_threads(self.threads)
        stage1.train()

    def identity(self) -> RunIdentity:
        # Of the file's name and the pairs on top of it only what they come to matters.
        stage1 = {f"stage I: OPTIM.{key}": value for key, value in stage1_settings(self.cfg).OPTIM.items()}
        identity = super().identity()
        return replace(identity, settings={**identity.settings, **stage1})

    def stage1_cfg(self, domain: str) -> CfgNode:
        """The config of stage I for a domain: this run's, but for the optimisation, the domain and the folder."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.OPTIM = stage1_settings(cfg).OPTIM
        cfg.TRAINER.NAME = "SPG_CoOp"
        cfg.DATASET.SOURCE_DOMAINS = cfg.DATASET.TARGET_DOMAINS = (domain,)
        cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "stage1", domain)
        cfg.SEED = label_folder(self.cfg).seed
        cfg.TEST.NO_TEST = True
        cfg.RESUME = ""
        cfg.VERBOSE = False
        cfg.freeze()
        return cfg


def stage1_settings(cfg: CfgNode) -> CfgNode:
    """Settings whose OPTIM section is stage I's: those of STAGE1_CONFIG_FILE, then STAGE1_OPTS.

    The file is looked up here, then in the repository.

    Raises:
        UserError: there is no such file, it cannot be used, or a pair in STAGE1_OPTS is not of OPTIM.
    """
    path, opts = cfg.TRAINER.SPG.STAGE1_CONFIG_FILE, cfg.TRAINER.SPG.STAGE1_OPTS
    found = [candidate for candidate in (path, REPOSITORY / path) if os.path.isfile(candidate)]
    stage1 = default_cfg()
    merge_file(stage1, found[0] if found else path, "TRAINER.SPG.STAGE1_CONFIG_FILE")
    apply_settings(stage1, opts)
    return stage1
