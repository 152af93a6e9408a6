"""What all our trainers share: a frozen CLIP, its features, model selection, results."""

import copy
import functools
import hashlib
import itertools
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import set_random_seed
from torch.utils.data import DataLoader

from common.errors import UserError
from common.interruption import check_interruption
from common.progress import progress
from common.reproducible import revision
from common.run.history import read_history, write_history
from common.run.identity import TRAINED_FILE, identity_differences, read_identity, write_identity
from common.run.names import dataset_label, protocol_name
from common.run.predictions import accuracy_by_domain, prediction_rows, write_predictions
from common.run.records import read_record, write_record
from common.run.results import RESULTS_FILE, versions, write_results
from common.run.threads import read_threads, write_threads
from common.threads import asked_for, plan_threads, usable_cores, waiting
from trainers.base.checkpoints import BEST, best_of, find_checkpoint, resume
from trainers.modules.clip_backbone import (
    backbone_label,
    check_precision,
    clip_sha256,
    effective_precision,
    load_clip,
    n_tower_weights,
    weights_fingerprint,
)
from trainers.modules.features import FeatureCache, encode_dataset, features_key
from trainers.modules.prompt_encoder import PromptEncoder
from trainers.modules.seeded_items import RandomViews, SeededBatches, SeededItems
from trainers.modules.view_loader import ViewLoader

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CPU_MEMORY_MB = 2048
GPU_MEMORY_SHARE = 0.25  # of the device's memory
UNKNOWN = "unknown"  # in results.json, of a model whose training is not on record


class ClassNamesOnly:
    """Takes the place of Dassl's DataManager where there are no images."""

    def __init__(self, classnames):
        self.dataset = SimpleNamespace(classnames=list(classnames), domains=(), source_domains=(), target_domains=())
        self.num_classes = len(classnames)
        self.lab2cname = dict(enumerate(classnames))


class FrozenClipTrainer(TrainerX):
    """Base class of trainers that learn contexts for a frozen CLIP.

    A subclass says which contexts (`build_prompt_model`, `text_features`) and, if it is not the cross-entropy of
    their logits, which loss (`forward_backward`).

    Args:
        cfg: frozen config with the keys of trainers.config.
        clip_model: a CLIP already loaded for this config's backbone and precision, to share it between trainers.
        classnames: build a trainer that predicts these classes and has no data set; None: with cfg's data set.
    """

    SETTINGS = None  # name of the trainer's node under cfg.TRAINER
    restart_on_difference = False  # whether a run starts anew where the folder holds one with other settings

    def __init__(self, cfg, clip_model=None, classnames=None):
        self.clip_model = clip_model
        self.classnames = classnames
        self.best_epoch = None
        self.model_dir = None  # folder of the run whose model was loaded to be tested; None: trained here
        self.load_epoch = None  # which of its epochs, where it was named
        self.trained = {}  # how the model of model_dir was trained, as far as its run says that
        self.history = []  # of each completed epoch: val_accuracy (%) or None, mean losses, seconds so far, scaler
        self.metrics = {}  # split -> what the evaluator found
        self.predictions = {}  # split -> labels and confidences, in the data set's order
        self.started = time.time()
        super().__init__(cfg)

    # ---- building ----

    @property
    def settings(self):
        """This trainer's own config node."""
        return self.cfg.TRAINER[self.SETTINGS]

    def check_cfg(self, cfg):
        check_precision(cfg.TRAINER[self.SETTINGS].PREC)
        if cfg.TEST.SPLIT != "test":
            raise UserError(
                f'TEST.SPLIT is {cfg.TEST.SPLIT!r}; results are those of the target domains\' split, "test".'
            )
        if cfg.INPUT.NO_TRANSFORM or cfg.DATALOADER.K_TRANSFORMS != 1:
            raise UserError(
                "INPUT.NO_TRANSFORM True and DATALOADER.K_TRANSFORMS other than 1 do not go with CLIP's image tower, "
                "which takes one transformed image; leave both at their defaults."
            )
        mean, std = cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD
        if "normalize" not in cfg.INPUT.TRANSFORMS or not np.allclose([mean, std], [CLIP_MEAN, CLIP_STD], atol=1e-3):
            print(
                "Warning: CLIP expects images normalised by its own mean and standard deviation, and INPUT says "
                f"otherwise (TRANSFORMS {list(cfg.INPUT.TRANSFORMS)}, PIXEL_MEAN {list(mean)}, PIXEL_STD {list(std)}): "
                "accuracies will suffer. The configs in configs/trainers/ have it right (--config-file)."
            )

    def build_data_loader(self):
        # Before the data, since the images' size is the backbone's.
        backbone = self.cfg.MODEL.BACKBONE
        self.precision = effective_precision(self.settings.PREC, self.device)
        if self.clip_model is None:
            self.clip_model = load_clip(backbone.NAME, self.device, self.precision, backbone.PATH)
        self.settle_threads(plan_threads(n_tower_weights(self.clip_model), self.cfg.DATALOADER.NUM_WORKERS))
        side = self.clip_model.visual.input_resolution
        self.cfg.defrost()
        self.cfg.INPUT.SIZE = (side, side)
        self.cfg.freeze()
        if self.classnames is None:
            super().build_data_loader()
        else:
            self.dm = ClassNamesOnly(self.classnames)
            self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None
            self.num_classes, self.num_source_domains = self.dm.num_classes, 0
            self.lab2cname = self.dm.lab2cname

        self.feat_dim = self.clip_model.text_projection.shape[1]
        features = self.cfg.TRAINER.FEATURES
        self._features = {}
        self.feature_cache = FeatureCache(features.CACHE_DIR if features.CACHE else None)
        if self.train_loader_x is not None:
            self.train_loader_x = self.build_train_loader(self.train_loader_x)

    def build_train_loader(self, loader):
        """Dassl's training loader, with this trainer's batches and augmentation that any number of workers repeats."""
        self.batches = self.training_batches(loader.batch_sampler, len(loader.dataset))
        # Without a seed, one of chance, since each worker would augment alike otherwise.
        seed = self.cfg.SEED if self.cfg.SEED >= 0 else int(np.random.SeedSequence().generate_state(1)[0])
        return DataLoader(
            SeededItems(loader.dataset, seed),
            batch_sampler=SeededBatches(self.batches, lambda: self.epoch),
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            persistent_workers=loader.num_workers > 0,
            # Its own, or the draws from the global one would depend on whether workers were just started.
            generator=torch.Generator(),
        )

    def training_batches(self, batch_sampler, n_images):
        """The batches of indices that training draws; `batch_sampler` draws one batch of images at a time."""
        return batch_sampler

    def build_model(self):
        self.scaler = torch.amp.GradScaler(self.device.type) if self.precision == "amp" else None
        self.build_prompt_model()

    def build_prompt_model(self):
        """Make the learnable networks and register them with their optimisers and schedules."""
        raise NotImplementedError

    def register_network(self, name, network):
        """Put a network on the device and register it with an optimiser and schedule of its own; returns it."""
        network.to(self.device)
        optimizer = build_optimizer(network, self.cfg.OPTIM)
        self.register_model(name, network, optimizer, build_lr_scheduler(optimizer, self.cfg.OPTIM))
        return network

    def build_encoder(self, classnames=None, **settings):
        """A PromptEncoder for class names (None: this run's), within the memory budget."""
        memory_mb = self.cfg.TEST.MEMORY_MB
        if not memory_mb:
            memory_mb = CPU_MEMORY_MB
            if self.device.type == "cuda":
                total = torch.cuda.get_device_properties(self.device).total_memory
                memory_mb = int(total * GPU_MEMORY_SHARE) // 2**20
        names = self.dm.dataset.classnames if classnames is None else classnames
        return PromptEncoder(self.clip_model, names, memory_mb=memory_mb, **settings)

    # ---- features ----

    @torch.no_grad()
    def encode_image(self, image):
        """(B, 3, H, W) images -> (B, E) L2-normalised features in single precision."""
        with self.autocast():
            features = self.clip_model.encode_image(image.to(self.device, non_blocking=True))
        features = features.float()
        return features / features.norm(dim=-1, keepdim=True)

    def batch_features(self, batch):
        """L2-normalised image features (B, E) of a training batch: encoded now, or looked up among views."""
        check_interruption()
        return self.encode_image(batch["img"]) if "img" in batch else batch["features"].to(self.device)

    def split_features(self, loader, description):
        """Features (N, E) of a deterministic loader's images in the data set's order, cached."""

        def encode(dataset, out):
            self._encode(dataset, out, loader.batch_size or 64, description)

        return self._cached_by_domain(loader.dataset, (), encode, description)

    def build_view_loader(self, loader):
        """A loader of features drawn from TRAIN_VIEWS random views of each training image, encoded once."""
        if any(parameter.requires_grad for parameter in self.clip_model.visual.parameters()):
            raise UserError(
                "TRAINER.FEATURES.TRAIN_VIEWS encodes training images once, but the image tower of "
                f"{type(self).__name__} trains, so their features change. Set it to 0."
            )
        n_views, dataset = self.cfg.TRAINER.FEATURES.TRAIN_VIEWS, loader.dataset.dataset

        def encode_views(images):
            return self.encode_image(images.flatten(0, 1)).unflatten(0, images.shape[:2])

        def encode(dataset, out):
            batch_size = max(1, self.cfg.DATALOADER.TEST.BATCH_SIZE // n_views)
            views = RandomViews(dataset, n_views)
            self._encode(views, out.swapaxes(0, 1), batch_size, f"train, {n_views} views", encode_views)

        views = self._cached_by_domain(dataset, (n_views,), encode, f"train, {n_views} views")
        return ViewLoader(views, dataset.data_source, self.batches)

    def _encode(self, dataset, out, batch_size, description, encode=None):
        workers = self.cfg.DATALOADER.NUM_WORKERS
        encode_dataset(dataset, encode or self.encode_image, out, batch_size, workers, description)

    def _cached_by_domain(self, dataset, leading, encode, description):
        """Features (*leading, N, E) of a data set.

        Each domain is an entry of the cache by itself, so that stage I, every stage II and every choice of targets
        share what is encoded of a domain.

        Args:
            encode: called with a data set and an array (*leading, n, E) to fill.
        """
        if (id(dataset), leading) in self._features:
            return self._features[id(dataset), leading][1]
        items = dataset.data_source
        runs = [list(run) for _, run in itertools.groupby(range(len(items)), key=lambda i: items[i].domain)]
        parts = []
        for run in runs:
            part = copy.copy(dataset)
            part.data_source = items[run[0] : run[-1] + 1]
            shape = (*leading, len(run), self.feat_dim)
            name = f"{self.dm.dataset.domains[items[run[0]].domain]}, {description}"
            key = self._features_key(part, *leading)
            parts.append(self.feature_cache.get(key, shape, functools.partial(encode, part), name))
        features = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=len(leading))
        self._features[id(dataset), leading] = dataset, features  # the data set too, so that its id stays its own
        return features

    def _features_key(self, dataset, *more):
        paths = [item.impath for item in dataset.data_source]
        # The repr of Dassl's own transforms leaves out their settings, which INPUT has.
        return features_key(
            self.image_tower_sha256, self.precision, dataset.transform, paths, self.cfg.INPUT.dump(), *more
        )

    @property
    def image_tower_sha256(self):
        """Fingerprint of the image tower's weights."""
        if not hasattr(self.clip_model, "image_tower_sha256"):
            self.clip_model.image_tower_sha256 = weights_fingerprint(self.clip_model.visual)
        return self.clip_model.image_tower_sha256

    # ---- logits ----

    def autocast(self):
        """Autocast under PREC amp, nothing otherwise."""
        return torch.autocast(self.device.type, enabled=self.precision == "amp")

    def text_features(self, features, indices):
        """The text features that images are classified against.

        Args:
            features: (B, E) image features.
            indices: B indices of the images within their split.

        Returns:
            (C, E) for all of them or (B, C, E) for each its own.
        """
        raise NotImplementedError

    def logits(self, features, text_features):
        """exp(logit_scale) * f . t_c: (B, E) with (C, E) or (B, C, E) -> (B, C)."""
        text_features = text_features.float()
        if text_features.dim() == 2:
            similarity = features @ text_features.t()
        else:
            similarity = torch.einsum("be,bce->bc", features, text_features)
        return self.clip_model.logit_scale.exp().float() * similarity

    def predict(self, features, indices):
        """Logits (B, C) of images by their features (B, E) and indices within their split, in evaluation mode."""
        with self.autocast():
            text_features = self.text_features(features, indices)
        return self.logits(features, text_features)

    @torch.no_grad()
    def model_inference(self, image):
        features = self.encode_image(image)
        return self.predict(features, range(len(features)))

    # ---- training ----

    def settle_threads(self, threads):
        """Compute with these numbers of threads from now on."""
        self.threads = threads
        threads.use(self.cfg.DATALOADER.NUM_WORKERS)

    def take_threads(self):
        """Take the threads of the run that the output folder holds, and note there those of a new one."""
        known = read_threads(self.output_dir, self.cfg.DATALOADER.NUM_WORKERS)
        if asked_for() is None and known is not None:
            self.settle_threads(known)
        elif known not in (None, self.threads):
            print(
                f"Note: OMP_NUM_THREADS is {asked_for()}, but so far this run computed with {known.beside_workers} "
                f"threads and, where no loader workers ran, with {known.alone}; the last digits may differ."
            )
        if known != self.threads:
            write_threads(self.output_dir, self.threads)
        if self.cfg.VERBOSE:
            print(
                f"Threads: {self.threads.alone}, beside loader workers {self.threads.beside_workers} ({waiting()}); "
                f"cores: {usable_cores()}"
            )

    def train(self):
        self.take_threads()
        super().train()

    def forward_backward(self, batch):
        """One step on the cross-entropy of the logits; methods with another loss override it."""
        features, labels = self.batch_features(batch), batch["label"].to(self.device)
        with self.autocast():
            text_features = self.text_features(features, batch["index"])
        logits = self.logits(features, text_features)
        loss = F.cross_entropy(logits, labels)
        self.model_backward_and_update(loss)
        return {"loss": loss.item(), "acc": compute_accuracy(logits, labels)[0].item()}

    def detect_anomaly(self, loss):
        """Stop at a loss that is not finite, with all that helps to find out why.

        Raises:
            UserError: it is not.
        """
        if torch.isfinite(loss).all():
            return
        kept = f"The checkpoint of epoch {self.epoch} is kept. " if self.epoch else ""
        raise UserError(
            f"The loss became {loss.item()} in epoch {self.epoch + 1} of {self.max_epoch}, step "
            f"{self.batch_idx + 1} of {self.num_batches} (learning rate {self.get_current_lr():.2g}, precision "
            f"{self.precision}). Most likely the learning rate is too high (OPTIM.LR), or half precision overflows "
            f"(PREC fp32). {kept}Changed settings need another --output-dir."
        )

    def model_backward_and_update(self, loss, names=None):
        if self.scaler is None:
            super().model_backward_and_update(loss, names)
            return
        self.detect_anomaly(loss)
        self.model_zero_grad(names)
        self.scaler.scale(loss).backward()
        for name in self.get_model_names(names):
            self.scaler.step(self._optims[name])
        self.scaler.update()

    def before_train(self):
        if self.cfg.TEST.FINAL_MODEL == "best_val" and self.val_loader is None:
            raise UserError(
                "TEST.FINAL_MODEL is best_val, but the source domains are too small for a validation split to choose "
                "an epoch by. Add images, or set TEST.FINAL_MODEL last_step."
            )
        if self.cfg.RESUME and read_history(self.output_dir, 1):
            # A run that was begun from another one goes on by itself.
            self.cfg.defrost()
            self.cfg.RESUME = ""
            self.cfg.freeze()
        super().before_train()
        self.best_result, self.best_epoch = best_of(self.history)
        if self.history:
            self.started = time.time() - self.history[-1]["seconds"]
            if self.scaler is not None:
                self.scaler.load_state_dict(self.history[-1]["scaler"])
        write_identity(self.output_dir, self.identity())
        self.epoch_bar = progress(
            total=self.max_epoch,
            initial=self.start_epoch,
            description=f"{self.cfg.TRAINER.NAME} ({', '.join(self.dm.dataset.source_domains)})",
            unit="epoch",
        )
        if self.cfg.TRAINER.FEATURES.TRAIN_VIEWS:
            self.train_loader_x = self.build_view_loader(self.train_loader_x)
            self.threads.use(workers=0)  # none is needed any more

    def before_epoch(self):
        super().before_epoch()
        self._train_scalars = {}
        if self.cfg.SEED >= 0:
            # Each epoch's randomness follows from seed and epoch alone, so that a resumed run draws the same batches
            # and noise, and no random state needs to be saved. (Augmentation: see SeededItems.)
            mixed = np.random.SeedSequence([self.cfg.SEED, self.epoch]).generate_state(1)[0]
            set_random_seed(int(mixed))

    def run_epoch(self):
        loader, title = self.train_loader_x, f"Epoch {self.epoch + 1}"
        try:
            # Dassl's loop takes the bar for the loader.
            with progress(loader, len(loader), description=title, unit="batch") as bar:
                self.train_loader_x = bar
                super().run_epoch()
        finally:
            self.train_loader_x = loader
        self.update_lr()

    def write_scalar(self, tag, scalar_value, global_step=None):
        # Dassl's running means of the epoch pass by here, so the last ones are the epoch's means.
        if tag.startswith("train/") and tag != "train/lr":
            self._train_scalars[tag.removeprefix("train/")] = float(scalar_value)
        super().write_scalar(tag, scalar_value, global_step)

    def after_epoch(self):
        """Training-domain validation: keep the epoch that is best on the source domains' val splits.

        Killed at any point in here, a run does the epoch again, and all of this with it.
        """
        accuracy, is_best = None, False
        if self.cfg.TEST.FINAL_MODEL == "best_val":
            accuracy = self.test(split="val")
            is_best = accuracy > self.best_result
            self.epoch_bar.set_postfix(val=f"{accuracy:.1f} %")
        seconds = round(time.time() - self.started, 1)
        entry = {"val_accuracy": accuracy, "losses": self._train_scalars, "seconds": seconds}
        if self.scaler is not None:
            entry["scaler"] = self.scaler.state_dict()
        self.history.append(entry)
        write_history(self.output_dir, self.history)
        if is_best:
            self.best_result, self.best_epoch = accuracy, self.epoch + 1
            self.save_model(self.epoch, self.output_dir, val_result=accuracy, model_name="model-best.pth.tar")
        self.epoch_bar.update()
        self.save_model(self.epoch, self.output_dir)
        self._remove_checkpoint(self.epoch - 1)  # epochs are counted from 1 in file names: the last two are kept

    def _remove_checkpoint(self, epoch):
        """Keep the last two checkpoints, one of which may turn out to be damaged, and every CHECKPOINT_FREQ-th."""
        frequency = self.cfg.TRAIN.CHECKPOINT_FREQ
        if epoch < 1 or (frequency > 0 and epoch % frequency == 0):
            return
        for name in self.get_model_names():
            Path(self.output_dir, name, f"model.pth.tar-{epoch}").unlink(missing_ok=True)

    def after_train(self):
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

    @torch.no_grad()
    def test(self, split=None):
        """Evaluate on a split ("val" or "test", default cfg.TEST.SPLIT) and return its accuracy in percent."""
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        loader = self.val_loader if split == "val" else self.test_loader
        print(f"Evaluate on the *{split}* set")

        features = self.split_features(loader, split)
        labels = torch.tensor([item.label for item in loader.dataset.data_source])
        batch_size = loader.batch_size
        starts = range(0, len(labels), batch_size)
        confidence, predicted = [], []
        # Loader workers wait meanwhile.
        with self.threads.all():
            for start in progress(starts, description=f"Classifying {split}", unit="batch"):
                check_interruption()
                indices = range(start, min(start + batch_size, len(labels)))
                chunk = torch.from_numpy(np.array(features[start : indices.stop])).to(self.device)
                logits = self.predict(chunk, indices)
                self.evaluator.process(logits, labels[start : indices.stop].to(self.device))
                # By the logits, as the evaluator has it: probabilities may be equal where logits are not quite.
                predicted.append(logits.argmax(dim=-1))
                confidence.append(logits.softmax(dim=-1).amax(dim=-1))

        self.predictions[split] = torch.cat(predicted).cpu(), torch.cat(confidence).cpu()
        self.metrics[split] = self.evaluator.evaluate()
        for name, value in self.metrics[split].items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(self.metrics[split].values()))

    def write_outcome(self):
        """Write the results of a run that was tested; of another, what its model was trained on."""
        if "test" in self.metrics:
            self.write_results()
            return
        write_record(Path(self.output_dir) / TRAINED_FILE, self.training_record())

    def training_record(self):
        """What results of this run's model have to say of its training, by the names of results.json."""
        dataset = self.dm.dataset
        return {
            "dataset": dataset_label(self.cfg),
            "source_domains": list(dataset.source_domains),
            "num_shots": self.cfg.DATASET.NUM_SHOTS,
            "data_fingerprint": dataset.fingerprint,
            "selection": self.cfg.TEST.FINAL_MODEL if self.get_model_names() else None,
            "settings_sha256": self.settings_sha256(),
        }

    def test_run(self, model_dir, epoch=None):
        """Test the model of another run (or of none, for methods that learn nothing).

        Raises:
            UserError: it was trained with another backbone, or cannot be loaded.
        """
        backbone = read_identity(model_dir).get("backbone")
        if backbone not in (None, clip_sha256(self.clip_model)):
            raise UserError(
                f"The model in {model_dir} was trained with another CLIP than {self.cfg.MODEL.BACKBONE.NAME}, whose "
                "weights differ. Name the backbone that it was trained with."
            )
        self.take_threads()
        self.load_model(model_dir, epoch=epoch)
        self.load_epoch = epoch
        self.model_dir = os.path.abspath(model_dir)
        self.trained = read_training_record(model_dir)
        if self.get_model_names():
            if epoch is None:
                best = find_checkpoint(model_dir, self.get_model_names()[0]).name == BEST
                self.trained["selection"] = "best_val" if best else "last_step"
            else:
                self.trained["selection"] = f"epoch {epoch}"
        self.test()

    def write_results(self):
        """Write predictions.csv and results.json of a run whose test is done."""
        cfg, dataset, metrics = self.cfg, self.dm.dataset, self.metrics["test"]
        has_val = self.best_epoch is not None
        label = dataset_label(cfg)
        # Of another run's model, this run's settings do not tell how it was trained.
        training = self.training_record() if self.model_dir is None else self.trained
        trained_on = training.get("dataset", label)
        trained_on = None if trained_on == label else trained_on
        sources = training.get("source_domains", dataset.source_domains)
        predicted, confidence = self.predictions["test"]
        rows = prediction_rows(dataset, cfg.DATASET.ROOT, predicted.tolist(), confidence.tolist())
        write_predictions(self.output_dir, rows)
        write_results(
            self.output_dir,
            {
                "trainer": cfg.TRAINER.NAME,
                "config": cfg.TRAINER.CONFIG,
                "dataset": label,
                "backbone": backbone_label(cfg.MODEL.BACKBONE.NAME),
                "backbone_sha256": clip_sha256(self.clip_model),
                "precision": self.precision,
                "protocol": protocol_name(sources, dataset.target_domains, trained_on is not None),
                "trained_on": trained_on,
                "model_dir": self.model_dir,
                "load_epoch": self.load_epoch,
                "source_domains": list(sources),
                "target_domains": list(dataset.target_domains),
                "test_subset": dataset.test_subset,
                "num_shots": training.get("num_shots", UNKNOWN),
                "classnames": list(dataset.classnames),
                "data_fingerprint": training.get("data_fingerprint", UNKNOWN),
                "test_fingerprint": dataset.test_fingerprint,
                "settings_sha256": self.settings_sha256(),
                "selection": training.get("selection"),
                "seed": cfg.SEED,
                "accuracy": float(metrics["accuracy"]),
                "macro_f1": float(metrics["macro_f1"]),
                "accuracy_by_domain": accuracy_by_domain(rows),
                "n_test": len(dataset.test),
                "val_accuracy": float(self.best_result) if has_val else None,
                "best_epoch": self.best_epoch,
                "val_history": [epoch["val_accuracy"] for epoch in self.history] if has_val else [],
                "loss_history": [epoch["losses"] for epoch in self.history],
                "seconds": round(time.time() - self.started, 1),
                "threads": torch.get_num_threads(),
                "threads_alone": self.threads.alone,
                "threads_beside_workers": self.threads.beside_workers,
                "thread_waiting": waiting(),
                "revision": revision(),
                "versions": versions(),
            },
        )

    def settings_sha256(self):
        """Fingerprint of the settings alone: equal for runs that differ in data, domains, seed and backbone only."""
        settings = {key: value for key, value in self.identity().items() if "." in key}
        if self.model_dir is not None:
            settings["of the model's training"] = self.trained.get("settings_sha256", UNKNOWN)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def identity(self):
        """What makes this run what it is: settings and fingerprints, plain values by name."""
        cfg, dataset = self.cfg, self.dm.dataset
        identity = {
            "TRAINER.NAME": cfg.TRAINER.NAME,
            "backbone": clip_sha256(self.clip_model),
            "class names": list(dataset.classnames),
            "images": dataset.fingerprint,
            "source domains": list(dataset.source_domains),
            "SEED": cfg.SEED,
            "TRAINER.FEATURES.TRAIN_VIEWS": cfg.TRAINER.FEATURES.TRAIN_VIEWS,
        }
        identity |= {f"OPTIM.{key}": value for key, value in cfg.OPTIM.items()}
        identity |= {f"INPUT.{key}": value for key, value in cfg.INPUT.items() if key != "SIZE"}  # the backbone's
        identity |= {f"TEST.{key}": cfg.TEST[key] for key in ("FINAL_MODEL", "N_PROMPTS")}
        identity |= {f"DATALOADER.TRAIN_X.{key}": value for key, value in cfg.DATALOADER.TRAIN_X.items()}
        # Where labels lie does not matter, what they are does: they are checked when they are loaded.
        aside = ("LABEL_DIR", "STAGE1_CONFIG_FILE", "STAGE1_OPTS")
        identity |= {
            f"TRAINER.{self.SETTINGS}.{key}": value for key, value in self.settings.items() if key not in aside
        }
        return identity

    def resume_model_if_exist(self, directory):
        differences = identity_differences(directory, self.identity())
        if differences and self.restart_on_difference:
            print(f"The unfinished run in {directory} had other settings ({differences}); starting anew")
            return 0
        if differences:
            raise UserError(
                f"{directory} holds an unfinished run with other settings: {differences}. Delete it to start anew, or "
                "name another --output-dir."
            )
        networks = {name: (self._models[name], self._optims[name], self._scheds[name]) for name in self._models}
        start_epoch, self.history = resume(directory, networks, self.cfg.TEST.FINAL_MODEL == "best_val")
        return start_epoch


def read_training_record(model_dir):
    """How the model in a run's folder was trained, by its results.json or trained.json; {} where neither says."""
    keys = ("dataset", "source_domains", "num_shots", "data_fingerprint", "settings_sha256")
    for name in (RESULTS_FILE, TRAINED_FILE):
        try:
            record = read_record(Path(model_dir) / name)
        except (OSError, ValueError):
            continue
        if not record.get("trained_on"):
            return {key: record[key] for key in keys if key in record}
    return {}
