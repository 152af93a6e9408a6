"""Zero-shot CLIP: fixed words instead of a learned context (Radford et al., 2021)."""

import time
from collections.abc import Sequence
from functools import reduce

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor

from trainers.base.trainer import STEP_KEYS, PromptTrainer
from trainers.modules.templates import SELECTED_TEMPLATES, TEMPLATE


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(PromptTrainer):
    """Classifies with "a photo of a <class>."; learns nothing."""

    NODE = "COOP"  # only PREC
    UNREAD_KEYS = (
        *(*PromptTrainer.UNREAD_KEYS, *STEP_KEYS, "DATASET.NUM_SHOTS", "TEST.FINAL_MODEL"),
        *(f"TRAINER.COOP.{key}" for key in ("N_CTX", "CSC", "CTX_INIT", "CLASS_TOKEN_POSITION")),
    )
    CTX_INIT_KEYS = ()
    TEMPLATES: tuple[str, ...] = (TEMPLATE,)

    @torch.no_grad()
    def build_prompt_model(self) -> None:
        # Each prompt counts alike, whatever the length of its feature.
        features = reduce(torch.add, map(self.encode_template, self.TEMPLATES))
        self.template_features = features / features.norm(dim=-1, keepdim=True)

    def text_features(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        return self.template_features

    def train(self) -> None:
        """There is nothing to train: test and write the results."""
        self.begin_record()
        self.started = time.time()
        if not self.cfg.TEST.NO_TEST:
            self.test()
        self.write_records()


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """Classifies with the mean of several templates' text features, as in CoOp."""

    TEMPLATES = (*SELECTED_TEMPLATES, TEMPLATE)
