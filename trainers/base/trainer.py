"""The base class of all methods: adapt a frozen CLIP, select an epoch, resume, test and record a run.

The sections of `PromptTrainer` follow a run: build, logits, train step, epochs, checkpoints, test, records.
"""

import contextlib
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
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
from dassl.utils import read_image, set_random_seed
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader
from yacs.config import CfgNode

from common.errors import UserError
from common.files import atomic_write, hash_json
from common.image_results import accuracy_by_domain, prediction_rows, write_logits, write_predictions
from common.interruption import check_interruption
from common.progress import progress
from common.reproducible import revision, versions
from common.run import (
    RECORD_FILE,
    Result,
    RunRecord,
    class_subset,
    dataset_name,
    differences,
    protocol_name,
    read_run_record,
    write_results,
)
from common.threads import loader_workers, omp_num_threads, plan_threads, usable_cores, use_threads
from datasets.adapted import adapted
from datasets.image_files import warn_of_orientation
from trainers import config
from trainers.base import checkpoints, evaluation, run_record
from trainers.base.evaluation import LIKELY_CAUSES, Classifier, Evaluation, Predictions
from trainers.base.image_features import ImageFeatures, follow_preprocessing, follow_resize_mode
from trainers.methods import method_of
from trainers.modules.clip.backbone import Backbone, backbone_label, cached_backbone
from trainers.modules.features import FeatureCache
from trainers.modules.image_cache import CachedImages, ImageCache, image_cache
from trainers.modules.loader_workers import prepare_loader_workers
from trainers.modules.prompt_encoder import PromptEncoder, build_prompt_encoder, default_memory_mb
from trainers.modules.prompt_tokens import check_class_names
from trainers.modules.sampling import Batches, FeatureLoader, TrainingLoader, mix_seed
from trainers.modules.tensor_files import extract_prompts, publish_names, require_finite

Network = TypeVar("Network", bound=nn.Module)
# Keys and sections that only steps of an optimiser read.
STEP_KEYS = (
    *("OPTIM", "TRAIN", "DATALOADER.TRAIN_X", "TEST.SELECT_BY"),
    *("TRAINER.FEATURES.TRAIN_VIEWS", "TRAINER.FUSED_ADAMW"),
)

# results.json of a test of a published checkpoint, which has no record of its training.
UNKNOWN_TRAINING = {
    "num_shots": "unknown",
    "data_fingerprint": "unknown",
    "split_by_seed": False,
    "selection": None,
    "settings_sha256": "unknown",
    "n_trained": None,
    "train_seconds": None,
    "train_reused": [],
}


class PromptTrainer(TrainerX):
    """Adapts a frozen CLIP to the source domains and tests it on the target domains.

    A method overrides `build_prompt_model` (its networks), `text_features` (the classifier's weights) and, where it
    does not minimise cross-entropy, `loss` or `forward_backward`. A method with a learned image tower
    overrides `image_tower`; its image features are never cached.

    Dassl's constructor calls `check_cfg`, then `build_data_loader`, which also loads the CLIP and completes cfg, then
    `build_model`, which calls `build_prompt_model`. `train` calls `before_train` (resume; SPG also learns its labels),
    then for each epoch `before_epoch`, `run_epoch` (a `forward_backward` for each batch) and `after_epoch` (validate,
    save), then `after_train` (test, write results).

    Args:
        cfg: frozen config with the keys of trainers.config.
        backbone: a loaded CLIP; None loads cfg.MODEL.BACKBONE.
        classnames: classes of a trainer without a data set; None builds cfg's data set.
        is_rebuilt: the trainer loads a saved run. It neither validates cfg nor reads MODEL.INIT_WEIGHTS.
    """

    NODE = ""  # section of the method under cfg.TRAINER; it has the key PREC
    NETWORK = checkpoints.PROMPT_LEARNER  # folder of the checkpoints of a method with one network
    UNTESTED: tuple[str, ...] = ()  # networks that only training needs
    SHARES_TEXT = False  # True: all images have the same text features, so a test encodes the classes once
    IMAGE_TOWER_DRAWS = False  # True: `image_tower` also takes the images' indices, as seeds of its draws
    # Own name -> published name of a method that publishes the whole model: see `publish_names`.
    PUBLISHED_NAMES: Mapping[str, str] | None = None
    OPTIONAL_TENSORS: tuple[str, ...] = ()  # prefixes of tensors that published files may lack
    UNUSED_TENSORS: tuple[str, ...] = ()  # prefixes of tensors in published files that no computation reads
    TEST_KEYS: tuple[str, ...] = ()  # config keys that test and training must share and that tensor shapes do not show
    NEG_INF_TENSORS: tuple[str, ...] = ()  # tensors with -inf for classes that have no training image

    UNREAD_KEYS: tuple[str, ...] = ("INPUT.SIZE", "TEST.N_PROMPTS")  # shared config keys and sections without effect
    TAKES_INIT_WEIGHTS = False  # True: it can start from prompts of MODEL.INIT_WEIGHTS
    FINAL_MODELS: tuple[str, ...] = ("best_val", "last_step")  # accepted values of TEST.FINAL_MODEL
    LEAST_BATCH: Mapping[str, tuple[int, str]] = {}  # loader -> smallest batch size, reason
    CTX_INIT_KEYS: tuple[str, ...] = ("CTX_INIT",)  # keys of initial words, which must have the same number of tokens

    init_prompts_hash = ""  # hash of the prompts of MODEL.INIT_WEIGHTS
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
        is_rebuilt: bool = False,
    ) -> None:
        self.given_backbone, self.classnames, self.is_rebuilt = backbone, classnames, is_rebuilt
        self.user_cfg = cfg  # without the values that follow from the backbone
        self.record = RunRecord({})
        self.best_epoch: int | None = None  # from 1; None: no epoch was selected
        self.num_batches = 0
        self.started = time.time()  # start of the training, moved forward by pauses
        self.evaluations: dict[str, Evaluation] = {}  # the last one of each split
        self.model_dir: str | None = None  # another run, if its model is tested
        self.load_epoch: int | None = None  # the epoch of that run that the user named
        self.loaded_training: dict[str, Any] = {}  # `training_facts` of that run
        super().__init__(cfg)

    # ---- build ----

    @property
    def settings(self) -> CfgNode:
        return self.cfg.TRAINER[self.NODE]

    def check_cfg(self, cfg: CfgNode) -> None:  # Dassl's constructor calls it
        if not self.is_rebuilt:
            self.check_config(cfg)

    @classmethod
    def check_config(cls, cfg: CfgNode) -> None:
        """Raise UserError if a config is wrong for this trainer; the backbone is not needed."""
        config.check_values(cfg)
        if problems := list(config.find_contradictions(cfg, cls)):
            raise UserError("\n".join(problems))

    def build_data_loader(self) -> None:
        """Load the CLIP, complete the config, then build data sets and loaders: the backbone sets the image size."""
        if self.cfg.VERBOSE and not self.is_rebuilt:
            for line in config.settings_notes(self.cfg, type(self)):
                print(line)
        self.backbone = self.given_backbone or self._load_backbone()
        if method := method_of(self.cfg.TRAINER.NAME):
            method.check_image_tower(self.cfg.MODEL.BACKBONE.NAME, self.backbone.is_vit)
        self.clip_model = self.backbone.model
        self.cfg = self.complete_cfg(self.cfg)
        self.set_threads(plan_threads(self.backbone.n_tower_weights))
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
        backbone = cached_backbone(named.NAME, self.device, self.settings.PREC, named.PATH)
        if self.cfg.VERBOSE:
            for note in backbone.info.notes:
                print(note)
        return backbone

    def complete_cfg(self, cfg: CfgNode) -> CfgNode:
        """The frozen config with the values that follow from the backbone and from other keys."""
        cfg, backbone = cfg.clone(), self.backbone
        cfg.defrost()
        follow_preprocessing(cfg, backbone)
        cfg.INPUT.SIZE = (backbone.image_size,) * 2
        cfg.DATALOADER.NUM_WORKERS = loader_workers(cfg.DATALOADER.NUM_WORKERS)
        prepare_loader_workers(cfg.DATALOADER.NUM_WORKERS)
        for key, n in config.check_context_lengths(cfg, type(self), backbone.text.tokenizer).items():
            if config.value_of(cfg, key) != n and cfg.VERBOSE:
                print(f"Note: {key} is {n}, the number of tokens of CTX_INIT.")
            config.set_key(cfg, key, n)
        for key, folder in config.SHARED_FOLDERS.items():
            if config.has_effect(key, type(self)):
                config.set_key(cfg, key, config.value_of(cfg, key) or str(Path(cfg.OUTPUT_DIR).parent / folder))
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
            paths = [item.impath for item in (*dataset.train_x, *dataset.val)]  # the test alone opens target images
            images = f"images of {self.cfg.DATASET.NAME} under {self.cfg.DATASET.ROOT}"
            warn_of_orientation(paths, images, at_most=64 * len(dataset.source_domains))
        for loader in (self.val_loader, self.test_loader):
            if loader is not None:
                follow_resize_mode(loader.dataset.transform, self.cfg.INPUT, self.backbone.info)

    def training_batches(self, batch_sampler: BatchSampler, n_images: int) -> Batches:
        """The batches of training indices, by default Dassl's."""
        return batch_sampler

    def _seeded_loader(self, loader: DataLoader) -> DataLoader:
        """A training loader with this trainer's batches and an augmentation that no number of workers changes."""
        dataset: Any = loader.dataset
        # Without a seed, chance gives one: the workers would augment alike otherwise.
        seed = self.cfg.SEED if self.cfg.SEED >= 0 else int(np.random.SeedSequence().generate_state(1)[0])
        options = {"num_workers": loader.num_workers, "pin_memory": loader.pin_memory}
        return TrainingLoader(dataset, self.batches, seed, lambda: range(self.epoch, self.max_epoch), **options)

    def build_model(self) -> None:
        amp = self.backbone.precision == "amp"
        self.scaler = torch.amp.GradScaler(self.device.type) if amp else None
        self.build_prompt_model()
        self.start_from_given()
        features = self.cfg.TRAINER.FEATURES
        self.image_features = ImageFeatures(
            self.backbone,
            inputs=self.cfg.INPUT.dump(),
            domains=tuple(self.dm.dataset.domains),
            cache=FeatureCache(features.CACHE_DIR if features.CACHE else None),
            workers=self.cfg.DATALOADER.NUM_WORKERS,
            tower=self.image_tower,
            is_learned=self.image_tower_learns(),
            has_draws=self.IMAGE_TOWER_DRAWS,
            is_normalised=self.normalises_features,
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
        memory_mb = self.cfg.TEST.MEMORY_MB or default_memory_mb(self.device)
        names = self.dm.dataset.classnames if classnames is None else classnames
        return build_prompt_encoder(self.backbone.text, names, memory_mb=memory_mb, **settings)

    @torch.no_grad()
    def encode_template(self, template: str, normalised: bool = True) -> Tensor:
        """Text features (C, E) of a template: words, {} for the class name, more words or none."""
        before, after = template.removesuffix(".").split("{}")
        # The encoder takes words before a class name, and any words as the class name.
        names = [name + after for name in self.dm.dataset.classnames]
        encoder = self.build_encoder(names, ctx_init=before.strip(), normalised=normalised)
        return encoder(encoder.initial_context()).float()

    def prompt_depth(self, key: str, default: int, **n_layers: int) -> int:
        """The number of layers with prompts by a config key; 0 is `default`, or all layers of a smaller tower.

        Args:
            n_layers: layers of each prompted tower, text=12, image=24.
        """
        tower = min(n_layers, key=n_layers.__getitem__)
        most, name = n_layers[tower], f"TRAINER.{self.NODE}.{key}"
        depth = self.settings[key] or min(default, most)
        if depth > most:
            place = f"the {tower} tower of {self.cfg.MODEL.BACKBONE.NAME}"
            raise UserError(f"{name} is {depth}, but {place} has {most} layers. Set {name} {most}.")
        self.cfg.defrost()
        self.settings[key] = depth
        self.cfg.freeze()
        return depth

    # ---- logits ----

    @property
    def normalises_features(self) -> bool:
        return True

    @classmethod
    def image_tower_learns(cls) -> bool:
        return cls.image_tower is not PromptTrainer.image_tower

    def image_tower(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images -> (B, E) features before L2 normalisation."""
        return self.backbone.encode_image(images)

    def text_features(self, features: Tensor, indices: Sequence[int]) -> Tensor:
        """Text features (C, E), or (B, C, E) for image features (B, E) with B indices within their split."""
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
        """The function (features, indices) -> logits of an evaluation."""
        if not self.SHARES_TEXT:
            return self.predict
        no_image: Any = None
        with torch.no_grad(), self.backbone.autocast():
            text_features = self.text_features(no_image, no_image)
        return lambda features, indices: self.logits(features, text_features)

    # ---- train step ----

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        check_interruption()
        features, labels = self.image_features.of_batch(batch), batch["label"].to(self.device)
        with self.backbone.autocast():
            text_features = self.training_text_features(features, batch)
        logits = self.logits(features, text_features)
        loss = self.loss(logits, labels, text_features.float())
        self.model_backward_and_update(loss)
        return {"loss": loss.item(), "acc": compute_accuracy(logits, labels)[0].item()}

    def training_text_features(self, features: Tensor, batch: dict[str, Any]) -> Tensor:
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
            f"{LIKELY_CAUSES} {self._last_checkpoint()}Changed settings need another --output-dir."
        )

    def _last_checkpoint(self) -> str:
        return f"The checkpoint of epoch {self.epoch} remains. " if self.epoch else ""

    # ---- epochs: validate and select ----

    def set_threads(self, threads: int) -> None:
        self.threads = threads
        use_threads(threads)

    def restore_threads(self, record: RunRecord | None) -> None:
        """Use the threads of the run in the output folder, since last digits depend on them; OMP_NUM_THREADS wins."""
        recorded = (record and record.threads) or self.threads
        if omp_num_threads() is None:
            self.set_threads(recorded)
        elif recorded != self.threads:
            used = f"this run used {recorded} threads so far; the last digits may differ."
            print(f"Note: OMP_NUM_THREADS is {omp_num_threads()}, but {used}")
        if self.cfg.VERBOSE:
            n_workers = self.cfg.DATALOADER.NUM_WORKERS
            print(f"Threads: {self.threads}, loader workers: {n_workers}, cores: {usable_cores()}")

    def begin_record(self) -> None:
        """Read run.json of the output folder, or write it for a new run. Raise UserError if it is of another run."""
        found = read_run_record(self.output_dir)
        self.restore_threads(found)
        if found and self._is_same_run(self.output_dir, found):
            self.record = found
            if self.cfg.RESUME and any(Path(self.output_dir).glob("*/model.pth.tar-*")):
                # A run that began with --resume continues from its own folder.
                self.cfg.defrost()
                self.cfg.RESUME = ""
                self.cfg.freeze()
            return
        if Path(self.output_dir, RECORD_FILE).exists():
            print(f"{self.output_dir}/{RECORD_FILE} is damaged or of other settings; training from scratch")
            for path in Path(self.output_dir).glob(checkpoints.CHECKPOINTS):
                path.unlink()
        self.write_run_record()

    def _is_same_run(self, folder: str | PathLike, record: RunRecord) -> bool:
        """Whether the record of a folder is of this run; raises UserError if the folder has checkpoints of another."""
        changes = differences(record.identity, self.identity())
        if not changes:
            return True
        if any(Path(folder).glob(checkpoints.CHECKPOINTS)) and not self.restart_on_difference:
            raise UserError(
                f"{folder} holds an unfinished run with other settings or data: {changes}. Delete it, or name "
                "another folder (train.py: --output-dir; launchers: OUTPUT)."
            )
        print(f"The unfinished run in {folder} had other settings: {changes}")
        return False

    def write_run_record(self) -> None:
        self.record.identity, self.record.threads = self.identity(), self.threads
        self.record.places, self.record.versions = run_record.places_of(self.user_cfg), versions()
        self.record.write(self.output_dir)
        with atomic_write(Path(self.output_dir, "config.yaml"), "w") as handle:
            handle.write(self.cfg.dump())

    def train(self) -> None:
        self.begin_record()
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
        # If no epoch is left, Dassl's loop does not set the epoch, and `test` needs it.
        self.epoch = max(0, self.start_epoch - 1)
        history, self.num_batches = self.record.history, len(self.train_loader_x)
        self.best_result, self.best_epoch = checkpoints.best_epoch(history, self.cfg.TEST.SELECT_BY)
        if history:
            self.started = time.time() - history[-1]["seconds"]
            if self.scaler is not None:
                self.scaler.load_state_dict(history[-1]["scaler"])
        self.write_run_record()
        self.epoch_bar = progress(
            total=self.max_epoch,
            initial=self.start_epoch,
            description=f"{self.cfg.TRAINER.NAME} ({', '.join(self.dm.dataset.source_domains)})",
            unit="epoch",
        )
        if self.cfg.TRAINER.FEATURES.TRAIN_VIEWS:
            self.train_loader_x = self.build_view_loader(self.train_loader_x)
        elif cache := image_cache(self.cfg.DATALOADER.CACHE_MB, read_image):
            self._cache_images(cache)

    def _cache_images(self, cache: ImageCache) -> None:
        """Keep decoded images in memory: of training, and of validation if the image tower learns."""
        training: Any = self.train_loader_x.dataset
        training.dataset = CachedImages(training.dataset, cache)
        if self.image_features.is_learned and self.val_loader is not None:
            self.val_loader = DataLoader(CachedImages(self.val_loader.dataset, cache), self.val_loader.batch_size)

    def build_view_loader(self, loader: DataLoader) -> DataLoader | FeatureLoader:
        n_views, batch_size = self.cfg.TRAINER.FEATURES.TRAIN_VIEWS, self.cfg.DATALOADER.TEST.BATCH_SIZE
        items: Any = loader.dataset
        return self.image_features.views(items.dataset, n_views, batch_size, self.batches)

    def before_epoch(self) -> None:
        super().before_epoch()
        self._train_scalars: dict[str, float] = {}
        if self.cfg.SEED >= 0:
            # Randomness is a function of (seed, epoch): a resumed run draws the same noise without any saved generator
            # state. `SeededBatchSampler` draws the batches from the same seed.
            set_random_seed(mix_seed(self.cfg.SEED, self.epoch))

    def run_epoch(self) -> None:
        super().run_epoch()
        self.update_lr()

    def init_writer(self, log_dir: str) -> None:
        """Open TensorBoard's file; a resumed run hides the scalars of the epochs that it repeats."""
        with contextlib.suppress(ImportError):  # without tensorboard Dassl writes nothing
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(log_dir, purge_step=self.start_epoch * len(self.train_loader_x))

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        # Dassl writes running means: the last ones of an epoch are its means.
        if tag.startswith("train/") and tag != "train/lr":
            self._train_scalars[tag.removeprefix("train/")] = float(scalar_value)
        super().write_scalar(tag, scalar_value, global_step)

    def is_selectable(self) -> bool:
        """Whether validation may select the epoch that just ended."""
        return True

    def after_epoch(self) -> None:
        """Validate on the source domains' val splits, save the best epoch, then the history and a checkpoint.

        A run that is killed between two of these writes repeats the epoch on resume.
        """
        self._check_networks()
        history, is_best = self.record.history, False
        entry: dict[str, Any] = {"val_accuracy": None, "losses": self._train_scalars}
        if self.cfg.TEST.FINAL_MODEL == "best_val":
            value = self.test(split="val")
            entry["val_accuracy"] = self.evaluations["val"].metrics["accuracy"]
            entry[f"val_{self.cfg.TEST.SELECT_BY}"] = value
            is_best = self.is_selectable() and value > self.best_result
            self.epoch_bar.set_postfix(val=f"{value:.1f} %")
        # The first epoch decides which results of earlier runs were used. The others copy it.
        entry["reused"] = history[-1]["reused"] if history else self.reused()
        entry |= {"seconds": self.seconds, "counts": self.is_selectable()}  # counts: see `best_epoch`
        if self.scaler is not None:
            entry["scaler"] = self.scaler.state_dict()
        if self._writer is not None:
            self._writer.flush()  # an epoch with a checkpoint is not repeated
        history.append(entry)
        self.record.write(self.output_dir)
        if is_best:
            self.best_result, self.best_epoch = value, self.epoch + 1
            self.save_model(self.epoch, self.output_dir, val_result=value, model_name=checkpoints.BEST)
        self.epoch_bar.update()
        self.save_model(self.epoch, self.output_dir)
        # The last two checkpoints stay, in case the newest one is damaged.
        self._remove_checkpoint(self.epoch - 1)

    def _check_networks(self) -> None:
        """Raise UserError if the last step of the epoch broke a network, before anything of the epoch is saved."""
        for name in self.get_model_names():
            state, optimizer = dict(self._models[name].state_dict()), self._optims[name]
            if optimizer is not None:
                state["optimizer"] = optimizer.state_dict()["state"]
            network = f"{name} after epoch {self.epoch + 1} of {self.max_epoch}"
            require_finite(state, network, f"{LIKELY_CAUSES} {self._last_checkpoint()}", self.NEG_INF_TENSORS)

    def after_train(self) -> None:
        self.epoch_bar.close()
        # Loader workers end here. A process that forks later would wait for them otherwise.
        self.train_loader_x = None
        self._remove_checkpoint(self.max_epoch - 1)
        super().after_train()
        self.write_records()

    # ---- checkpoints: save, load, resume ----

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save checkpoints as Dassl does, without schedules, which hold objects in Dassl.pytorch: see `_restore`."""
        schedules, self._scheds = self._scheds, dict.fromkeys(self._scheds)
        try:
            super().save_model(*args, **kwargs)
        finally:
            self._scheds = schedules

    def _remove_checkpoint(self, epoch: int) -> None:
        frequency = self.cfg.TRAIN.CHECKPOINT_FREQ
        if epoch >= 1 and not (frequency > 0 and epoch % frequency == 0):
            for name in self.get_model_names():
                Path(self.output_dir, name, f"model.pth.tar-{epoch}").unlink(missing_ok=True)

    def load_model(self, directory: str | PathLike, epoch: int | None = None) -> None:
        """Load the networks of a run or of published checkpoints that a test needs."""
        for name in self.get_model_names():
            if name not in self.UNTESTED:
                path = checkpoints.find_checkpoint(directory, name, epoch)
                self.load_network(name, path, directory)

    def load_network(self, name: str, path: Path, directory: str | PathLike) -> None:
        """Load a checkpoint file of the run in `directory` into the network with this name."""
        saved, epoch = checkpoints.read_prompts(path, self.NEG_INF_TENSORS)
        record = read_run_record(directory)
        trained_for = record.identity.get("class names") if record else None
        own = self.learned_in(self._models[name].state_dict())
        self._models[name].load_state_dict(checkpoints.fit_prompts(path, saved, own, self, trained_for))
        print(f"Loaded {name} from {path}" + ("" if epoch is None else f" (epoch {epoch})"))

    def start_from_given(self) -> None:
        """Load the prompts of MODEL.INIT_WEIGHTS into `model` before training."""
        if self.cfg.MODEL.INIT_WEIGHTS and not self.is_rebuilt:
            path = Path(self.cfg.MODEL.INIT_WEIGHTS).expanduser()
            path = checkpoints.find_checkpoint(path, self.NETWORK) if path.is_dir() else path
            self.load_network(self.NETWORK, path, path.parent.parent)
            self.init_prompts_hash = hash_json({key: value.tolist() for key, value in self.model.state_dict().items()})

    @classmethod
    def learned_in(cls, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The learned tensors of a state_dict, which may be of a whole model, by their own names."""
        return extract_prompts(saved, cls.PUBLISHED_NAMES or {})

    @staticmethod
    def sizes_in(learned: dict[str, Tensor]) -> dict[str, Any]:
        """Config values of the method's node that the shapes of learned tensors show; {} for another method's file."""
        ctx = learned.get("ctx")
        if ctx is None or ctx.dim() not in (2, 3):
            return {}
        return {"N_CTX": ctx.shape[-2], "CTX_INIT": "", "CSC": ctx.dim() == 3}

    def resume_model_if_exist(self, directory: str | PathLike) -> int:
        """Load the newest intact checkpoints of this run and return the number of completed epochs."""
        found, self.record.history = read_run_record(directory) or RunRecord({}), []
        if not self._is_same_run(directory, found):
            return 0
        selects_by = self.cfg.TEST.SELECT_BY if self.cfg.TEST.FINAL_MODEL == "best_val" else None
        epoch, newest = checkpoints.load_newest(
            directory, list(self._models), found.history, selects_by, self.NEG_INF_TENSORS
        )
        for name, checkpoint in newest.items():
            self._restore(name, checkpoint)
        self.record.history = found.history[:epoch]
        return epoch

    def _restore(self, name: str, checkpoint: dict[str, Any]) -> None:
        """Restore network, optimiser and schedule of a completed epoch."""
        network, optimizer, schedule = self._models[name], self._optims[name], self._scheds[name]
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

    # ---- test ----

    def test(self, split: str | None = None) -> float:
        """Evaluate on a split ("val" or "test", default cfg.TEST.SPLIT) and return the metric TEST.SELECT_BY."""
        split = split or self.cfg.TEST.SPLIT
        print(f"Evaluate on the *{split}* set")
        if split == "test":
            _ = self.dm.dataset.test_fingerprint  # hashed before any image is decoded: a later change is found
        self._evaluate(split)
        metrics, select_by = self.evaluations[split].metrics, self.cfg.TEST.SELECT_BY
        # TensorBoard counts training steps: val gets the last step of the epoch, and the test the step after it.
        step = (self.epoch + 1) * self.num_batches - (split == "val")
        for name, value in metrics.items():
            self.write_scalar(f"{split}/{name}", value, step)
        if select_by not in metrics:
            raise UserError(
                f"TEST.SELECT_BY is {select_by!r}, no finite metric of the evaluator {self.cfg.TEST.EVALUATOR}; "
                f"accepted: {', '.join(metrics)}."
            )
        return metrics[select_by]

    def _evaluate(self, split: str) -> None:
        self.set_model_mode("eval")
        self.evaluator.reset()
        loader = self.val_loader if split == "val" else self.test_loader
        features = self.image_features.of_split(loader, split)
        items, domains = loader.dataset.data_source, self.dm.dataset.domains
        labels = torch.tensor([item.label for item in items])
        batches, predictions = evaluation.feature_batches(features, loader.batch_size), []

        def describe(indices: range) -> str:
            names = sorted({domains[items[i].domain] for i in indices})
            when = f" after epoch {self.epoch + 1}" if split == "val" else ""
            return f"images {indices.start + 1} to {indices.stop} of the {split} split ({', '.join(names)}){when}"

        n, allow_neg_inf = -(-len(features) // loader.batch_size), bool(self.NEG_INF_TENSORS)
        with progress(batches, n, description=f"Classifying {split}", unit="batch") as bar:
            for indices, logits in evaluation.classify(bar, self.classifier(), self.device, describe, allow_neg_inf):
                self.evaluator.process(logits, labels[indices.start : indices.stop].to(self.device))
                predictions.append(Predictions.of(logits))
        metrics, joined = self.evaluator.evaluate(), Predictions.joined(predictions)
        finite = evaluation.finite_metrics(metrics, labels.numpy(), joined.labels.numpy())
        self.evaluations[split] = Evaluation(finite, joined)

    def test_run(self, model_dir: str, epoch: int | None = None) -> None:
        """Test the model of another run, or of a folder with published checkpoints."""
        names, found = self.get_model_names(), read_run_record(model_dir)
        if found and found.identity.get("backbone weights") not in (None, self.backbone.sha256):
            raise UserError(
                f"The model in {model_dir} was trained with another CLIP than {self.cfg.MODEL.BACKBONE.NAME}. Name "
                "that backbone (--backbone)."
            )
        if names and found:
            keys = [f"TRAINER.{self.NODE}.{key}" for key in self.TEST_KEYS]
            run_record.check_trained_as(model_dir, found, self.user_cfg, self.NODE, keys)
        self.restore_threads(read_run_record(self.output_dir))
        self.load_model(model_dir, epoch=epoch)
        self.loaded_training = training = dict(found.training or {}) if found else {}
        if names and epoch is not None:
            training["selection"] = f"epoch {epoch}"
        elif names:
            is_best = checkpoints.find_checkpoint(model_dir, names[0]).name == checkpoints.BEST
            training["selection"] = "best_val" if is_best else "last_step"
        self.model_dir, self.load_epoch = os.path.abspath(model_dir), epoch
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

    # ---- records ----

    @property
    def seconds(self) -> float:
        return round(time.time() - self.started, 1)

    @property
    def train_seconds(self) -> float | None:
        """Seconds of training and validation, with reused prompt labels; None before the first epoch has ended."""
        if not self.record.history:
            return None
        last = self.record.history[-1]
        return round(last["seconds"] + sum(seconds or 0 for seconds in last["reused"].values()), 1)

    def reused(self) -> dict[str, float | None]:
        """Results of earlier runs that this run uses, with the seconds they took; None: unknown."""
        return {"image features": None} if self.image_features.cache.oldest_read < self.started else {}

    def n_trained(self) -> list[int]:
        """Numbers of trainable parameters, stage by stage; [] for a method without training."""
        networks = [self._models[name] for name in self.get_model_names()]
        return [sum(weights.numel() for network in networks for weights in network.parameters())] if networks else []

    @classmethod
    def config_settings(cls, cfg: CfgNode) -> dict[str, Any]:
        return run_record.settings_of(cfg, cls.NODE)

    def run_settings(self) -> dict[str, Any]:
        return {**self.config_settings(self.user_cfg), "MODEL.INIT_WEIGHTS": self.init_prompts_hash}

    def identity(self) -> dict[str, Any]:
        """Everything that must be equal when the run is resumed: settings, data, weights."""
        identity = run_record.identity_of(self.user_cfg, self.run_settings(), self.dm.dataset, self.backbone.sha256)
        return {**identity, "tested model": self.model_dir or "its own"}

    def training_facts(self) -> dict[str, Any]:
        """The keys of results.json that describe the training of this run's model."""
        dataset, n_trained, history = self.dm.dataset, self.n_trained(), self.record.history
        reused = history[-1]["reused"] if history else {}
        return {
            "dataset": dataset_name(self.cfg),
            "source_domains": list(dataset.source_domains),
            "class_subset": class_subset(self.cfg),
            "num_shots": self.cfg.DATASET.NUM_SHOTS,
            "data_fingerprint": dataset.fingerprint if n_trained else None,
            "split_by_seed": run_record.is_split_by_seed(self.cfg, dataset),
            "selection": self.cfg.TEST.FINAL_MODEL if n_trained else None,
            "settings_sha256": hash_json(self.run_settings()),
            "n_trained": n_trained,
            "train_seconds": self.train_seconds,
            "train_reused": [name for name, seconds in reused.items() if seconds is None],
        }

    def write_records(self) -> None:
        """Write run.json of a completed training, and the results of its test."""
        self.record.training = self.training_facts()
        self.write_run_record()
        if "test" in self.evaluations:
            self.write_results()

    def write_results(self) -> None:
        """Write predictions.csv, logits.npy and, last, results.json, which marks the run as finished."""
        cfg, dataset, history = self.cfg, self.dm.dataset, self.record.history
        metrics, predictions = self.evaluations["test"].metrics, self.evaluations["test"].predictions
        dataset.check_unchanged()
        rows = prediction_rows(dataset, cfg.DATASET.ROOT, predictions.labels.tolist(), predictions.confidence.tolist())
        write_predictions(self.output_dir, rows)
        if cfg.TEST.KEEP_LOGITS:
            write_logits(self.output_dir, predictions.logits.numpy())
        labels, predicted = np.array([item.label for item in dataset.test]), predictions.labels.numpy()
        name, subset = dataset_name(cfg), class_subset(cfg)
        if self.model_dir is None:
            training = self.training_facts()
        else:
            training = {"source_domains": list(dataset.source_domains), **UNKNOWN_TRAINING, **self.loaded_training}
            settings = {**self.run_settings(), "training of the model": training["settings_sha256"]}
            training["settings_sha256"] = hash_json(settings)
        trained_on, trained_classes = training.pop("dataset", name), training.pop("class_subset", None)
        learns, sources = training["selection"] is not None, training["source_domains"]
        is_base_to_new = subset != "all" and (not learns or trained_classes == "base")
        best = None if self.best_epoch is None else history[self.best_epoch - 1]
        result = Result(
            **training,
            trainer=cfg.TRAINER.NAME,
            config=cfg.TRAINER.CONFIG,
            dataset=name,
            backbone=backbone_label(self.backbone.name),
            backbone_sha256=self.backbone.sha256,
            backbone_name=self.backbone.name,
            backbone_family=self.backbone.info.family,
            precision=self.backbone.precision,
            protocol=protocol_name(sources, dataset.target_domains, trained_on != name, is_base_to_new),
            trained_on=None if trained_on == name else trained_on,
            model_dir=self.model_dir,
            load_epoch=self.load_epoch,
            target_domains=list(dataset.target_domains),
            class_subset=subset,
            test_subset=dataset.test_subset,
            classnames=list(dataset.classnames),
            test_fingerprint=dataset.test_fingerprint,
            domain_fingerprints=run_record.domain_fingerprints(cfg, dataset, trained=self.model_dir is None and learns),
            seed=cfg.SEED,
            accuracy=metrics["accuracy"],
            macro_f1=metrics["macro_f1"],
            accuracy_by_domain=accuracy_by_domain(rows),
            accuracy_by_class=evaluation.accuracy_by_class(labels, predicted, dataset.classnames),
            calibration_error=evaluation.calibration_error(predictions.confidence.numpy(), predicted == labels),
            metrics=metrics,
            n_test=len(dataset.test),
            val_accuracy=None if best is None else best["val_accuracy"],
            best_epoch=self.best_epoch,
            val_history=[] if best is None else [epoch["val_accuracy"] for epoch in history],
            loss_history=[epoch["losses"] for epoch in history],
            seconds=self.seconds,
            threads=self.threads,
            revision=revision(),
            versions=versions(),
        )
        write_results(self.output_dir, asdict(result))
