"""SPG: both stages in one run."""

import os
from dataclasses import replace

from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import set_random_seed

from common.dassl_path import REPOSITORY
from common.errors import UserError
from trainers.config import extend_cfg
from trainers.spg_cgan import SPG_CGAN
from trainers.spg_coop import SPG_CoOp
from trainers.spg_labels import label_folder


@TRAINER_REGISTRY.register()
class SPG(SPG_CGAN):
    """Trains whatever prompt labels of the source domains are missing (stage I), then the CGAN (stage II)."""

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        stage1_optim(cfg)
        if cfg.SEED < 0 and cfg.DATASET.NUM_SHOTS > 0:
            raise UserError(
                f"DATASET.NUM_SHOTS {cfg.DATASET.NUM_SHOTS} without a seed would draw other images for each stage; "
                "pass --seed."
            )

    def settled_cfg(self, cfg):
        cfg = super().settled_cfg(cfg)
        if cfg.SEED < 0 and cfg.TRAINER.SPG.LABEL_SEED < 0:
            # Runs without a seed are independent of each other, labels and all.
            cfg.defrost()
            cfg.TRAINER.SPG.LABEL_DIR = os.path.join(cfg.OUTPUT_DIR, "prompt_labels")
            cfg.freeze()
        return cfg

    def load_labels(self):
        dataset, folder = self.dm.dataset, label_folder(self.cfg)
        for domain in dataset.source_domains:
            if folder.find(domain, dataset.code(domain)) is None:
                print(f"Stage I: learning the prompt label of {domain}")
                cfg = self.stage1_cfg(domain)
                if cfg.SEED >= 0:
                    # A label does not depend on which others were missing.
                    set_random_seed(cfg.SEED)
                stage1 = SPG_CoOp(cfg, self.backbone)
                stage1.restart_on_difference = True
                stage1.settle_threads(self.threads)
                stage1.train()
        print("Stage II: training the generator")
        return super().load_labels()

    def identity(self):
        # Of the file's name and the pairs on top of it only what they come to matters.
        stage1 = {f"stage I: OPTIM.{key}": value for key, value in stage1_optim(self.cfg).items()}
        identity = super().identity()
        return replace(identity, settings={**identity.settings, **stage1})

    def stage1_cfg(self, domain):
        """The config of stage I for a domain: this run's, but for the optimisation, the domain and the folder."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.OPTIM = stage1_optim(cfg)
        cfg.TRAINER.NAME = "SPG_CoOp"
        cfg.DATASET.SOURCE_DOMAINS = cfg.DATASET.TARGET_DOMAINS = (domain,)
        cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "stage1", domain)
        cfg.SEED = label_folder(self.cfg).seed
        cfg.TEST.NO_TEST = True
        cfg.RESUME = ""
        cfg.VERBOSE = False
        cfg.freeze()
        return cfg


def stage1_optim(cfg):
    """The OPTIM section of stage I: of STAGE1_CONFIG_FILE, looked up here, then in the repository; then STAGE1_OPTS.

    Raises:
        UserError: there is no such file, it cannot be used, or a pair in STAGE1_OPTS is none of OPTIM's.
    """
    path, opts = cfg.TRAINER.SPG.STAGE1_CONFIG_FILE, list(cfg.TRAINER.SPG.STAGE1_OPTS)
    found = [candidate for candidate in (path, REPOSITORY / path) if os.path.isfile(candidate)]
    if not found:
        raise UserError(f"TRAINER.SPG.STAGE1_CONFIG_FILE names {path}, which is not there.")
    strange = [key for key in opts[::2] if not str(key).startswith("OPTIM.")]
    if strange or len(opts) % 2:
        raise UserError(
            f"TRAINER.SPG.STAGE1_OPTS is {opts}; accepted: pairs of an OPTIM key and a value, such as "
            "\"['OPTIM.MAX_EPOCH', 5]\". Everything else is shared with stage II."
        )
    stage1 = get_cfg_default()
    extend_cfg(stage1)
    try:
        stage1.merge_from_file(str(found[0]))
    except Exception as error:  # whatever YAML and yacs make of a broken file
        raise UserError(f"TRAINER.SPG.STAGE1_CONFIG_FILE {path} cannot be used: {error}") from error
    try:
        stage1.merge_from_list(opts)
    except (KeyError, AssertionError, ValueError) as error:
        raise UserError(f"TRAINER.SPG.STAGE1_OPTS {opts} cannot be applied: {error}") from error
    return stage1.OPTIM
