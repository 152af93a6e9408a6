"""The base of all methods: a frozen CLIP, what learns beside it, and how both classify images."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader
from yacs.config import CfgNode

from common.interruption import check_interruption
from common.threads import plan_threads
from trainers.base.checkpoints import LEARNER, start_prompt_learner
from trainers.base.evaluation import Classifier
from trainers.base.image_features import ImageFeatures
from trainers.base.run_backbone import backbone_of_run
from trainers.base.run_data import ClassNamesOnly, adapt_to_run, loader_in_order, training_loader
from trainers.base.run_trainer import RunTrainer
from trainers.base.settled import optimiser_cfg, settled
from trainers.config_check import check_settings, only_warm_up, settings_without_effect
from trainers.modules.clip_backbone import Backbone
from trainers.modules.features import FeatureCache
from trainers.modules.full_prompt_encoder import memory_budget_mb, prompt_encoder
from trainers.modules.image_data import Batches
from trainers.modules.prompt_encoder import PromptEncoder
from trainers.modules.prompt_tokens import NameTooLong
from trainers.modules.published_names import own_names, publish_names
from trainers.modules.view_loader import ViewLoader

Network = TypeVar("Network", bound=nn.Module)


class FrozenClipTrainer(RunTrainer):
    """Base class of methods that adapt a frozen CLIP.

    A subclass says which networks learn (`build_prompt_model`), which texts images are classified against
    (`text_features`) and, if it is not the cross-entropy of their logits, by which `loss`, or all of its step
    (`forward_backward`). One whose image tower learns, too, says so (`IMAGE_TOWER_LEARNS`) and which it is
    (`image_tower`).

    Args:
        cfg: frozen config with the keys of trainers.config.
        backbone: the CLIP already loaded for this config's backbone and precision, to share it between trainers.
        classnames: build a trainer that predicts these classes and has no data set; None: with cfg's data set.
        done: whether cfg is that of a run that was done; then its values are taken as they are.

    Attributes:
        backbone: Backbone; clip_model: its model.
        image_features: ImageFeatures.
        batches: of indices of training images.
    """

    NETWORK = LEARNER  # name of what it learns, where that is one network: the folder of its checkpoints
    IMAGE_TOWER_LEARNS = False  # whether training changes what the image tower computes
    IMAGE_TOWER_DRAWS = False  # whether `image_tower` takes the images' indices as well, and draws by them
    # Own name -> name in published files, of methods that publish the whole model: see `publish_names`.
    PUBLISHED_NAMES: Mapping[str, str] | None = None
    # How names of tensors begin that published files hold and nothing is computed with.
    UNUSED_IN_FILES: tuple[str, ...] = ()
    NORMALISED_FEATURES = True  # whether the features that it gets of images are L2-normalised

    def __init__(
        self,
        cfg: CfgNode,
        backbone: Backbone | None = None,
        classnames: Sequence[str] | None = None,
        done: bool = False,
    ) -> None:
        self.given_backbone = backbone
        self.classnames = classnames
        self.done = done
        super().__init__(cfg)

    # ---- building ----

    @property
    def settings(self) -> CfgNode:
        """This trainer's own config node."""
        return self.cfg.TRAINER[self.SETTINGS]

    def check_cfg(self, cfg: CfgNode) -> None:
        if not self.done:
            check_settings(cfg, self.given_backbone.text.tokenizer if self.given_backbone else None)

    def build_data_loader(self) -> None:
        if self.cfg.VERBOSE and not self.done:
            for line in (*settings_without_effect(self.cfg), *only_warm_up(self.cfg)):
                print(line)
        # Before the data, since the images' size is the backbone's.
        self.backbone = backbone_of_run(self.cfg, self.settings.PREC, self.device, self.given_backbone, self.done)
        self.clip_model = self.backbone.model
        self.cfg = self.settled_cfg(self.cfg)
        self.settle_threads(plan_threads(self.backbone.n_tower_weights, self.cfg.DATALOADER.NUM_WORKERS))
        if self.classnames is None:
            super().build_data_loader()
            adapt_to_run(self, self.backbone.facts)
        else:
            self.dm = ClassNamesOnly(self.classnames)
            self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None
            self.num_classes, self.num_source_domains = self.dm.num_classes, 0
            self.lab2cname = self.dm.lab2cname
        if (loader := self.train_loader_x) is not None:
            self.batches = self.training_batches(loader.batch_sampler, len(loader.dataset))
            self.train_loader_x = training_loader(loader, self.batches, self.cfg.SEED, lambda: self.epoch)

    def settled_cfg(self, cfg: CfgNode) -> CfgNode:
        """The config with what follows from the backbone and from other keys; it does not change any more."""
        return settled(cfg, self.backbone)

    def training_batches(self, batch_sampler: BatchSampler, n_images: int) -> Batches:
        """The batches of indices that training draws; `batch_sampler` draws one batch of images at a time."""
        return batch_sampler

    def build_model(self) -> None:
        if type(self).image_tower is not FrozenClipTrainer.image_tower and not self.IMAGE_TOWER_LEARNS:
            raise TypeError(
                f"{type(self).__name__} has an image tower of its own, so it must set IMAGE_TOWER_LEARNS = True: "
                "else its features would be cached as those of the backbone."
            )
        amp = self.backbone.precision == "amp"
        self.scaler = torch.amp.GradScaler(self.device.type) if amp else None
        self.build_prompt_model()
        features = self.cfg.TRAINER.FEATURES
        self.image_features = ImageFeatures(
            self.backbone,
            self.cfg.INPUT.dump(),
            tuple(self.dm.dataset.domains),
            FeatureCache(features.CACHE_DIR if features.CACHE else None),
            self.cfg.DATALOADER.NUM_WORKERS,
            self.image_tower,
            self.IMAGE_TOWER_LEARNS,
            self.IMAGE_TOWER_DRAWS,
            self.normalises(self.cfg),
        )

    @classmethod
    def normalises(cls, cfg: CfgNode) -> bool:
        """Whether the features that a run gets of images are L2-normalised."""
        return cls.NORMALISED_FEATURES

    def image_tower(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images -> (B, E) features, not normalised; run under autocast where that is on."""
        return self.backbone.encode_image(images)

    def build_prompt_model(self) -> None:
        """Make the learnable networks and register them with their optimisers and schedules."""
        raise NotImplementedError

    @classmethod
    def splits_encoded(cls, cfg: CfgNode) -> tuple[str, ...]:
        """The splits whose features a run keeps in the cache, so that others may have encoded them: some of SPLITS."""
        if cls.IMAGE_TOWER_LEARNS:
            return ()
        splits = ["views"] if cfg.TRAINER.FEATURES.TRAIN_VIEWS else []
        splits += ["val"] if cfg.TEST.FINAL_MODEL == "best_val" else []
        return (*splits, *(() if cfg.TEST.NO_TEST else ("test",)))

    def register_network(self, name: str, network: Network) -> Network:
        """Put a network on the device and register it with an optimiser and schedule of its own; returns it."""
        network.to(self.device)
        if self.PUBLISHED_NAMES is not None:
            publish_names(network, self.PUBLISHED_NAMES)
        optimizer = build_optimizer(network, optimiser_cfg(self.cfg))
        self.register_model(name, network, optimizer, build_lr_scheduler(optimizer, self.cfg.OPTIM))
        return network

    def start_from_given(self) -> None:
        """Let `model` start from MODEL.INIT_WEIGHTS where a run that is to be trained names it."""
        if self.cfg.MODEL.INIT_WEIGHTS and not self.done:
            self.started_from = start_prompt_learner(self, self.cfg.MODEL.INIT_WEIGHTS)

    @classmethod
    def learned_in(cls, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the learned tensors of a state_dict by their own names; it may be of a whole model."""
        return own_names(saved, cls.PUBLISHED_NAMES or {})

    @staticmethod
    def sizes_in(learned: dict[str, Tensor]) -> dict[str, Any]:
        """Settings of this trainer's node that the tensors of a file tell; {} of a file that is another method's."""
        ctx = learned.get("ctx")
        if ctx is None or ctx.dim() not in (2, 3):
            return {}
        return {"N_CTX": ctx.shape[-2], "CTX_INIT": "", "CSC": ctx.dim() == 3}

    def build_encoder(self, classnames: Sequence[str] | None = None, **settings: Any) -> PromptEncoder:
        """The backbone's PromptEncoder for class names (None: this run's), within the memory budget."""
        memory_mb = self.cfg.TEST.MEMORY_MB or memory_budget_mb(self.device)
        names = self.dm.dataset.classnames if classnames is None else classnames
        return prompt_encoder(self.backbone.text, names, memory_mb=memory_mb, **settings)

    @torch.no_grad()
    def encode_template(self, template: str, normalised: bool = True) -> Tensor:
        """Text features (C, E), L2-normalised or not, of a template: words, then {} for the class name.

        Raises:
            ValueError: no words stand before the class name.
            NameTooLong: a class name does not fit between them.
        """
        before, after = template.removesuffix(".").split("{}")
        if not before.strip():
            raise ValueError(f"a template begins with words; {template!r} has none before the class name")
        # The encoder takes words before a class name, and any words as the class name.
        names = [name + after for name in self.dm.dataset.classnames]
        try:
            encoder = self.build_encoder(names, ctx_init=before.strip(), normalised=normalised)
        except NameTooLong as error:
            raise NameTooLong(error.what, f"Shorten the name, around which {template!r} stands.") from error
        return encoder(encoder.initial_context()).float()

    # ---- logits ----

    def text_features(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        """The text features that images are classified against.

        Args:
            features: (B, E) image features.
            indices: B indices of the images within their split.

        Returns:
            (C, E) for all of them or (B, C, E) for each its own.
        """
        raise NotImplementedError

    def logits(self, features: Tensor, text_features: Tensor) -> Tensor:
        """exp(logit_scale) * f . t_c, and the backbone's bias: (B, E) with (C, E) or (B, C, E) -> (B, C)."""
        text_features = text_features.float()
        if text_features.dim() == 2:
            similarity = features @ text_features.t()
        else:
            similarity = torch.einsum("be,bce->bc", features, text_features)
        logits, bias = self.backbone.logit_scale * similarity, self.backbone.logit_bias
        return logits if bias is None else logits + bias

    def predict(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        """Logits (B, C) of images by their features (B, E) and indices within their split, in evaluation mode."""
        with self.backbone.autocast():
            text_features = self.text_features(features, indices)
        return self.logits(features, text_features)

    def classifier(self) -> Classifier:
        """What classifies images until something is learned again: methods with one text for all encode it here."""
        return self.predict

    def by_one_text(self) -> Classifier:
        """A classifier by the text features of now, the same for all images: `text_features` is asked for no image."""
        no_image: Any = None
        with torch.no_grad(), self.backbone.autocast():
            text_features = self.text_features(no_image, no_image)
        return lambda features, indices: self.logits(features, text_features)

    @cached_property
    def source_loader(self) -> DataLoader:
        """The training images as test images are looked at: in order, without augmentation."""
        transform = (self.val_loader or self.test_loader).dataset.transform
        return loader_in_order(self.cfg, self.dm.dataset.train_x, transform)

    # ---- training ----

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """One step on the loss, which has the logits of one batch; methods that learn otherwise override it."""
        check_interruption()
        features, labels = self.image_features.of_batch(batch), batch["label"].to(self.device)
        with self.backbone.autocast():
            text_features = self.training_text_features(features, batch)
        logits = self.logits(features, text_features)
        loss = self.loss(logits, labels, text_features.float())
        self.model_backward_and_update(loss)
        return {"loss": loss.item(), "acc": compute_accuracy(logits, labels)[0].item()}

    def training_text_features(self, features: Tensor, batch: dict[str, Any]) -> Tensor:
        """What `text_features` has for a training batch with image features (B, E)."""
        return self.text_features(features, batch["index"])

    def loss(self, logits: Tensor, labels: Tensor, text_features: Tensor) -> Tensor:
        """What a step makes less of: the cross-entropy of logits (B, C) and labels (B,).

        Methods that add to it have the text features, too, (C, E) or (B, C, E).
        """
        return F.cross_entropy(logits, labels)

    def before_train(self) -> None:
        super().before_train()
        if self.cfg.TRAINER.FEATURES.TRAIN_VIEWS:
            self.train_loader_x = self.build_view_loader(self.train_loader_x)
            self.threads.use(workers=0)  # none is needed any more

    def build_view_loader(self, loader: DataLoader) -> DataLoader | ViewLoader:
        """A loader of features drawn from TRAIN_VIEWS random views of each training image, encoded once."""
        n_views, batch_size = self.cfg.TRAINER.FEATURES.TRAIN_VIEWS, self.cfg.DATALOADER.TEST.BATCH_SIZE
        items: Any = loader.dataset  # SeededItems of Dassl's data set
        return self.image_features.views(items.dataset, n_views, batch_size, self.batches)
