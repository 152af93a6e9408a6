"""Both stages of SPG and of DPSPG in one run."""

import os
from typing import Any

from dassl.utils import set_random_seed
from torch import Tensor
from yacs.config import CfgNode

from common.dassl_path import REPOSITORY
from common.errors import UserError
from common.files import make_output_folder
from common.held import held
from trainers.base.trainer import FrozenClipTrainer
from trainers.config import apply_settings, default_cfg, merge_method_file
from trainers.config_check import check_values
from trainers.config_keys import KEYS, value_of
from trainers.modules.prompt_labels import label_seconds
from trainers.spg_labels import LabelTrainer


class TwoStages(LabelTrainer):
    """Trains whatever prompt labels of the source domains are missing (stage I), then what goes by them (stage II).

    Attributes:
        STAGE1: the trainer that learns the label of a domain.
    """

    STAGE1: type[FrozenClipTrainer]
    learned: tuple[str, ...] = ()  # domains whose label this run trained itself

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        stage1 = stage1_settings(cfg, self.SETTINGS, show=cfg.VERBOSE and not self.done)
        if not self.done:
            check_values(stage1, [key for key in KEYS if key.startswith("OPTIM.")], "Stage I, by its config and opts: ")
        if cfg.SEED < 0 and cfg.DATASET.NUM_SHOTS > 0:
            raise UserError(
                f"DATASET.NUM_SHOTS {cfg.DATASET.NUM_SHOTS} without a seed would draw other images for each stage; "
                "pass --seed."
            )

    def settled_cfg(self, cfg: CfgNode) -> CfgNode:
        cfg = super().settled_cfg(cfg)
        settings = cfg.TRAINER[self.SETTINGS]
        if cfg.SEED < 0 and settings.LABEL_SEED < 0:
            # Runs without a seed are independent of each other, labels and all.
            own = os.path.join(cfg.OUTPUT_DIR, "prompt_labels")
            if self.asked_cfg.TRAINER[self.SETTINGS].LABEL_DIR not in ("", own) and cfg.VERBOSE:
                print(
                    f"Note: the prompt labels in TRAINER.{self.SETTINGS}.LABEL_DIR {settings.LABEL_DIR} are left "
                    "aside, since a run without a seed learns its own. Pass --seed, or name theirs by "
                    f"TRAINER.{self.SETTINGS}.LABEL_SEED."
                )
            cfg.defrost()
            settings.LABEL_DIR = own
            cfg.freeze()
        return cfg

    def load_labels(self) -> Tensor:
        self.learn_labels()
        print("Stage II: training the generator")
        return super().load_labels()

    def learn_labels(self) -> None:
        """Stage I of all source domains whose label is missing."""
        for domain in self.dm.dataset.source_domains:
            if not self.has_label(domain):
                # Of several runs that need a label one learns it, and the others take that one.
                make_output_folder(self.label_folders()[-1].label_dir)
                with held(self.label_folders()[-1].file_for(domain), f"the prompt label of {domain}"):
                    if not self.has_label(domain):
                        self.learn_label(domain)

    def has_label(self, domain: str) -> bool:
        """Whether the label of a domain is there, in each of the folders."""
        code = self.dm.dataset.code(domain)
        return all(folder.find(domain, code) is not None for folder in self.label_folders())

    def learn_label(self, domain: str) -> None:
        """Stage I: learn the prompt label of a domain and write it.

        Raises:
            UserError: one of two signs is there, which no run that was stopped between them has left.
        """
        folders = self.label_folders()
        found = [folder.find(domain, self.dm.dataset.code(domain)) for folder in folders]
        # A run of ours that is stopped between the two leaves the first alone.
        if any(path is not None and (path != folders[0].file_for(domain)) for path in found):
            there = next(path for path in found if path is not None)
            missing = folders[found.index(None)].file_for(domain)
            raise UserError(
                f"The prompt label of {domain} is there for one sign alone: {there}, and no {missing}. Put the other "
                f"there, name a folder that has both (TRAINER.{self.SETTINGS}.LABEL_DIR), or delete the one to have "
                "both learned."
            )
        print(f"Stage I: learning the prompt label of {domain}")
        cfg = self.stage1_cfg(domain)
        if cfg.SEED >= 0:
            # A label does not depend on which others were missing.
            set_random_seed(cfg.SEED)
        stage1 = self.STAGE1(cfg, self.backbone)
        stage1.restart_on_difference = True
        stage1.settle_threads(self.threads)
        stage1.train()
        self.learned = (*self.learned, domain)

    def n_trained(self) -> list[int]:
        # Of the domains that are no sources, labels are NaN.
        stage1 = 0 if self.labels is None else int(self.labels.isfinite().sum())
        return [stage1, *super().n_trained()]

    def reused(self) -> dict[str, float | None]:
        reused, folder, dataset = super().reused(), self.label_folders()[-1], self.dm.dataset
        found = [domain for domain in dataset.source_domains if domain not in self.learned]
        paths = [folder.find(domain, dataset.code(domain)) for domain in found]
        if paths:
            times = [label_seconds(path) for path in paths if path is not None]
            known = [seconds for seconds in times if seconds is not None]
            reused["prompt labels"] = sum(known) if len(known) == len(paths) else None
        return reused

    def run_settings(self) -> dict[str, Any]:
        # Of the file's name and the pairs on top of it only what they come to matters.
        stage1 = stage1_settings(self.cfg, self.SETTINGS).OPTIM
        return {**super().run_settings(), **{f"stage I: OPTIM.{key}": value for key, value in stage1.items()}}

    def stage1_cfg(self, domain: str) -> CfgNode:
        """The config of stage I for a domain: this run's, but for the optimisation, the domain and the folder."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.OPTIM = stage1_settings(cfg, self.SETTINGS).OPTIM
        cfg.TRAINER.NAME = self.STAGE1.__name__
        cfg.DATASET.SOURCE_DOMAINS = cfg.DATASET.TARGET_DOMAINS = (domain,)
        cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "stage1", domain)
        cfg.SEED = self.label_folders()[0].seed
        cfg.TEST.NO_TEST = True
        cfg.RESUME = ""
        cfg.VERBOSE = False
        cfg.freeze()
        return cfg


def stage1_settings(cfg: CfgNode, node: str, show: bool = False) -> CfgNode:
    """Settings whose OPTIM section is stage I's: those of STAGE1_CONFIG_FILE, then STAGE1_OPTS, of a method's node.

    The file is looked up here, then in the repository.

    Args:
        cfg: of both stages.
        node: of the method, under cfg.TRAINER.
        show: print the values of the file that its authors' code overrides.

    Raises:
        UserError: there is no such file, it cannot be used, or a pair in STAGE1_OPTS is not of OPTIM.
    """
    path, opts = cfg.TRAINER[node].STAGE1_CONFIG_FILE, cfg.TRAINER[node].STAGE1_OPTS
    found = [candidate for candidate in (path, REPOSITORY / path) if os.path.isfile(candidate)]
    stage1, key = default_cfg(), f"TRAINER.{node}.STAGE1_CONFIG_FILE"
    if not found:
        default = value_of(stage1, key)
        raise UserError(f"{key} {path} is not there, nor in {REPOSITORY}. The default is {key} {default}.")
    line = merge_method_file(stage1, found[0], f"{node}_CoOp", key)
    if show and line:
        print(line)
    apply_settings(stage1, opts)
    return stage1
