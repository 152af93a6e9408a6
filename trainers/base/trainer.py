"""The base class of all methods: adapt a frozen CLIP, select an epoch, resume, test and record a run.

The sections of `PromptTrainer` follow a run: build, logits, train step, epochs, checkpoints, test and records.
"""

import contextlib
import os
import time
import warnings
from collections.abc import Mapping, Sequence
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
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import BatchSampler, DataLoader
from yacs.config import CfgNode

from common.errors import UserError
from common.interruption import check_interruption
from common.loader_workers import prepare_loader_workers
from common.messages import some
from common.progress import progress
from common.run.history import read_history, write_history
from common.run.identity import TRAINED_FILE, identity_differences, read_identity, write_identity
from common.run.records import write_record
from common.threads import Threads, loader_workers, plan_threads
from datasets.adapted import adapted
from datasets.readable import warn_of_orientation
from trainers.base.checkpoints import (
    BEST,
    PROMPT_LEARNER,
    best_epoch,
    find_checkpoint,
    fit_prompts,
    load_newest,
    prompts_sha256,
    read_prompts,
    remove_checkpoint,
    saved_epochs,
)
from trainers.base.evaluation import Classifier, Evaluation, FeatureBatches, Predictions, classify, measured
from trainers.base.event_files import remove_scalars
from trainers.base.image_features import ImageFeatures, follow_facts, follow_resize_mode
from trainers.base.run_record import (
    Course,
    OtherRun,
    check_use,
    identity_of,
    read_training_record,
    settings_of,
    training_record,
    write_test_files,
)
from trainers.base.run_threads import threads_of_run
from trainers.config import SHARED_FOLDERS, set_key, value_of
from trainers.cross_checks import check_settings, check_words, settings_notes
from trainers.methods import method_of
from trainers.modules.backbone_source import OF_IMAGES, Facts
from trainers.modules.clip_backbone import Backbone, load_backbone
from trainers.modules.features import FeatureCache
from trainers.modules.finite import all_finite, require_finite
from trainers.modules.full_prompt_encoder import memory_budget_mb, prompt_encoder
from trainers.modules.prompt_encoder import PromptEncoder
from trainers.modules.prompt_tokens import NameTooLong, check_class_names
from trainers.modules.published_names import own_names, publish_names
from trainers.modules.sampling import Batches, SeededBatches, SeededItems, ViewLoader

Network = TypeVar("Network", bound=nn.Module)
# Keys and sections that only steps of an optimiser read.
STEP_KEYS = (
    *("OPTIM", "TRAIN", "DATALOADER.TRAIN_X", "TEST.SELECT_BY"),
    *("TRAINER.FEATURES.TRAIN_VIEWS", "TRAINER.FUSED_ADAMW"),
)


class PromptTrainer(TrainerX):
    """Adapts a frozen CLIP to the source domains and tests it on the target domains.

    A method overrides `build_prompt_model` (its networks), `text_features` (the classifier's weights) and, where it
    does not minimise cross-entropy, `loss` or `forward_backward`. A method with a learned image tower sets
    `IMAGE_TOWER_LEARNS` and overrides `image_tower`.

    Dassl's constructor calls `check_cfg`, then `build_data_loader`, which also loads the CLIP and completes cfg, then
    `build_model`, which calls `build_prompt_model`.

    Args:
        cfg: frozen config with the keys of trainers.config.
        backbone: a loaded CLIP to share between trainers; None loads the one of cfg.
        classnames: classes of a trainer without a data set; None builds cfg's data set.
        done: True rebuilds a saved run: without validation of cfg, notes and MODEL.INIT_WEIGHTS.

    Attributes:
        asked_cfg: cfg without the values that follow from the backbone.
        image_features: encodes and caches features of images.
        batches: batch sampler of training indices.
        threads: numbers of threads of this run.
        course: training history.
        tested: split -> result of its last evaluation.
        other: the run that `test_run` loaded a model from; None: this run.
    """

    SETTINGS = ""  # node of the method under cfg.TRAINER
    NETWORK = PROMPT_LEARNER  # folder of the checkpoints of a method with one network
    IMAGE_TOWER_LEARNS = False  # True: training changes image features, so they are never cached
    IMAGE_TOWER_DRAWS = False  # True: `image_tower` also takes the images' indices, as seeds of its draws
    NORMALISED_FEATURES = True
    # Own name -> published name of a method that publishes the whole model: see `publish_names`.
    PUBLISHED_NAMES: Mapping[str, str] | None = None
    OPTIONAL_KEYS: tuple[str, ...] = ()  # prefixes of tensors that published files may lack
    UNUSED_KEYS: tuple[str, ...] = ()  # prefixes of tensors in published files that no computation reads
    TEST_KEYS: tuple[str, ...] = ()  # config keys that test and training must share and that tensor shapes do not show
    MINUS_INFINITY: tuple[str, ...] = ()  # tensors with -inf for classes that have no training image

    UNREAD: tuple[str, ...] = ("INPUT.SIZE", "TEST.N_PROMPTS")  # shared config keys and sections without effect
    TAKES_INIT_WEIGHTS = False  # True: it can start from prompts of MODEL.INIT_WEIGHTS
    FINAL_MODELS: tuple[str, ...] = ("best_val", "last_step")  # accepted values of TEST.FINAL_MODEL
    LEAST_BATCH: Mapping[str, tuple[int, str]] = {}  # loader -> smallest batch size, reason
    WORDS: tuple[str, ...] = ("CTX_INIT",)  # keys of initial words, which must have the same number of tokens

    started_from = ""  # hash of the prompts of MODEL.INIT_WEIGHTS
    restart_on_difference = False  # True: a run with other settings in the output folder is trained again

    backbone: Backbone
    cfg: CfgNode
    dm: Any
    train_loader_x: Any
    val_loader: Any
    test_loader: Any
    model: Any
    _scheds: dict[str, Any]

    def __init__(
        self,
        cfg: CfgNode,
        backbone: Backbone | None = None,
        classnames: Sequence[str] | None = None,
        done: bool = False,
    ) -> None:
        self.given_backbone, self.classnames, self.done = backbone, classnames, done
        self.asked_cfg = cfg
        self.course = Course()
        self.tested: dict[str, Evaluation] = {}
        self.other: OtherRun | None = None
        super().__init__(cfg)

    # ---- build ----

    @property
    def settings(self) -> CfgNode:
        """The method's config node."""
        return self.cfg.TRAINER[self.SETTINGS]

    def check_cfg(self, cfg: CfgNode) -> None:
        if not self.done:
            self.check_config(cfg)

    @classmethod
    def check_config(cls, cfg: CfgNode) -> None:
        """Raise UserError if a config is wrong for this trainer, as far as that is known without the backbone."""
        check_settings(cfg, cls)

    def build_data_loader(self) -> None:
        """Load the CLIP, complete the config, then build data sets and loaders: the backbone sets the image size."""
        if self.cfg.VERBOSE and not self.done:
            for line in settings_notes(self.cfg):
                print(line)
        self.backbone = self.given_backbone or self._load_backbone()
        if method := method_of(self.cfg.TRAINER.NAME):
            method.check_backbone(self.cfg.MODEL.BACKBONE.NAME, self.backbone.is_vit)
        self.clip_model = self.backbone.model
        self.cfg = self.complete_cfg(self.cfg)
        self.set_threads(plan_threads(self.backbone.n_tower_weights, self.cfg.DATALOADER.NUM_WORKERS))
        if self.classnames is not None:
            names = list(self.classnames)
            dataset = SimpleNamespace(classnames=names, domains=(), source_domains=(), target_domains=())
            self.dm = SimpleNamespace(dataset=dataset)
            self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None
            self.num_classes, self.num_source_domains, self.lab2cname = len(names), 0, dict(enumerate(names))
        else:
            super().build_data_loader()
            self._adapt_data()
        check_class_names(self.dm.dataset.classnames, self.backbone.text.tokenizer)
        if (loader := self.train_loader_x) is not None:
            self.batches = self.training_batches(loader.batch_sampler, len(loader.dataset))
            self.train_loader_x = self._seeded_loader(loader)

    def _load_backbone(self) -> Backbone:
        named = self.cfg.MODEL.BACKBONE
        backbone = load_backbone(named.NAME, self.device, self.settings.PREC, named.PATH)
        if self.cfg.VERBOSE:
            for note in backbone.notes:
                print(note)
            if not backbone.text.can_be_cut:
                print(
                    f"Note: the text tower of {named.NAME} looks at all positions of a prompt, so each is encoded over "
                    f"all {backbone.text.context_length}, and what prompts begin with is not shared. That takes longer."
                )
        return backbone

    def complete_cfg(self, cfg: CfgNode) -> CfgNode:
        """The frozen config with the values that follow from the backbone and from other keys."""
        cfg, backbone = cfg.clone(), self.backbone
        cfg.defrost()
        taken = follow_facts(cfg.INPUT, backbone.facts)
        if taken and cfg.VERBOSE:
            print(f"Note: images are made as the backbone {backbone.name} expects them: {', '.join(taken)}.")
        _warn_of_other_images(cfg, backbone)
        cfg.INPUT.SIZE = (backbone.image_size,) * 2
        cfg.DATALOADER.NUM_WORKERS = loader_workers(cfg.DATALOADER.NUM_WORKERS)
        prepare_loader_workers(cfg.DATALOADER.NUM_WORKERS)
        self.word_counts = check_words(cfg, type(self), backbone.text.tokenizer)
        for key, n in self.word_counts.items():
            if value_of(cfg, key) != n and cfg.VERBOSE:
                print(f"Note: {key} is {n}, the number of tokens of CTX_INIT.")
            set_key(cfg, key, n)
        for key, folder in SHARED_FOLDERS.items():
            set_key(cfg, key, value_of(cfg, key) or str(Path(cfg.OUTPUT_DIR).parent / folder))
        cfg.freeze()
        return cfg

    def _adapt_data(self) -> None:
        """Complete a data set that was written for Dassl alone, and set the resize mode of test images."""
        dataset = adapted(self.dm.dataset, self.cfg)
        if dataset is not self.dm.dataset:
            self.dm.dataset = dataset
            splits = (dataset.train_x, dataset.val, dataset.test)
            for loader, items in zip((self.train_loader_x, self.val_loader, self.test_loader), splits, strict=True):
                if loader is not None:
                    loader.dataset.data_source = items
        if self.cfg.VERBOSE:
            by_domain: dict[int, list[str]] = {}
            for item in (*dataset.train_x, *dataset.val):  # the target's images are opened in the test alone
                by_domain.setdefault(item.domain, []).append(item.impath)
            images = f"images of {self.cfg.DATASET.NAME} under {self.cfg.DATASET.ROOT}"
            any(warn_of_orientation(paths, images) for paths in by_domain.values())
        for loader in (self.val_loader, self.test_loader):
            if loader is not None:
                follow_resize_mode(loader.dataset.transform, self.cfg.INPUT, self.backbone.facts)

    def training_batches(self, batch_sampler: BatchSampler, n_images: int) -> Batches:
        """The batches of training indices; `batch_sampler` is Dassl's."""
        return batch_sampler

    def _seeded_loader(self, loader: DataLoader) -> DataLoader:
        """A training loader with this trainer's batches and an augmentation that no number of workers changes."""
        dataset: Any = loader.dataset
        # Without a seed, chance gives one: the workers would augment alike otherwise.
        seed = self.cfg.SEED if self.cfg.SEED >= 0 else int(np.random.SeedSequence().generate_state(1)[0])
        return DataLoader(
            SeededItems(dataset, seed),
            batch_sampler=SeededBatches(self.batches, lambda: self.epoch),
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            persistent_workers=loader.num_workers > 0,
            # A generator of its own: a start of workers draws from the global one otherwise.
            generator=torch.Generator(),
        )

    def build_model(self) -> None:
        if type(self).image_tower is not PromptTrainer.image_tower and not self.IMAGE_TOWER_LEARNS:
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

    def build_prompt_model(self) -> None:
        """Build the networks of the method and register each with `register_network`."""
        raise NotImplementedError

    def register_network(self, name: str, network: Network) -> Network:
        """Move a network to the device and register it with its own optimiser and schedule."""
        network.to(self.device)
        if self.PUBLISHED_NAMES is not None:
            publish_names(network, self.PUBLISHED_NAMES)
        optim = self.cfg.OPTIM
        if optim.NAME == "adamw" and self.cfg.TRAINER.FUSED_ADAMW and "adamw_fused" in AVAI_OPTIMS:
            optim = optim.clone()
            optim.defrost()
            optim.NAME = "adamw_fused"
        optimizer = build_optimizer(network, optim)
        self.register_model(name, network, optimizer, build_lr_scheduler(optimizer, self.cfg.OPTIM))
        return network

    def build_encoder(self, classnames: Sequence[str] | None = None, **settings: Any) -> PromptEncoder:
        """A prompt encoder for class names (None: the data set's) within the memory budget TEST.MEMORY_MB."""
        memory_mb = self.cfg.TEST.MEMORY_MB or memory_budget_mb(self.device)
        names = self.dm.dataset.classnames if classnames is None else classnames
        return prompt_encoder(self.backbone.text, names, memory_mb=memory_mb, **settings)

    @torch.no_grad()
    def encode_template(self, template: str, normalised: bool = True) -> Tensor:
        """Text features (C, E) of a template with {} for the class name.

        Raises:
            ValueError: no word stands before {}.
            NameTooLong: a class name does not fit.
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

    def prompt_depth(self, key: str, default: int, **n_layers: int) -> int:
        """The number of layers with prompts that a key of the method names.

        Args:
            key: of the method's node; 0 stands for `default`, or all layers of a smaller tower.
            default: depth of the published method.
            n_layers: layers of each prompted tower, text=12, image=24.

        Raises:
            UserError: a tower has fewer layers.
        """
        tower = min(n_layers, key=n_layers.__getitem__)
        most, depth = n_layers[tower], self.settings[key]
        name = f"TRAINER.{self.SETTINGS}.{key}"
        if depth > most:
            raise UserError(
                f"{name} is {depth}, but the {tower} tower of {self.cfg.MODEL.BACKBONE.NAME} has {most} layers; "
                f"accepted: 1 (prompts at the input alone) to {most}. Set {name} {most}."
            )
        if depth == 0:
            depth = min(default, most)
            self.cfg.defrost()
            set_key(self.cfg, name, depth)
            self.cfg.freeze()
        return depth

    # ---- logits ----

    @classmethod
    def normalises(cls, cfg: CfgNode) -> bool:
        """Whether a run with this config L2-normalises the features of images."""
        return cls.NORMALISED_FEATURES

    def image_tower(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images -> (B, E) features before L2 normalisation."""
        return self.backbone.encode_image(images)

    def text_features(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        """Text features of the classes.

        Args:
            features: (B, E) image features.
            indices: B indices of the images within their split.

        Returns:
            (C, E) for all images, or (B, C, E).
        """
        raise NotImplementedError

    def logits(self, features: Tensor, text_features: Tensor) -> Tensor:
        """exp(logit_scale) * f . t_c + bias: (B, E) with (C, E) or (B, C, E) -> (B, C)."""
        text_features = text_features.float()
        if text_features.dim() == 2:
            similarity = features @ text_features.t()
        else:
            similarity = torch.einsum("be,bce->bc", features, text_features)
        logits, bias = self.backbone.logit_scale * similarity, self.backbone.logit_bias
        return logits if bias is None else logits + bias

    def predict(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        """Logits (B, C) of image features (B, E) with indices within their split, in evaluation mode."""
        with self.backbone.autocast():
            text_features = self.text_features(features, indices)
        return self.logits(features, text_features)

    def classifier(self) -> Classifier:
        """The function (features, indices) -> logits of one evaluation: `predict`.

        Methods with the same text features for all images return `one_text_classifier()`.
        """
        return self.predict

    def one_text_classifier(self) -> Classifier:
        """A classifier that encodes the classes once, for methods with the same text features for all images."""
        no_image: Any = None
        with torch.no_grad(), self.backbone.autocast():
            text_features = self.text_features(no_image, no_image)
        return lambda features, indices: self.logits(features, text_features)

    # ---- train step ----

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """One optimiser step on `loss`."""
        check_interruption()
        features, labels = self.image_features.of_batch(batch), batch["label"].to(self.device)
        with self.backbone.autocast():
            text_features = self.training_text_features(features, batch)
        logits = self.logits(features, text_features)
        loss = self.loss(logits, labels, text_features.float())
        self.model_backward_and_update(loss)
        return {"loss": loss.item(), "acc": compute_accuracy(logits, labels)[0].item()}

    def training_text_features(self, features: Tensor, batch: dict[str, Any]) -> Tensor:
        """`text_features` of a training batch with image features (B, E)."""
        return self.text_features(features, batch["index"])

    def loss(self, logits: Tensor, labels: Tensor, text_features: Tensor) -> Tensor:
        """Training loss of logits (B, C) and labels (B,): cross-entropy. Override to add a regulariser."""
        return F.cross_entropy(logits, labels)

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

    def detect_anomaly(self, loss: Tensor) -> None:
        if torch.isfinite(loss).all():
            return
        raise UserError(
            f"The loss became {loss.item()} in epoch {self.epoch + 1} of {self.max_epoch}, step {self.batch_idx + 1} "
            f"of {self.num_batches} (learning rate {self.get_current_lr():.2g}, precision {self.backbone.precision}). "
            "Most likely the learning rate is too high (OPTIM.LR), or half precision overflows (PREC fp32). "
            f"{self._last_checkpoint()}Changed settings need another --output-dir."
        )

    def _last_checkpoint(self) -> str:
        return f"The checkpoint of epoch {self.epoch} is kept. " if self.epoch else ""

    # ---- epochs: validate and select ----

    def set_threads(self, threads: Threads) -> None:
        """Compute with these numbers of threads."""
        self.threads = threads
        threads.use(self.cfg.DATALOADER.NUM_WORKERS)

    def take_threads(self, note: bool = True) -> None:
        """Use the threads of the run in the output folder, or record those of a new run (`note`)."""
        workers = self.cfg.DATALOADER.NUM_WORKERS
        self.set_threads(threads_of_run(self.output_dir, self.threads, workers, note, self.cfg.VERBOSE))

    def train(self) -> None:
        self.take_threads()
        try:
            super().train()
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the cause
                self.close_writer()  # its thread would outlive the run in a warm worker
            raise

    def before_train(self) -> None:
        if self.cfg.TEST.FINAL_MODEL == "best_val" and self.val_loader is None:
            raise UserError(
                "TEST.FINAL_MODEL is best_val, but the source domains are too small for a validation split to choose "
                "an epoch by. Add images, or set TEST.FINAL_MODEL last_step."
            )
        super().before_train()
        self.epoch = max(0, self.start_epoch - 1)  # the step of a test without a training epoch before it
        course = self.course
        self.best_result, course.best_epoch = best_epoch(course.history, self.cfg.TEST.SELECT_BY)
        if course.history:
            course.started = time.time() - course.history[-1]["seconds"]
            if self.scaler is not None:
                self.scaler.load_state_dict(course.history[-1]["scaler"])
        write_identity(self.output_dir, self.identity())
        self.epoch_bar = progress(
            total=self.max_epoch,
            initial=self.start_epoch,
            description=f"{self.cfg.TRAINER.NAME} ({', '.join(self.dm.dataset.source_domains)})",
            unit="epoch",
        )
        if self.cfg.TRAINER.FEATURES.TRAIN_VIEWS:
            self.train_loader_x = self.build_view_loader(self.train_loader_x)
            self.threads.use(workers=0)

    def build_view_loader(self, loader: DataLoader) -> DataLoader | ViewLoader:
        """A loader of features drawn from TRAIN_VIEWS cached views of each training image."""
        n_views, batch_size = self.cfg.TRAINER.FEATURES.TRAIN_VIEWS, self.cfg.DATALOADER.TEST.BATCH_SIZE
        items: Any = loader.dataset
        return self.image_features.views(items.dataset, n_views, batch_size, self.batches)

    def before_epoch(self) -> None:
        super().before_epoch()
        self._train_scalars: dict[str, float] = {}
        if self.cfg.SEED >= 0:
            # Randomness is a function of (seed, epoch): a resumed run draws the same batches and noise without any
            # saved generator state. Augmentation: see SeededItems.
            mixed = np.random.SeedSequence([self.cfg.SEED, self.epoch]).generate_state(1)[0]
            set_random_seed(int(mixed))

    def run_epoch(self) -> None:
        loader = self.train_loader_x
        try:
            with progress(loader, len(loader), description=f"Epoch {self.epoch + 1}", unit="batch") as bar:
                self.train_loader_x = bar  # Dassl's loop iterates over the bar
                super().run_epoch()
        finally:
            self.train_loader_x = loader
        self.update_lr()

    def init_writer(self, log_dir: str) -> None:
        """Open TensorBoard's file after removing the scalars of the epochs that a resumed run repeats."""
        first, n_batches = self.start_epoch, len(self.train_loader_x)

        def is_repeated(tag: str, step: int) -> bool:
            return tag.startswith("test/") or step >= first * (n_batches if tag.startswith("train/") else 1)

        with contextlib.suppress(ImportError):  # without tensorboard Dassl writes nothing
            remove_scalars(log_dir, is_repeated)
        super().init_writer(log_dir)

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        # Dassl writes running means: the last ones of an epoch are its means.
        if tag.startswith("train/") and tag != "train/lr":
            self._train_scalars[tag.removeprefix("train/")] = float(scalar_value)
        super().write_scalar(tag, scalar_value, global_step)

    def may_be_chosen(self) -> bool:
        """Whether validation may select the epoch that just ended."""
        return True

    def after_epoch(self) -> None:
        """Validate on the source domains' val splits, save the best epoch, then the history and a checkpoint.

        A run that is killed between two of these writes repeats the epoch on resume.
        """
        self._check_networks()
        course, is_best = self.course, False
        entry: dict[str, Any] = {"val_accuracy": None, "losses": self._train_scalars}
        if self.cfg.TEST.FINAL_MODEL == "best_val":
            value = self.test(split="val")
            entry["val_accuracy"] = self.tested["val"].metrics["accuracy"]
            entry[f"val_{self.cfg.TEST.SELECT_BY}"] = value
            is_best = self.may_be_chosen() and value > self.best_result
            self.epoch_bar.set_postfix(val=f"{value:.1f} %")
        # The first epoch decides which results of earlier runs were used. The others copy it.
        entry["found"] = course.reused if course.history else self.reused()
        entry["seconds"] = course.seconds
        if self.scaler is not None:
            entry["scaler"] = self.scaler.state_dict()
        if not self.may_be_chosen():
            entry["counts"] = False
        if self._writer is not None:
            self._writer.flush()  # an epoch with a checkpoint is not repeated
        course.history.append(entry)
        write_history(self.output_dir, course.history)
        if is_best:
            self.best_result, course.best_epoch = value, self.epoch + 1
            self.save_model(self.epoch, self.output_dir, val_result=value, model_name=BEST)
        self.epoch_bar.update()
        self.save_model(self.epoch, self.output_dir)
        # The last two checkpoints stay, in case the newest one is damaged.
        self._remove_checkpoint(self.epoch - 1)

    def _check_networks(self) -> None:
        """Raise UserError if the last step of the epoch broke a network, before anything of the epoch is saved."""
        for name in self.get_model_names():
            optimizer, cause = self._optims[name], ""
            state = dict(self._models[name].state_dict())
            if optimizer is not None:
                state["optimizer"] = optimizer.state_dict()["state"]
                cause = (
                    f"The last step broke it: most likely the learning rate is too high (OPTIM.LR, now "
                    f"{self.get_current_lr(name):.2g}), or half precision overflows (PREC fp32, now "
                    f"{self.backbone.precision}). {self._last_checkpoint()}Changed settings need another --output-dir."
                )
            what = f"{name} after epoch {self.epoch + 1} of {self.max_epoch}"
            require_finite(state, what, cause, self.MINUS_INFINITY)

    def after_train(self) -> None:
        self.epoch_bar.close()
        # Loader workers end here. A process that forks later would wait for them otherwise.
        self.train_loader_x = None
        self._remove_checkpoint(self.max_epoch - 1)
        folders = [Path(self.output_dir, name) for name in self.get_model_names()]
        n_bytes = sum(path.stat().st_size for folder in folders for path in folder.glob("model*"))
        print(f"Checkpoints take {n_bytes / 2**20:.1f} MB in {self.output_dir}")
        super().after_train()
        self.write_records()

    # ---- checkpoints: save, load, resume ----

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save checkpoints as Dassl does, without schedules that cannot be read back as plain data."""
        schedules = self._scheds
        self._scheds = {name: None if _holds_objects(schedule) else schedule for name, schedule in schedules.items()}
        try:
            super().save_model(*args, **kwargs)
        finally:
            self._scheds = schedules

    def _remove_checkpoint(self, epoch: int) -> None:
        frequency = self.cfg.TRAIN.CHECKPOINT_FREQ
        if epoch >= 1 and not (frequency > 0 and epoch % frequency == 0):
            remove_checkpoint(self.output_dir, self.get_model_names(), epoch)

    def load_model(self, directory: str | PathLike, epoch: int | None = None) -> None:
        """Load the prompts of a run or of a published checkpoint into `model`.

        Raises:
            UserError: the checkpoint is missing, damaged or does not fit.
        """
        self.load_prompts(self.model, find_checkpoint(directory, self.NETWORK, epoch), directory)

    def load_prompts(self, network: nn.Module, path: Path, directory: str | PathLike) -> None:
        """Load a checkpoint file of the run in `directory` into a network."""
        saved, epoch = read_prompts(path)
        network.load_state_dict(self._fitting(network, path, saved, directory))
        print(f"Prompt learner loaded from {path} (epoch {epoch})")

    def start_from_given(self) -> None:
        """Load the prompts of MODEL.INIT_WEIGHTS into `model` before training."""
        place = self.cfg.MODEL.INIT_WEIGHTS
        if not place or self.done:
            return
        path = Path(place).expanduser()
        path = find_checkpoint(path, self.NETWORK) if path.is_dir() else path
        saved, _ = read_prompts(path, bare=True)
        self.model.load_state_dict(self._fitting(self.model, path, saved, path.parent.parent))
        print(f"Training starts from the prompt learner in {path}")
        self.started_from = prompts_sha256(self.model)

    def _fitting(
        self, network: nn.Module, path: Path, saved: dict[str, Tensor], directory: str | PathLike
    ) -> dict[str, Tensor]:
        own, trained_for = self.learned_in(network.state_dict()), read_identity(directory).get("class names")
        return fit_prompts(path, saved, own, self, trained_for)

    @classmethod
    def learned_in(cls, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The learned tensors of a state_dict, which may be of a whole model, by their own names."""
        return own_names(saved, cls.PUBLISHED_NAMES or {})

    @staticmethod
    def sizes_in(learned: dict[str, Tensor]) -> dict[str, Any]:
        """Config values of the method's node that the shapes of learned tensors show; {} for another method's file."""
        ctx = learned.get("ctx")
        if ctx is None or ctx.dim() not in (2, 3):
            return {}
        return {"N_CTX": ctx.shape[-2], "CTX_INIT": "", "CSC": ctx.dim() == 3}

    def resume_model_if_exist(self, directory: str | PathLike) -> int:
        """Load the newest intact checkpoints of this run and return the number of completed epochs.

        Raises:
            UserError: the folder holds checkpoints of a run with other settings, data or weights.
        """
        if read_history(self.output_dir, 1):  # a run that began with --resume continues from its own folder
            directory = self.output_dir
        identity, ignored = self.identity(), [*self.word_counts]
        if None in (identity["images tested on"], read_identity(directory).get("images tested on")):
            ignored.append("images tested on")  # one of the two runs is not tested
        differences = identity_differences(directory, identity, ignored)
        has_checkpoints = any(saved_epochs(Path(directory) / name) for name in self._models)
        if differences and has_checkpoints and not self.restart_on_difference:
            raise UserError(
                f"{directory} holds an unfinished run with other settings: {differences}. Delete it to start anew, or "
                "name another --output-dir."
            )
        if differences:
            print(f"The unfinished run in {directory} had other settings ({differences}); starting anew")
            return 0
        selects_by = self.cfg.TEST.SELECT_BY if self.cfg.TEST.FINAL_MODEL == "best_val" else None
        epoch, history, checkpoints = load_newest(directory, list(self._models), selects_by, self.MINUS_INFINITY)
        for name, checkpoint in checkpoints.items():
            self._restore(name, checkpoint, Path(directory) / name)
        self.course.history = history
        return epoch

    def _restore(self, name: str, checkpoint: dict[str, Any], folder: Path) -> None:
        """Restore network, optimiser and schedule of a completed epoch.

        A new schedule takes as many steps instead of reading its saved state: in Dassl.pytorch that state holds a
        schedule of another optimiser.
        """
        network, optimizer, schedule = self._models[name], self._optims[name], self._scheds[name]
        try:
            network.load_state_dict(checkpoint["state_dict"])
            if schedule is not None:
                with warnings.catch_warnings():
                    # These steps have no optimiser step before them.
                    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
                    for _ in range(checkpoint["epoch"]):
                        schedule.step()
            if optimizer is not None:
                rates = [group["lr"] for group in optimizer.param_groups]
                optimizer.load_state_dict(checkpoint["optimizer"])
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{folder} does not fit this run: {error}. Delete the run's folder to start anew, or name another "
                "--output-dir."
            ) from error

    # ---- test and record ----

    def test(self, split: str | None = None) -> float:
        """Evaluate on a split ("val" or "test", default cfg.TEST.SPLIT) and return the metric TEST.SELECT_BY.

        Raises:
            UserError: logits are not finite, or the evaluator has no such metric.
        """
        split = split or self.cfg.TEST.SPLIT
        print(f"Evaluate on the *{split}* set")
        if split == "test":
            _ = self.dm.dataset.test_fingerprint  # hashed before any image is decoded: a later change is found
        found = self._evaluate(split)
        metrics, test = self.tested[split].metrics, self.cfg.TEST
        for name, value in metrics.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        if test.SELECT_BY in metrics:
            return metrics[test.SELECT_BY]
        if test.SELECT_BY in found:
            raise UserError(
                f"TEST.SELECT_BY is {test.SELECT_BY!r}, which the evaluator {test.EVALUATOR} measures as "
                f"{found[test.SELECT_BY]} on the {split} split, no finite number to choose by; there are "
                f"{', '.join(metrics)}."
            )
        raise UserError(
            f"TEST.SELECT_BY is {test.SELECT_BY!r}, which the evaluator {test.EVALUATOR} does not measure; accepted: "
            f"{', '.join(metrics)}."
        )

    def _evaluate(self, split: str) -> Mapping[str, Any]:
        """Classify the images of a split, fill `tested` and return the evaluator's metrics."""
        self.set_model_mode("eval")
        self.evaluator.reset()
        loader = self.val_loader if split == "val" else self.test_loader
        features = self.image_features.of_split(loader, split)
        items, domains = loader.dataset.data_source, self.dm.dataset.domains
        labels = torch.tensor([item.label for item in items])
        batches, predictions = FeatureBatches(features, loader.batch_size), []

        def explain(features: Tensor, indices: range) -> str:
            names = sorted({domains[items[i].domain] for i in indices})
            when = f" after epoch {self.epoch + 1}" if split == "val" else ""
            images = f"images {indices.start + 1} to {indices.stop} of the {split} split ({', '.join(names)}){when}"
            return self.explain_logits(images, features, indices)

        unseen = bool(self.MINUS_INFINITY)
        # The loader's workers are idle during classification, so their cores are free.
        with self.threads.all(), progress(batches, description=f"Classifying {split}", unit="batch") as bar:
            for indices, logits in classify(bar, self.classifier(), self.device, explain, unseen):
                self.evaluator.process(logits, labels[indices.start : indices.stop].to(self.device))
                predictions.append(Predictions.of(logits))
        found, joined = self.evaluator.evaluate(), Predictions.joined(predictions)
        self.tested[split] = Evaluation(measured(found, labels.numpy(), joined.labels.numpy()), joined)
        return found

    def explain_logits(self, images: str, features: Tensor, indices: Sequence[int]) -> str:
        """The message about images with logits that are not finite: the broken tensor and the likely cause.

        Args:
            images: "images 1 to 100 of the test split (sketch)".
            features, indices: arguments of `predict`.
        """
        overflow = "Half precision may overflow: try PREC fp32."
        cause = overflow
        if self.get_model_names():
            cause = (
                "Most likely training broke the model, by too high a learning rate (OPTIM.LR), or half precision "
                "overflows (PREC fp32)."
            )
        found = f"The logits of {images} are not finite"
        if not all_finite(features):
            return f"{found}, since their image features are not. {overflow}"
        try:
            with self.backbone.autocast():
                text_features = self.text_features(features, indices)
        except NotImplementedError:  # a method without texts
            return f"{found}. {cause}"
        # (C, E), (B, C, E), or (2C, E) for prompts of both signs.
        wrong = ~text_features.isfinite().all(dim=-1).reshape(-1, self.num_classes).all(dim=0)
        names = [name for name, is_wrong in zip(self.dm.dataset.classnames, wrong.tolist(), strict=True) if is_wrong]
        if not names:
            return f"{found}, though image and text features are. {cause}"
        whose = some(names) if len(names) < len(wrong) else "every class"
        return f"{found}, since the text features of {whose} are not. {cause}"

    def test_run(self, model_dir: str, epoch: int | None = None) -> None:
        """Test the model of another run.

        Raises:
            UserError: the model needs another backbone, method or config, or cannot be loaded.
        """
        if read_identity(model_dir).get("backbone") not in (None, self.backbone.sha256):
            raise UserError(
                f"The model in {model_dir} was trained with another CLIP than {self.cfg.MODEL.BACKBONE.NAME}, whose "
                "weights differ. Name the backbone that it was trained with."
            )
        names = self.get_model_names()
        if names:
            keys = [f"TRAINER.{self.SETTINGS}.{key}" for key in self.TEST_KEYS]
            check_use(model_dir, self.asked_cfg, self.SETTINGS, keys)
        self.take_threads(note=False)
        self.load_model(model_dir, epoch=epoch)
        record = read_training_record(model_dir)
        if names and epoch is not None:
            record["selection"] = f"epoch {epoch}"
        elif names:
            is_best = find_checkpoint(model_dir, names[0]).name == BEST
            record["selection"] = "best_val" if is_best else "last_step"
        self.other = OtherRun(os.path.abspath(model_dir), epoch, record)
        self.test()

    @cached_property
    def source_loader(self) -> DataLoader:
        """The training images in order, under the test transform."""
        return build_data_loader(
            self.cfg,
            data_source=self.dm.dataset.train_x,
            batch_size=self.cfg.DATALOADER.TEST.BATCH_SIZE,
            tfm=(self.val_loader or self.test_loader).dataset.transform,
            is_train=False,
        )

    @classmethod
    def splits_encoded(cls, cfg: CfgNode) -> tuple[str, ...]:
        """The splits, of "views", "val" and "test", that a run caches features of."""
        if cls.IMAGE_TOWER_LEARNS:
            return ()
        splits = ["views"] if cfg.TRAINER.FEATURES.TRAIN_VIEWS else []
        splits += ["val"] if cfg.TEST.FINAL_MODEL == "best_val" else []
        return (*splits, *(() if cfg.TEST.NO_TEST else ("test",)))

    def n_trained(self) -> list[int]:
        """Numbers of trainable parameters, stage by stage; [] for a method without training."""
        networks = [self._models[name] for name in self.get_model_names()]
        return [sum(weights.numel() for network in networks for weights in network.parameters())] if networks else []

    def reused(self) -> dict[str, float | None]:
        """Results of earlier runs that this run uses, with the seconds they took; None: unknown."""
        return {"image features": None} if self.image_features.cache.oldest_read < self.course.started else {}

    def run_settings(self) -> dict[str, Any]:
        """The settings that change this run's numbers."""
        # The config as asked for: in the completed one, words have replaced N_CTX.
        settings = settings_of(self.asked_cfg, self.SETTINGS)
        return {**settings, "MODEL.INIT_WEIGHTS": self.started_from} if self.started_from else settings

    def identity(self) -> dict[str, Any]:
        """Everything that has to be equal when the run is resumed: settings, data, weights."""
        return identity_of(self.asked_cfg, self.run_settings(), self.dm.dataset, self.backbone)

    def training_record(self) -> dict:
        """The keys of results.json that describe the training of this run's model."""
        return training_record(self.cfg, self.dm.dataset, self.run_settings(), self.n_trained(), self.course)

    def write_records(self) -> None:
        """Write the results of a run with a test, or trained.json of a run without one."""
        if "test" in self.tested:
            self.write_results()
        else:
            write_record(Path(self.output_dir) / TRAINED_FILE, self.training_record())

    def write_results(self) -> None:
        """Write predictions.csv, logits.npy and, last, results.json, which marks the run as finished."""
        write_test_files(
            self.cfg,
            self.dm.dataset,
            self.backbone,
            self.tested["test"],
            self.course,
            self.training_record() if self.other is None else self.other.record,
            self.run_settings(),
            self.other,
            self.threads,
        )


def _holds_objects(schedule: LRScheduler | None) -> bool:
    """Whether the state of a schedule is more than plain data: Dassl.pytorch's warm-up keeps its successor in it."""
    return schedule is not None and isinstance(schedule.state_dict().get("successor"), LRScheduler)


def _warn_of_other_images(cfg: CfgNode, backbone: Backbone) -> None:
    """Warn if images are normalised or resized in another way than the backbone expects."""
    mean, std, facts = cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD, backbone.facts
    expected = [facts.pixel_mean, facts.pixel_std]
    mend = "The configs in configs/trainers/ have it right (--config-file)."
    openais = Facts()
    if any(getattr(facts, key) != getattr(openais, key) for key in OF_IMAGES):
        mend = (
            "Leave INPUT.PIXEL_MEAN, PIXEL_STD and INTERPOLATION as the configs in configs/trainers/ have them: they "
            f"become the backbone's own, {list(facts.pixel_mean)}, {list(facts.pixel_std)} and {facts.interpolation}."
        )
    if "normalize" not in cfg.INPUT.TRANSFORMS or not np.allclose([mean, std], expected, atol=1e-3):
        print(
            "Warning: CLIP expects images normalised by its own mean and standard deviation, and INPUT says "
            f"otherwise (TRANSFORMS {list(cfg.INPUT.TRANSFORMS)}, PIXEL_MEAN {list(mean)}, PIXEL_STD {list(std)}): "
            f"accuracies will suffer. {mend}"
        )
    if facts.interpolation != cfg.INPUT.INTERPOLATION:
        print(
            f"Warning: {backbone.name} expects images resized by {facts.interpolation} interpolation, and "
            f"INPUT.INTERPOLATION is {cfg.INPUT.INTERPOLATION}: accuracies will suffer. {mend}"
        )
