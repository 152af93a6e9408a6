"""SPG, stage II: a conditional GAN learns to generate prompts from image features (SPG, Sec. 3.3 and Algorithm 1)."""

from collections.abc import Sequence
from functools import reduce
from os import PathLike
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler

from common.errors import UserError
from common.interruption import check_interruption
from common.run.contexts import Contexts, evenly_spaced, write_contexts
from trainers.base.checkpoints import find_checkpoint, read_model
from trainers.modules.cgan import (
    DISCRIMINATOR_SPECIAL,
    GENERATOR_SPECIAL,
    Discriminator,
    Generator,
    GradientNorms,
    clip_gradients,
)
from trainers.modules.finite import require_finite
from trainers.modules.image_data import Batches
from trainers.modules.noise import image_noise
from trainers.modules.paired_batches import PairedBatchSampler
from trainers.spg_labels import LabelTrainer, check_targets, read_labels

CONTEXTS_PER_DOMAIN = 200  # that are kept for pictures


@TRAINER_REGISTRY.register()
class SPG_CGAN(LabelTrainer):
    """Trains the generator against the prompt labels of the source domains; classifies by generated prompts."""

    SETTINGS = "SPG"
    USED_BY = ("CLASS_TOKEN_POSITION",)

    def train(self) -> None:
        if len(self.dm.dataset.train_x) < 2:
            raise UserError(
                "The source domains have one training image, and the batch norm of SPG's generator takes two or more. "
                "Add images to them."
            )
        super().train()

    def training_batches(self, batch_sampler: BatchSampler, n_images: int) -> Batches:
        second = BatchSampler(RandomSampler(range(n_images)), batch_sampler.batch_size, batch_sampler.drop_last)
        return PairedBatchSampler(batch_sampler, second)

    def build_prompt_model(self) -> None:
        settings = self.settings
        self.encoder = self.build_encoder(
            n_ctx=settings.N_CTX, ctx_init=settings.CTX_INIT, class_token_position=settings.CLASS_TOKEN_POSITION
        )
        sizes = self.backbone.feature_size, self.encoder.n_ctx, self.encoder.ctx_dim
        self.generator = self.register_network("generator", Generator(*sizes, settings.LATENT_DIM))
        self.discriminator = self.register_network("discriminator", Discriminator(*sizes))

        # As published, where a run has one target; with several, all of them have to be named.
        targets, off = set(self.dm.dataset.target_domains), set(settings.GRAD_CLIP_OFF_TARGETS)
        self.clip_gradients = settings.GRAD_CLIP and not (targets and targets <= off)
        self.generator_norms = GradientNorms(
            settings.G_WEIGHT_NORM, settings.G_BIAS_NORM, settings.G_LAST_BIAS_NORM, GENERATOR_SPECIAL
        )
        self.discriminator_norms = GradientNorms(
            settings.D_WEIGHT_NORM, settings.D_BIAS_NORM, settings.D_ENDS_NORM, DISCRIMINATOR_SPECIAL
        )

    def load_model(self, directory: str | PathLike, epoch: int | None = None) -> None:
        """Load the generator of a run, ours or the authors'; classification needs no discriminator."""
        path = find_checkpoint(directory, "generator", epoch)
        checkpoint = read_model(path)
        try:
            self.generator.load_state_dict(checkpoint["state_dict"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise UserError(
                f"{path} holds no generator for this run (TRAINER.SPG.N_CTX {self.encoder.n_ctx}, LATENT_DIM "
                f"{self.settings.LATENT_DIM}, text width {self.encoder.ctx_dim}, feature size "
                f"{self.backbone.feature_size}): {' '.join(str(error).split())} Set these, and name the backbone "
                "(--backbone), as it was trained."
            ) from error
        print(f"Generator loaded from {path} (epoch {checkpoint.get('epoch')})")

    def before_train(self) -> None:
        check_targets(self, "GRAD_CLIP_OFF_TARGETS", "none of them")
        super().before_train()

    def load_labels(self) -> Tensor:
        (folder,) = self.label_folders()
        return read_labels(self, folder, self.stage1_cfg, "SPG_CoOp")

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        check_interruption()
        features = self.image_features.of_batch(batch)
        n = len(features) // 2
        features, independent = features[:n], features[n:]
        assert self.labels is not None  # training began with them
        labels = self.labels[batch["domain"][:n].to(self.device)]
        real, fake = torch.ones(n, 1, device=self.device), torch.zeros(n, 1, device=self.device)

        generated = self.generator(independent)
        # One pass over both halves, which costs little more than one over either.
        prompts = torch.cat([labels, generated.detach()])
        validity = self.discriminator(prompts, torch.cat([features, independent]))
        loss_d = F.mse_loss(validity[:n], real) + F.mse_loss(validity[n:], fake)
        self._update("discriminator", self.discriminator, self.discriminator_norms, loss_d)

        self.discriminator.requires_grad_(False)  # of no use in the generator's step, and half of its cost
        loss_g = F.mse_loss(self.discriminator(generated, independent), real)
        self._update("generator", self.generator, self.generator_norms, loss_g)
        self.discriminator.requires_grad_(True)
        return {"loss_d": loss_d.item(), "loss_g": loss_g.item()}

    def _update(self, name, network, norms, loss):
        self.model_zero_grad(name)
        self.model_backward(loss)
        if self.clip_gradients:
            clip_gradients(network, norms)
        self.model_update(name)

    def contexts(self, features: Tensor, indices: Sequence[int], draw: int = 0) -> Tensor:
        """Generate one context for each image: (B, E) features, B indices -> (B, n_ctx, D)."""
        noise = image_noise(self.cfg.SEED, indices, self.generator.latent_dim, draw)
        return self.generator(features, noise.to(features))

    def text_features(self, features: Tensor, indices: Sequence[int], draw: int = 0) -> Tensor:
        return self.encoder(self.contexts(features, indices, draw))

    def predict(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        draws = range(self.cfg.TEST.N_PROMPTS)
        return reduce(torch.add, (self.predict_draw(features, indices, draw) for draw in draws)) / len(draws)

    def predict_draw(self, features: Tensor, indices: Sequence[int], draw: int) -> Tensor:
        """Logits (B, C) with one prompt for each image, of the noise's draw number `draw`."""
        with self.backbone.autocast():
            text_features = self.text_features(features, indices, draw)
        return self.logits(features, text_features)

    def write_results(self) -> None:
        """Write some of the contexts first: the run is done when results.json is there."""
        write_contexts(self.output_dir, self.sample_contexts())
        super().write_results()

    @torch.no_grad()
    def sample_contexts(self) -> Contexts:
        """Contexts of at most 200 test images of each target domain; of a run that trained, also of its sources.

        For these it takes validation images, and the prompt labels. A test of another run's model leaves them out: it
        has no labels, and would encode images for nothing else.
        """
        domains = np.array(self.dm.dataset.domains)
        trained = self.labels is not None
        loaders = {"val": self.val_loader if trained else None, "test": self.test_loader}
        contexts: list[np.ndarray] = []
        names: list[str] = []
        splits: list[str] = []
        for split, loader in loaders.items():
            if loader is None:
                continue
            features = self.image_features.of_split(loader, split)
            of_image = np.array([item.domain for item in loader.dataset.data_source])
            for domain in np.unique(of_image):
                indices = np.flatnonzero(of_image == domain)
                indices = indices[evenly_spaced(len(indices), CONTEXTS_PER_DOMAIN)]
                chosen = torch.from_numpy(np.array(features[indices])).to(self.device)
                generated = self.contexts(chosen, indices.tolist()).float()
                what = f"Generated for images of {domains[domain]} ({split})"
                # In the precision that they are kept in.
                require_finite({"the contexts": generated.half()}, what, "Most likely OPTIM.LR is too high.")
                contexts.append(generated.cpu().numpy())
                names += [domains[domain]] * len(indices)
                splits += [split] * len(indices)
        shape = (0, self.encoder.n_ctx, self.encoder.ctx_dim)
        labels = np.zeros(shape) if self.labels is None else self.labels.cpu().numpy()
        known = [i for i, label in enumerate(labels) if not np.isnan(label).any()]
        return Contexts(np.concatenate(contexts), np.array(names), np.array(splits), labels[known], domains[known])
