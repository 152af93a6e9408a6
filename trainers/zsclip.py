"""Zero-shot CLIP: fixed words instead of a learned context (Radford et al., 2021)."""

import time

from dassl.engine import TRAINER_REGISTRY

from trainers.prompt_trainer import PromptTrainer

TEMPLATE = "a photo of a"  # followed by the class name and a full stop


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(PromptTrainer):
    """Classifies with "a photo of a <class>."; learns nothing."""

    SETTINGS = "COOP"

    def build_prompt_model(self):
        encoder = self.build_encoder(ctx_init=TEMPLATE)
        self.template_features = encoder(encoder.initial_context())

    def text_features(self, features, indices):
        return self.template_features

    def train(self):
        """There is nothing to train: test, and write the results."""
        self.started = time.time()
        if not self.cfg.TEST.NO_TEST:
            self.test()
        self.write_outcome()

    def load_model(self, directory, epoch=None):
        """There is nothing to load."""
