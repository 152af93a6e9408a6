"""SPG on images: whole runs, their epochs of stage II, and the test split seen again."""

import contextlib
import io
import itertools
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import reference
import torch
from dassl.utils import set_random_seed
from torch import Tensor
from torch.utils.data import DataLoader, Subset

import train
from common.startup import REPOSITORY
from scripts.benchmarks.methods import copy_tensors
from scripts.benchmarks.timing import Row, difference, timed
from trainers.base.trainer import PromptTrainer
from trainers.methods import find_method
from trainers.spg import SPG, read_stage1_optim

VIEWS = 8
SHARED = REPOSITORY.parent / "shared"  # real images and tiny CLIPs, next to a developer's checkout
MINI_CLIP = REPOSITORY / "assets/mini_clip.pt"


class Images(NamedTuple):
    """Images and a CLIP, as train.py takes them. The goals are for PACS."""

    name: str
    root: Path
    dataset: str
    config: str
    backbone: Path
    target: str = "sketch"
    has_goals: bool = False


class Amounts(NamedTuple):
    """Images that the reference classifies, its steps of stage II, and our epochs; None: all, as published."""

    images: int | None = None
    steps: int | None = None
    epochs: int | None = None


FULL, QUICK = Amounts(), Amounts(images=24, steps=3, epochs=4)


def choose_images(folder: Path) -> Images:
    """PACS and tiny_rn of ../shared, else MiniDigits, drawn in `folder`, and the CLIP in assets/."""
    backbone = SHARED / "clip/tiny_rn.pt"
    if (SHARED / "data/PACS").is_dir() and backbone.is_file():
        return Images("PACS, tiny_rn", SHARED / "data", "pacs", "pacs", backbone, has_goals=True)
    return Images("MiniDigits, mini_clip", folder / "data", "mini_digits", "default", MINI_CLIP)


class OurRun:
    """A run in a folder of its own, with the duration of its parts.

    Attributes:
        trainer: after its test.
        n_epochs: published number of epochs by trainer.
        seconds: duration with these numbers of epochs, scaled if the run had fewer.
        epoch: duration of a later epoch with its validation; of SPG in stage II.
    """

    def __init__(
        self,
        images: Images,
        output: Path,
        views: int,
        n_epochs: int | None,
        opts: Sequence[str],
        trainer_class: type[PromptTrainer] = SPG,
    ) -> None:
        name, node, configs = trainer_class.__name__, trainer_class.NODE, REPOSITORY / "configs"
        words = ["--trainer", name, "--root", images.root, "--seed", "1", "--backbone", images.backbone]
        words += ["--dataset-config-file", configs / f"datasets/{images.dataset}.yaml"]
        words += ["--config-file", find_method(name).config_file(images.config)]
        # Labels and caches lie next to the run's folder.
        words += ["--target-domains", images.target, "--output-dir", output / "run", "USE_CUDA", "False"]
        words += [f"TRAINER.{node}.PREC", "fp32", "TRAINER.FEATURES.TRAIN_VIEWS", views, *opts]
        cfg = train.setup_cfg(train.parse_args(list(map(str, words))))
        self.n_epochs = {"SPG_CoOp": read_stage1_optim(cfg, "SPG")[0].MAX_EPOCH, name: cfg.OPTIM.MAX_EPOCH}
        if n_epochs:
            cfg.defrost()
            cfg.OPTIM.MAX_EPOCH, cfg.TRAINER.SPG.STAGE1_OPTS = n_epochs, ("OPTIM.MAX_EPOCH", n_epochs)
            cfg.freeze()
        set_random_seed(cfg.SEED)
        self.trainer, ends, after_epoch = trainer_class(cfg), defaultdict(list), PromptTrainer.after_epoch

        def timed_after_epoch(trainer: PromptTrainer) -> None:
            after_epoch(trainer)
            ends[type(trainer).__name__].append(time.perf_counter())

        with patch.object(PromptTrainer, "after_epoch", timed_after_epoch):
            self.seconds, _ = timed(self.trainer.train)
        for name, times in ends.items():  # stage II is the last
            self.epoch = statistics.median(end - start for start, end in itertools.pairwise(times))
            n_runs = len(self.trainer.dm.dataset.source_domains) if name == "SPG_CoOp" else 1
            self.seconds += (n_runs * self.n_epochs[name] - len(times)) * self.epoch


class PublishedRun:
    """The published procedure on the images of a trainer of ours, with its CLIP, networks and prompt labels.

    It encodes validation images again in each epoch, classifies them one at a time in stage II, and walks the training
    loader from its start to find an independent batch.
    """

    def __init__(self, trainer: SPG, amounts: Amounts) -> None:
        self.trainer, self.cfg, self.amounts = trainer, trainer.cfg, amounts
        self.inputs = trainer.clip_model, tuple(trainer.dm.dataset.classnames)
        self.train_set, self.val_set = trainer.dm.train_loader_x.dataset, trainer.val_loader.dataset

    def loader(self, dataset: Any, batch_size: int, is_train: bool = False) -> DataLoader:
        """A loader as published: its workers start again in each epoch."""
        workers = self.cfg.DATALOADER.NUM_WORKERS
        return DataLoader(dataset, batch_size, shuffle=is_train, drop_last=is_train, num_workers=workers)

    def stage1_epoch(self) -> None:
        """An epoch of stage I on the first source domain, with its validation."""
        domain = self.trainer.dm.dataset.domains.index(self.trainer.dm.dataset.source_domains[0])
        train_set, val_set = (
            Subset(part, [i for i, item in enumerate(part.data_source) if item.domain == domain])
            for part in (self.train_set, self.val_set)
        )
        learned = {"prompt_learner.ctx": reference.words(self.inputs[0], "a photo of a").clone().requires_grad_()}
        optimiser = reference.optimiser(read_stage1_optim(self.cfg, "SPG")[0], learned.values())
        for batch in self.loader(train_set, self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE, is_train=True):
            optimiser.zero_grad()
            reference.coop(*self.inputs, learned, batch)[1].backward()
            optimiser.step()
        with torch.no_grad():
            for batch in self.loader(val_set, self.cfg.DATALOADER.TEST.BATCH_SIZE):
                reference.coop(*self.inputs, learned, batch)

    def stage2_training(self) -> float:
        """The duration of a training epoch of stage II, scaled from its first steps if there are many."""
        learned, prompt_labels = copy_tensors(self.trainer), self.trainer.prompt_labels
        assert prompt_labels is not None
        optimisers = {}
        for name in ("generator", "discriminator"):
            tensors = [value for key, value in learned.items() if key.startswith(name) and value.requires_grad]
            optimisers[name] = reference.optimiser(self.cfg.OPTIM, tensors)
        loader = self.loader(self.train_set, self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE, is_train=True)
        n_steps = min(self.amounts.steps or len(loader), len(loader))
        # A few steps take their independent batches evenly from the epoch: the same mean cost as random places.
        positions = [round(i * (len(loader) - 1) / max(1, n_steps - 1)) for i in range(n_steps)]
        if n_steps == len(loader):
            positions = [random.randrange(len(loader)) for _ in range(n_steps)]

        def steps() -> None:
            for batch, position in zip(loader, positions, strict=False):
                independent = next(itertools.islice(loader, position, None))
                joined = {key: torch.cat([batch[key], independent[key]]) for key in ("img", "domain")}
                joined |= {"noise": torch.randn(len(batch["img"]), 100), "prompt labels": prompt_labels[0]}
                for network, _, loss in reference.spg_losses(*self.inputs, learned, joined):
                    optimisers[network].zero_grad()
                    loss.backward()
                    for key, tensor in learned.items():
                        if key.startswith(network) and tensor.grad is not None:
                            tensor.grad = reference.clipped(tensor.grad, key)
                    optimisers[network].step()

        return timed(steps)[0] * len(loader) / n_steps

    @torch.no_grad()
    def classify(self, split: str) -> tuple[float, float]:
        """Classify a split image by image: the time per image, and the largest difference to our logits."""
        loader = self.trainer.val_loader if split == "val" else self.trainer.test_loader
        n_images = min(self.amounts.images or len(loader.dataset), len(loader.dataset))
        learned = copy_tensors(self.trainer)
        noise = reference.image_noise(self.cfg.SEED, range(n_images)).split(1)
        images = self.loader(Subset(loader.dataset, range(n_images)), 1)

        def one_by_one() -> Tensor:
            batches = zip(images, noise, strict=True)
            return torch.cat([reference.spg_logits(*self.inputs, learned, {**b, "noise": z})[0] for b, z in batches])

        seconds, expected = timed(one_by_one)
        self.trainer.set_model_mode("eval")
        features = torch.from_numpy(self.trainer.image_features.of_split(loader, split)[:n_images].copy())
        return seconds / n_images, difference(self.trainer.predict(features, range(n_images)), expected)


def spg_rows(quick: bool, folder: Path) -> Iterator[Row]:
    yield from measure_spg(choose_images(folder), QUICK if quick else FULL, folder)


def measure_spg(images: Images, amounts: Amounts, folder: Path, opts: Sequence[str] = ()) -> Iterator[Row]:
    """Yield all rows for some images; `opts` are KEY VALUE pairs of both runs."""
    with contextlib.redirect_stdout(io.StringIO()):  # trainers print notes
        exact = OurRun(images, folder / "exact", 0, amounts.epochs, opts)
        with_views = OurRun(images, folder / "views", VIEWS, amounts.epochs, opts)
        trainer, published = exact.trainer, PublishedRun(exact.trainer, amounts)
        n_test, n_val = len(trainer.test_loader.dataset), len(trainer.val_loader.dataset)
        seen_again = statistics.median(timed(lambda: trainer.test("test"))[0] for _ in range(5))
        stage1, _ = timed(published.stage1_epoch)
        per_test_image, test_gap = published.classify("test")
        per_val_image, val_gap = published.classify("val")
        stage2 = published.stage2_training() + n_val * per_val_image
    n_classes, n_sources = len(trainer.dm.dataset.classnames), len(trainer.dm.dataset.source_domains)
    whole = n_sources * exact.n_epochs["SPG_CoOp"] * stage1 + exact.n_epochs["SPG"] * stage2 + n_test * per_test_image

    def row(name: str, ours: float, theirs: float, unit: str, goal: float | None, *more: Any) -> Row:
        return Row(f"{name}, {images.name}", ours, theirs, unit, goal if images.has_goals else None, *more)

    few = f"; reference: {amounts.steps} steps and {amounts.images} images, scaled" if amounts.steps else ""
    whole_note = f"reference scaled from one epoch of each stage, ours {f'from {amounts.epochs}' * bool(few) or 'real'}"
    yield row(
        *(f"test split seen again, SPG, {n_classes} classes", n_test / seen_again, 1 / per_test_image, "images/s", 20),
        *(test_gap, f"{n_test} images, reference one by one{few}"),
    )
    yield row("stage II epoch with validation, exact", exact.epoch, stage2, "s", 14, val_gap, f"a later epoch{few}")
    note = "another augmentation: no outputs to compare"
    yield row(f"stage II epoch with validation, TRAIN_VIEWS {VIEWS}", with_views.epoch, stage2, "s", None, None, note)
    yield row("whole SPG run, exact", exact.seconds, whole, "s", 12, None, whole_note)
    yield row(f"whole SPG run, TRAIN_VIEWS {VIEWS}", with_views.seconds, whole, "s", 25, None, whole_note)
