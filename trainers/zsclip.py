"""Zero-shot CLIP: fixed words instead of a learned context (Radford et al., 2021)."""

import torch
from dassl.engine import TRAINER_REGISTRY

from trainers.base.run_record import Course
from trainers.base.trainer import FrozenClipTrainer

TEMPLATE = "a photo of a {}."
# The seven that CLIP's authors found to do nearly as well as all eighty, as in CoOp.
SELECTED_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(FrozenClipTrainer):
    """Classifies with "a photo of a <class>."; learns nothing."""

    SETTINGS = "COOP"
    TEMPLATES = (TEMPLATE,)

    @torch.no_grad()
    def build_prompt_model(self):
        # Each prompt counts alike, whatever the length of its feature.
        features = sum(self.encode_template(template) for template in self.TEMPLATES)
        self.template_features = features / features.norm(dim=-1, keepdim=True)

    def encode_template(self, template):
        """Text features (C, E) of a template with {} for the class name."""
        before, after = template.removesuffix(".").split("{}")
        # The encoder takes words before a class name, and any words as the class name.
        names = [name + after for name in self.dm.dataset.classnames]
        encoder = self.build_encoder(names, ctx_init=before.strip())
        return encoder(encoder.initial_context()).float()

    def text_features(self, features, indices):
        return self.template_features

    def train(self):
        """There is nothing to train: test and write the results."""
        self.take_threads()
        self.course = Course()
        if not self.cfg.TEST.NO_TEST:
            self.test()
        self.write_outcome()

    def load_model(self, directory, epoch=None):
        """There is nothing to load."""


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """Classifies with the mean of several templates' text features, as in CoOp."""

    TEMPLATES = (*SELECTED_TEMPLATES, TEMPLATE)
