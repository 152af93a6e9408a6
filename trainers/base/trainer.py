"""The life of a run: what all our trainers share beside the parts in this room."""

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from dassl.data.data_manager import build_data_loader
from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.optimizer import AVAI_OPTIMS
from dassl.utils import set_random_seed
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader
from yacs.config import CfgNode

from common.errors import UserError
from common.interruption import check_interruption
from common.progress import progress
from common.run.history import read_history, write_history
from common.run.identity import TRAINED_FILE, RunIdentity, identity_differences, read_identity, write_identity
from common.run.records import write_record
from common.threads import Threads, plan_threads, usable_cores, waiting
from datasets.adapted import adapted
from trainers.base.checkpoints import (
    BEST,
    LEARNER,
    best_of,
    find_checkpoint,
    holds_objects,
    resume,
    start_prompt_learner,
)
from trainers.base.evaluation import Classifier, FeatureBatches, classify
from trainers.base.image_features import ImageFeatures, squashing
from trainers.base.not_finite import check_loss, check_networks, why_not_finite
from trainers.base.run_record import (
    UNKNOWN,
    Course,
    OtherRun,
    Said,
    Tested,
    check_use,
    identity_of,
    measured,
    read_training_record,
    training_record,
    write_outcome,
)
from trainers.base.run_threads import threads_of_run
from trainers.base.settled import settled
from trainers.config_check import check_settings, counted_contexts, settings_without_effect
from trainers.methods import METHODS
from trainers.modules.clip_backbone import Backbone, kept_backbone
from trainers.modules.features import FeatureCache, Shard
from trainers.modules.finite import require_finite
from trainers.modules.full_prompt_encoder import prompt_encoder
from trainers.modules.image_data import Batches
from trainers.modules.prompt_encoder import PromptEncoder
from trainers.modules.seeded_items import SeededBatches, SeededItems
from trainers.modules.view_loader import ViewLoader

CPU_MEMORY_MB = 2048
GPU_MEMORY_SHARE = 0.25  # of the device's memory
SPLITS = ("views", "val", "test")  # what images are encoded of; "views": TRAIN_VIEWS of each training image

Network = TypeVar("Network", bound=nn.Module)


class ClassNamesOnly:
    """Takes the place of Dassl's DataManager where there are no images."""

    def __init__(self, classnames: Sequence[str]) -> None:
        self.dataset = SimpleNamespace(classnames=list(classnames), domains=(), source_domains=(), target_domains=())
        self.num_classes = len(classnames)
        self.lab2cname = dict(enumerate(classnames))


class FrozenClipTrainer(TrainerX):
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
        asked_cfg: cfg as it was given, without what follows from the backbone and from other keys.
        backbone: Backbone; clip_model: its model.
        image_features: ImageFeatures.
        threads: that it computes with.
        course: of the training.
        tested: split -> what came out of its last evaluation.
        other: the run whose model was loaded to be tested; None: this one's.
    """

    SETTINGS = ""  # name of the trainer's node under cfg.TRAINER
    NETWORK = LEARNER  # name of what it learns, where that is one network: the folder of its checkpoints
    IMAGE_TOWER_LEARNS = False  # whether training changes what the image tower computes
    IMAGE_TOWER_DRAWS = False  # whether `image_tower` takes the images' indices as well, and draws by them
    # Names of weights that are minus infinity for classes without training images, whose logits are, too.
    MINUS_INFINITY: tuple[str, ...] = ()
    # Keys of its node that say how what was learned is used, where no shape of it tells: tests need those of training.
    USED_BY: tuple[str, ...] = ()
    # Names in published files of its method of what they hold and nothing is computed with.
    UNUSED_IN_FILES: tuple[str, ...] = ()
    NORMALISED_FEATURES = True  # whether the features that it gets of images are L2-normalised
    started_from = ""  # fingerprint of the prompts that training starts from, where they are given
    restart_on_difference = False  # whether a run starts anew where the folder holds one with other settings

    # What Dassl's trainer sets.
    cfg: CfgNode
    dm: Any
    train_loader_x: Any
    val_loader: Any
    test_loader: Any
    _scheds: dict[str, Any]

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
        self.asked_cfg = cfg
        self.course = Course()
        self.tested: dict[str, Tested] = {}
        self.other: OtherRun | None = None
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
        for line in settings_without_effect(self.cfg) if self.cfg.VERBOSE and not self.done else ():
            print(line)
        # Before the data, since the images' size is the backbone's.
        named = self.cfg.MODEL.BACKBONE
        self.backbone = self.given_backbone or kept_backbone(named.NAME, self.device, self.settings.PREC, named.PATH)
        self.clip_model = self.backbone.model
        if self.given_backbone is None and not self.done:
            check_settings(self.cfg, self.backbone.text.tokenizer)
        for method in METHODS:
            if method.trainer == self.cfg.TRAINER.NAME:
                method.check_backbone(named.NAME, self.backbone.is_vit)
        if self.given_backbone is None and self.cfg.VERBOSE:
            for note in self.backbone.notes:
                print(note)
        text = self.backbone.text
        if not text.can_be_cut and self.given_backbone is None and self.cfg.VERBOSE:
            print(
                f"Note: the text tower of {named.NAME} looks at all positions of a prompt, so each is encoded over all "
                f"{text.context_length}, and what prompts begin with is not shared. That takes longer."
            )
        self.cfg = self.settled_cfg(self.cfg)
        self.settle_threads(plan_threads(self.backbone.n_tower_weights, self.cfg.DATALOADER.NUM_WORKERS))
        if self.classnames is None:
            super().build_data_loader()
            self.adapt_dataset()
            for loader in (self.val_loader, self.test_loader):
                if loader is not None:
                    self.adapt_test_transform(loader.dataset.transform)
        else:
            self.dm = ClassNamesOnly(self.classnames)
            self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None
            self.num_classes, self.num_source_domains = self.dm.num_classes, 0
            self.lab2cname = self.dm.lab2cname
        if self.train_loader_x is not None:
            self.train_loader_x = self.build_train_loader(self.train_loader_x)

    def adapt_dataset(self) -> None:
        """Give a data set that was written for Dassl alone what our trainers ask of one."""
        dataset = adapted(self.dm.dataset, self.cfg)
        if dataset is self.dm.dataset:
            return
        self.dm.dataset = dataset
        loaders = (
            (self.train_loader_x, dataset.train_x),
            (self.val_loader, dataset.val),
            (self.test_loader, dataset.test),
        )
        for loader, items in loaders:
            if loader is not None:
                loader.dataset.data_source = items

    def adapt_test_transform(self, transform: Any) -> Any:
        """Let one of Dassl's transforms for testing squash images to a square, where the backbone knows them so."""
        return squashing(transform, self.cfg.INPUT, self.backbone.facts)

    def settled_cfg(self, cfg: CfgNode) -> CfgNode:
        """The config with what follows from the backbone and from other keys; it does not change any more."""
        return settled(cfg, self.backbone)

    def build_train_loader(self, loader: DataLoader) -> DataLoader:
        """Dassl's training loader, with this trainer's batches and augmentation that any number of workers repeats."""
        dataset: Any = loader.dataset
        batch_sampler: Any = loader.batch_sampler
        self.batches = self.training_batches(batch_sampler, len(dataset))
        # Without a seed, one of chance, since each worker would augment alike otherwise.
        seed = self.cfg.SEED if self.cfg.SEED >= 0 else int(np.random.SeedSequence().generate_state(1)[0])
        return DataLoader(
            SeededItems(dataset, seed),
            batch_sampler=SeededBatches(self.batches, lambda: self.epoch),
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            persistent_workers=loader.num_workers > 0,
            # Its own, or the draws from the global one would depend on whether workers were just started.
            generator=torch.Generator(),
        )

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

    def encode_only(self, splits: Sequence[str], shard: Shard | None = None) -> None:
        """Encode images for runs to come, as each of them would, and keep their features in the cache.

        Args:
            splits: some of SPLITS.
            shard: which part of each domain's; None: all of it.

        Raises:
            UserError: there is no cache.
        """
        features, batch_size = self.cfg.TRAINER.FEATURES, self.cfg.DATALOADER.TEST.BATCH_SIZE
        if self.IMAGE_TOWER_LEARNS or not features.CACHE:
            why = "TRAINER.FEATURES.CACHE is False" if not features.CACHE else "its image tower learns"
            raise UserError(f"--encode has no use for {self.cfg.TRAINER.NAME}: {why}, so no features are kept.")
        if "views" in splits and not features.TRAIN_VIEWS:
            raise UserError("--encode names views, but TRAINER.FEATURES.TRAIN_VIEWS is 0: set how many of each image.")
        self.take_threads(note=False)
        for split in splits:
            loader = {"views": self.train_loader_x, "val": self.val_loader, "test": self.test_loader}[split]
            if loader is None:
                continue  # the domain is too small to have one
            if split == "views":
                how = loader.dataset.dataset, features.TRAIN_VIEWS, batch_size
                if shard is None:
                    self.image_features.views(*how, self.batches)
                else:
                    self.image_features.keep_shard_of_views(*how, shard)
            elif shard is None:
                self.image_features.of_split(loader, split)
            else:
                self.image_features.keep_shard(loader, split, shard)

    def register_network(self, name: str, network: Network) -> Network:
        """Put a network on the device and register it with an optimiser and schedule of its own; returns it."""
        network.to(self.device)
        optimizer = build_optimizer(network, self.optim_cfg())
        self.register_model(name, network, optimizer, build_lr_scheduler(optimizer, self.cfg.OPTIM))
        return network

    def start_from_given(self) -> None:
        """Let `model` start from MODEL.INIT_WEIGHTS where a run that is to be trained names it."""
        if self.cfg.MODEL.INIT_WEIGHTS and not self.done:
            self.started_from = start_prompt_learner(self, self.cfg.MODEL.INIT_WEIGHTS)

    @staticmethod
    def learned_in(whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """What was learned in the state_dict of a published file that holds the whole model, by our names."""
        prefix = "prompt_learner."
        return {key.removeprefix(prefix): value for key, value in whole.items() if key.startswith(prefix)}

    @staticmethod
    def sizes_in(learned: dict[str, Tensor]) -> dict[str, Any]:
        """Settings of this trainer's node that the tensors of a file tell; {} of a file that is another method's."""
        ctx = learned.get("ctx")
        if ctx is None or ctx.dim() not in (2, 3):
            return {}
        return {"N_CTX": ctx.shape[-2], "CTX_INIT": "", "CSC": ctx.dim() == 3}

    def optim_cfg(self) -> CfgNode:
        """cfg.OPTIM for the optimiser: with AdamW fused where it may be, and Dassl can."""
        optim = self.cfg.OPTIM
        if optim.NAME == "adamw" and self.cfg.TRAINER.FUSED_ADAMW and "adamw_fused" in AVAI_OPTIMS:
            optim = optim.clone()
            optim.defrost()
            optim.NAME = "adamw_fused"
        return optim

    def build_encoder(self, classnames: Sequence[str] | None = None, **settings: Any) -> PromptEncoder:
        """The backbone's PromptEncoder for class names (None: this run's), within the memory budget."""
        memory_mb = self.cfg.TEST.MEMORY_MB
        if not memory_mb:
            memory_mb = CPU_MEMORY_MB
            if self.device.type == "cuda":
                total = torch.cuda.get_device_properties(self.device).total_memory
                memory_mb = int(total * GPU_MEMORY_SHARE) // 2**20
        names = self.dm.dataset.classnames if classnames is None else classnames
        return prompt_encoder(self.backbone.text, names, memory_mb=memory_mb, **settings)

    @torch.no_grad()
    def encode_template(self, template: str, normalised: bool = True) -> Tensor:
        """Text features (C, E), L2-normalised or not, of a template: words, then {} for the class name.

        Raises:
            ValueError: no words stand before the class name.
        """
        before, after = template.removesuffix(".").split("{}")
        if not before.strip():
            raise ValueError(f"a template begins with words; {template!r} has none before the class name")
        # The encoder takes words before a class name, and any words as the class name.
        names = [name + after for name in self.dm.dataset.classnames]
        encoder = self.build_encoder(names, ctx_init=before.strip(), normalised=normalised)
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

    def load_model(self, directory: str | PathLike, epoch: int | None = None) -> None:
        """Load the networks of a run, as Dassl does.

        Raises:
            UserError: one is missing or damaged, does not fit, or is not finite.
        """
        super().load_model(directory, epoch=epoch)
        for name in self.get_model_names():
            cause = "The training that wrote it was broken by then: use another epoch (--load-epoch) or run."
            require_finite(self._models[name].state_dict(), f"{name} in {directory}", cause, self.MINUS_INFINITY)

    @cached_property
    def source_loader(self) -> DataLoader:
        """The training images as test images are looked at: in order, without augmentation."""
        return build_data_loader(
            self.cfg,
            data_source=self.dm.dataset.train_x,
            batch_size=self.cfg.DATALOADER.TEST.BATCH_SIZE,
            tfm=(self.val_loader or self.test_loader).dataset.transform,
            is_train=False,
        )

    # ---- training ----

    def settle_threads(self, threads: Threads) -> None:
        """Compute with these numbers of threads from now on."""
        self.threads = threads
        threads.use(self.cfg.DATALOADER.NUM_WORKERS)

    def take_threads(self, note: bool = True) -> None:
        """Take the threads of the run that the output folder holds, and note there those of a new one.

        Args:
            note: False where only another run's model is tested, maybe in that run's folder.
        """
        threads = threads_of_run(self.output_dir, self.threads, self.cfg.DATALOADER.NUM_WORKERS, note)
        self.settle_threads(threads)
        if self.cfg.VERBOSE:
            print(
                f"Threads: {threads.alone}, beside loader workers {threads.beside_workers} ({waiting()}); "
                f"cores: {usable_cores()}"
            )

    def train(self) -> None:
        self.take_threads()
        super().train()

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

    def detect_anomaly(self, loss: Tensor) -> None:
        check_loss(self, loss)

    def model_backward_and_update(self, loss: Tensor, names: str | list[str] | None = None) -> None:
        if self.scaler is None:
            super().model_backward_and_update(loss, names)
            return
        self.detect_anomaly(loss)
        self.model_zero_grad(names)
        self.scaler.scale(loss).backward()
        for name in self.get_model_names(names):
            self.scaler.step(self._optims[name])
        self.scaler.update()

    def before_train(self) -> None:
        if self.cfg.TEST.FINAL_MODEL == "best_val" and self.val_loader is None:
            raise UserError(
                "TEST.FINAL_MODEL is best_val, but the source domains are too small for a validation split to choose "
                "an epoch by. Add images, or set TEST.FINAL_MODEL last_step."
            )
        super().before_train()
        course = self.course
        self.best_result, course.best_epoch = best_of(course.history, self.cfg.TEST.SELECT_BY)
        if course.history:
            course.started = time.time() - course.history[-1]["seconds"]
            if self.scaler is not None:
                self.scaler.load_state_dict(course.history[-1]["scaler"])
        write_identity(self.output_dir, self.identity().flat)
        self.epoch_bar = progress(
            total=self.max_epoch,
            initial=self.start_epoch,
            description=f"{self.cfg.TRAINER.NAME} ({', '.join(self.dm.dataset.source_domains)})",
            unit="epoch",
        )
        if self.cfg.TRAINER.FEATURES.TRAIN_VIEWS:
            self.train_loader_x = self.build_view_loader(self.train_loader_x)
            self.threads.use(workers=0)  # none is needed any more

    def build_view_loader(self, loader: DataLoader) -> DataLoader | ViewLoader:
        """A loader of features drawn from TRAIN_VIEWS random views of each training image, encoded once."""
        n_views, batch_size = self.cfg.TRAINER.FEATURES.TRAIN_VIEWS, self.cfg.DATALOADER.TEST.BATCH_SIZE
        items: Any = loader.dataset  # SeededItems of Dassl's data set
        return self.image_features.views(items.dataset, n_views, batch_size, self.batches)

    def before_epoch(self) -> None:
        super().before_epoch()
        self._train_scalars: dict[str, float] = {}
        if self.cfg.SEED >= 0:
            # Each epoch's randomness follows from seed and epoch alone, so that a resumed run draws the same batches
            # and noise, and no random state needs to be saved. (Augmentation: see SeededItems.)
            mixed = np.random.SeedSequence([self.cfg.SEED, self.epoch]).generate_state(1)[0]
            set_random_seed(int(mixed))

    def run_epoch(self) -> None:
        loader, title = self.train_loader_x, f"Epoch {self.epoch + 1}"
        try:
            # Dassl's loop takes the bar for the loader.
            with progress(loader, len(loader), description=title, unit="batch") as bar:
                self.train_loader_x = bar
                super().run_epoch()
        finally:
            self.train_loader_x = loader
        self.update_lr()

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        # Dassl's running means of the epoch pass by here, so the last ones are the epoch's means.
        if tag.startswith("train/") and tag != "train/lr":
            self._train_scalars[tag.removeprefix("train/")] = float(scalar_value)
        super().write_scalar(tag, scalar_value, global_step)

    def after_epoch(self) -> None:
        """Training-domain validation: keep the epoch that is best on the source domains' val splits.

        Killed at any point in here, a run does the epoch again, and all of this with it.
        """
        check_networks(self)
        course, is_best = self.course, False
        entry: dict[str, Any] = {"val_accuracy": None, "losses": self._train_scalars}
        if self.cfg.TEST.FINAL_MODEL == "best_val":
            chosen_by = self.test(split="val")
            entry["val_accuracy"] = self.tested["val"].metrics["accuracy"]
            entry[f"val_{self.cfg.TEST.SELECT_BY}"] = chosen_by
            is_best = self.may_be_chosen() and chosen_by > self.best_result
            self.epoch_bar.set_postfix(val=f"{chosen_by:.1f} %")
        # Begun anew, a run finds what it had made itself.
        entry["found"] = course.reused if course.history else self.reused()
        entry["seconds"] = course.seconds
        if self.scaler is not None:
            entry["scaler"] = self.scaler.state_dict()
        if not self.may_be_chosen():
            entry["counts"] = False
        course.history.append(entry)
        write_history(self.output_dir, course.history)
        if is_best:
            self.best_result, course.best_epoch = chosen_by, self.epoch + 1
            self.save_model(self.epoch, self.output_dir, val_result=chosen_by, model_name=BEST)
        self.epoch_bar.update()
        self.save_model(self.epoch, self.output_dir)
        self._remove_checkpoint(self.epoch - 1)  # epochs are counted from 1 in file names: the last two are kept

    def may_be_chosen(self) -> bool:
        """Whether the epoch that just ended is among those that validation chooses from."""
        return True

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """As Dassl's, without the state of schedules that could not be read back, see `checkpoints.holds_objects`."""
        schedules = self._scheds
        self._scheds = {
            name: None if schedule is None or holds_objects(schedule) else schedule
            for name, schedule in schedules.items()
        }
        try:
            super().save_model(*args, **kwargs)
        finally:
            self._scheds = schedules

    def _remove_checkpoint(self, epoch):
        """Keep the last two checkpoints, one of which may turn out to be damaged, and every CHECKPOINT_FREQ-th."""
        frequency = self.cfg.TRAIN.CHECKPOINT_FREQ
        if epoch < 1 or (frequency > 0 and epoch % frequency == 0):
            return
        for name in self.get_model_names():
            Path(self.output_dir, name, f"model.pth.tar-{epoch}").unlink(missing_ok=True)

    def after_train(self) -> None:
        self.epoch_bar.close()
        # Its workers end here; left to the garbage collector, they might be waited for in a process forked later.
        self.train_loader_x = None
        self._remove_checkpoint(self.max_epoch - 1)
        folders = [Path(self.output_dir, name) for name in self.get_model_names()]
        n_bytes = sum(path.stat().st_size for folder in folders for path in folder.glob("model*"))
        print(f"Checkpoints take {n_bytes / 2**20:.1f} MB in {self.output_dir}")
        super().after_train()
        self.write_outcome()

    # ---- evaluation ----

    def test(self, split: str | None = None) -> float:
        """Evaluate on a split ("val" or "test", default cfg.TEST.SPLIT).

        Returns:
            the metric that TEST.SELECT_BY names.

        Raises:
            UserError: the evaluator has no such metric.
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        loader = self.val_loader if split == "val" else self.test_loader
        print(f"Evaluate on the *{split}* set")

        features = self.image_features.of_split(loader, split)
        items = loader.dataset.data_source
        labels = torch.tensor([item.label for item in items])
        batches, predicted, said = FeatureBatches(features, loader.batch_size), [], []

        def explain(features: Tensor, indices: range) -> str:
            domains = sorted({self.dm.dataset.domains[items[i].domain] for i in indices})
            when = f" after epoch {self.epoch + 1}" if split == "val" else ""
            images = f"images {indices.start + 1} to {indices.stop} of the {split} split ({', '.join(domains)}){when}"
            return why_not_finite(self, images, features, indices)

        # Loader workers wait meanwhile.
        with self.threads.all(), progress(batches, description=f"Classifying {split}", unit="batch") as bar:
            for indices, logits in classify(bar, self.classifier(), self.device, explain, bool(self.MINUS_INFINITY)):
                self.evaluator.process(logits, labels[indices.start : indices.stop].to(self.device))
                predicted.append(logits.argmax(dim=-1))
                if split == "test":
                    said.append(Said.of(logits))

        found = self.evaluator.evaluate()
        metrics = measured(found, labels.numpy(), torch.cat(predicted).cpu().numpy())
        self.tested[split] = Tested(metrics, Said.joined(said))
        for name, value in metrics.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        select_by, evaluator = self.cfg.TEST.SELECT_BY, self.cfg.TEST.EVALUATOR
        if select_by in metrics:
            return metrics[select_by]
        if select_by in found:
            raise UserError(
                f"TEST.SELECT_BY is {select_by!r}, which the evaluator {evaluator} measures as {found[select_by]} on "
                f"the {split} split, no finite number to choose by; there are {', '.join(metrics)}."
            )
        raise UserError(
            f"TEST.SELECT_BY is {select_by!r}, which the evaluator {evaluator} does not measure; accepted: "
            f"{', '.join(metrics)}."
        )

    def test_run(self, model_dir: str, epoch: int | None = None) -> None:
        """Test the model of another run (or of none, for methods that learn nothing).

        Raises:
            UserError: it was trained with another backbone or by another method, would be used otherwise than it was
                trained, or cannot be loaded.
        """
        backbone = read_identity(model_dir).get("backbone")
        if backbone not in (None, self.backbone.sha256):
            raise UserError(
                f"The model in {model_dir} was trained with another CLIP than {self.cfg.MODEL.BACKBONE.NAME}, whose "
                "weights differ. Name the backbone that it was trained with."
            )
        if self.get_model_names():
            keys = [f"TRAINER.{self.SETTINGS}.{key}" for key in self.USED_BY]
            check_use(model_dir, self.asked_cfg, type(self), keys)
        self.take_threads(note=False)
        self.load_model(model_dir, epoch=epoch)
        record = read_training_record(model_dir)
        if self.get_model_names():
            record["selection"] = f"epoch {epoch}"
            if epoch is None:
                best = find_checkpoint(model_dir, self.get_model_names()[0]).name == BEST
                record["selection"] = "best_val" if best else "last_step"
        self.other = OtherRun(os.path.abspath(model_dir), epoch, record)
        self.test()

    # ---- records ----

    def write_outcome(self) -> None:
        """Write the results of a run that was tested; of another, what its model was trained on."""
        if "test" in self.tested:
            self.write_results()
        else:
            write_record(Path(self.output_dir) / TRAINED_FILE, self.training_record())

    def training_record(self) -> dict:
        """What results of this run's model have to say of its training, by the names of results.json."""
        sha256 = self.identity().settings_sha256()
        return training_record(self.cfg, self.dm.dataset, sha256, self.n_trained(), self.course)

    def n_trained(self) -> list[int]:
        """Numbers of parameters that training changes, stage by stage; [] of a method that learns nothing."""
        networks = [self._models[name] for name in self.get_model_names()]
        return [sum(weights.numel() for network in networks for weights in network.parameters())] if networks else []

    def reused(self) -> dict[str, float | None]:
        """What earlier runs had made for this one, with the seconds that took them; None: not known."""
        return {"image features": None} if self.image_features.cache.oldest_read < self.course.started else {}

    def write_results(self) -> None:
        """Write predictions and results.json of a run whose test is done."""
        identity, other = self.identity(), self.other
        # Of another run's model, this run's settings do not tell how it was trained.
        training, sha256 = self.training_record(), identity.settings_sha256()
        if other is not None:
            training = other.record
            sha256 = identity.settings_sha256(**{"of the model's training": training.get("settings_sha256", UNKNOWN)})
        write_outcome(
            self.cfg,
            self.dm.dataset,
            self.backbone,
            self.tested["test"],
            self.course,
            training,
            sha256,
            other,
            self.threads,
        )

    def identity(self) -> RunIdentity:
        """What makes this run what it is."""
        # As asked for, as in runs from before the number of a context's words took the place of N_CTX in the config.
        identity = identity_of(self.asked_cfg, self.SETTINGS, self.dm.dataset, self.backbone)
        if not self.started_from:
            return identity
        return replace(identity, settings={**identity.settings, "MODEL.INIT_WEIGHTS": self.started_from})

    def resume_model_if_exist(self, directory: str | PathLike) -> int:
        if read_history(self.output_dir, 1):  # a run that was begun from another one goes on by itself
            directory = self.output_dir
        counted = counted_contexts(self.cfg, self.backbone.text.tokenizer)
        differences = identity_differences(directory, self.identity().flat, counted)
        if differences and self.restart_on_difference:
            print(f"The unfinished run in {directory} had other settings ({differences}); starting anew")
            return 0
        if differences:
            raise UserError(
                f"{directory} holds an unfinished run with other settings: {differences}. Delete it to start anew, or "
                "name another --output-dir."
            )
        networks = {name: (self._models[name], self._optims[name], self._scheds[name]) for name in self._models}
        selects = self.cfg.TEST.SELECT_BY if self.cfg.TEST.FINAL_MODEL == "best_val" else None
        start_epoch, self.course.history = resume(directory, networks, selects, self.MINUS_INFINITY)
        return start_epoch
