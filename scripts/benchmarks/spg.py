"""Measures of SPG itself, on images: steps and epochs of both stages, inference, a whole run."""

import contextlib
import copy
import os
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from yacs.config import CfgNode

import datasets
import train
from common.errors import UserError
from common.startup import REPOSITORY
from scripts.benchmarks.reference import (
    PublishedTextEncoder,
    classify_one_by_one,
    coop_step,
    initial_context,
    stage1_training,
    stage1_validation,
    stage2_step,
    stage2_training,
    training_loader,
)
from scripts.benchmarks.text import relative_difference
from scripts.benchmarks.timing import Row, difference, median_pair, median_seconds, timed
from trainers.base.trainer import PromptTrainer
from trainers.modules.cgan import image_noise
from trainers.spg import SPG, SPG_CoOp

VIEWS = 8
SHARED = REPOSITORY.parent / "shared"  # real images and tiny CLIPs, beside the checkout of developers
MINI_CLIP = REPOSITORY / "assets" / "mini_clip.pt"
CONFIGS = REPOSITORY / "configs"


@dataclass(frozen=True)
class Images:
    """The images and the CLIP that SPG is measured with.

    Attributes:
        name: for the table.
        root, dataset_file, method_file, target, backbone: as train.py takes them.
        goals: whether the project's goals, which are for PACS and tiny_rn, apply.
    """

    name: str
    root: Path
    dataset_file: Path
    method_file: Path
    target: str
    backbone: Path
    goals: bool = False


@dataclass(frozen=True)
class SpgAmounts:
    """How much is measured.

    Attributes:
        images: how many the reference classifies one by one; None: the whole split.
        positions: how many steps of stage II the reference makes, the independent batches evenly spread over the
            loader (which costs what random places cost on average); None: a whole epoch, at random places.
        epochs: epochs of ours after the first.
        real_runs: whether whole runs are made at the published number of epochs, or scaled from their parts.
        repeats: timed calls of steps.
    """

    images: int | None
    positions: int | None
    epochs: int
    real_runs: bool
    repeats: int


FULL = SpgAmounts(None, None, 3, True, 5)
QUICK = SpgAmounts(24, 3, 1, False, 2)


def choose_images(folder: str | Path) -> Images:
    """PACS and tiny_rn of ../shared where they are, else MiniDigits (made in `folder`) and the CLIP that ships.

    Raises:
        UserError: neither CLIP is there.
    """
    backbone = SHARED / "clip" / "tiny_rn.pt"
    if (SHARED / "data" / "PACS").is_dir() and backbone.is_file():
        files = CONFIGS / "datasets/pacs.yaml", CONFIGS / "trainers/SPG_CGAN/pacs.yaml"
        return Images("PACS, tiny_rn", SHARED / "data", *files, "sketch", backbone, goals=True)
    if not MINI_CLIP.is_file():
        raise UserError(f"The benchmark needs {MINI_CLIP}, which is missing; restore it (git checkout {MINI_CLIP}).")
    files = CONFIGS / "datasets/mini_digits.yaml", CONFIGS / "trainers/SPG_CGAN/default.yaml"
    return Images("MiniDigits, mini_clip", Path(folder) / "data", *files, "sketch", MINI_CLIP)


class SpgBench:
    """Measures SPG against its reference, side by side.

    Args:
        images: Images.
        amounts: SpgAmounts.
        folder: where runs may write; fresh, so that nothing is cached before.
        opts: KEY VALUE pairs on top, for tests.
    """

    def __init__(self, images: Images, amounts: SpgAmounts, folder: str | Path, opts: Sequence[str] = ()) -> None:
        self.images, self.amounts, self.folder, self.opts = images, amounts, Path(folder), list(opts)
        self.log = self.folder / "log.txt"
        self.seconds: dict = {}  # of the parts that a whole run consists of

    def rows(self) -> list[Row]:
        """All rows, in the order of the table."""
        with self.quiet():
            # Bound to this order: stage I and II leave behind the times that the whole runs are scaled from.
            rows = [*self.stage1(), *self.stage2(), *self.views()]
            return [*rows, self.whole_run(0, 4), self.whole_run(VIEWS, 25)]

    # ---- preparation ----

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """What trainers print goes to a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a", encoding="utf-8") as handle, contextlib.redirect_stdout(handle):
            yield

    def cfg(self, name: str, views: int = 0) -> CfgNode:
        """The config of a run named `name`, which shares nothing with other runs."""
        output = self.folder / name
        arguments = ["--trainer", "SPG", "--root", str(self.images.root), "--seed", "1"]
        arguments += ["--dataset-config-file", str(self.images.dataset_file)]
        arguments += ["--config-file", str(self.images.method_file), "--backbone", str(self.images.backbone)]
        arguments += ["--target-domains", self.images.target, "--output-dir", str(output)]
        arguments += ["TRAINER.SPG.LABEL_DIR", str(output / "labels"), "TRAINER.SPG.PREC", "fp32"]
        arguments += ["TRAINER.FEATURES.CACHE_DIR", str(output / "cache"), "TRAINER.FEATURES.TRAIN_VIEWS", str(views)]
        return train.setup_cfg(train.parse_args([*arguments, "USE_CUDA", "False", *self.opts]))

    def row(
        self,
        what: str,
        ours: float,
        reference: float | None,
        unit: str,
        goal: float | None = None,
        gap: float | None = None,
        note: str = "",
    ) -> Row:
        """A Row about these images; the goals are for some images alone."""
        goal = goal if self.images.goals else None
        return Row(f"{what}, {self.images.name}", ours, reference, unit, goal, gap, note)

    def image_loader(self, loader: DataLoader, batch_size: int, n_images: int | None = None) -> DataLoader:
        """The published loader of a val or test split, or of its first images."""
        dataset = loader.dataset if n_images is None else Subset(loader.dataset, range(n_images))
        return DataLoader(dataset, batch_size=batch_size, num_workers=self.workers)

    # ---- stage I ----

    def stage1(self) -> list[Row]:
        """Rows: a step, and an epoch with validation, of stage I on the first source domain."""
        self.trainer = SPG(self.cfg("exact"))
        self.model, self.workers = self.trainer.clip_model, self.trainer.cfg.DATALOADER.NUM_WORKERS
        dataset = self.trainer.dm.dataset
        self.classnames, self.n_sources = dataset.classnames, len(dataset.source_domains)
        stage1 = SPG_CoOp(self.trainer.stage1_cfg(dataset.source_domains[0]), self.trainer.backbone)
        self.stage1_epochs = stage1.max_epoch
        self.published = PublishedTextEncoder(self.model, self.classnames, stage1.encoder.n_ctx)
        with trained(stage1) as before:
            self.batch_size = stage1.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
            loader = training_loader(stage1.train_loader_x.dataset.dataset, self.batch_size, self.workers)
            return [self._stage1_step(stage1, next(iter(loader))), self._stage1_epoch(stage1, loader, before)]

    def _stage1_step(self, stage1, batch):
        ctx = initial_context(self.model).requires_grad_()
        with torch.no_grad():
            stage1.model.ctx.copy_(ctx)
        stage1.forward_backward(batch)
        text_features = coop_step(self.model, self.published, ctx, batch["img"], batch["label"])
        gap = relative_difference(stage1.model.ctx.grad, ctx.grad)
        gap = max(gap, difference(stage1.encoder(ctx), text_features))
        optimizer = torch.optim.SGD([ctx], lr=1e-5, momentum=0.9)
        (ours, _), (theirs, _) = median_pair(
            lambda: stage1.forward_backward(batch),
            lambda: coop_step(self.model, self.published, ctx, batch["img"], batch["label"], optimizer),
            self.amounts.repeats,
        )
        note = f"batch {len(batch['label'])}, decoding not counted"
        return self.row("stage I step", 1000 * ours, 1000 * theirs, "ms", None, gap, note)

    def _stage1_epoch(self, stage1, loader, before):
        first, later = epoch_times(stage1, self.amounts.epochs)
        ctx = stage1.model.ctx.detach().clone().requires_grad_()
        optimizer = torch.optim.SGD([ctx], lr=0.0)  # ours has ended: the same context on both sides
        val = self.image_loader(stage1.val_loader, stage1.val_loader.batch_size)

        def reference():
            stage1_training(self.model, self.published, ctx, optimizer, loader)
            return stage1_validation(self.model, self.published, ctx, val)

        theirs, expected = timed(reference)
        gap = difference(self.cosines(stage1, stage1.val_loader, len(expected)), expected)
        self.seconds["stage1"] = before + first, later, theirs
        note = "the second epoch on; reference validates in batches"
        return self.row("stage I epoch with validation", later, theirs, "s", None, gap, note)

    # ---- stage II ----

    def stage2(self) -> list[Row]:
        """Rows: a step and an epoch of stage II with its validation, in exact mode; inference."""
        trainer = self.trainer
        self.give_labels(trainer)
        with trained(trainer) as before:
            loader = training_loader(trainer.train_loader_x.dataset.dataset, self.batch_size, self.workers)
            rows = [self._stage2_step(loader), self._stage2_epoch(loader, before)]
            return [*rows, self._inference()]

    def give_labels(self, trainer: SPG) -> None:
        """Prompt labels out of thin air, so that stage II need not wait for stage I; its cost is the same."""
        shape = 1, len(trainer.dm.dataset.domains), trainer.encoder.n_ctx, trainer.encoder.ctx_dim
        labels = 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        trainer.load_labels = lambda: labels  # type: ignore[method-assign]  # of this one alone

    def _reference_nets(self):
        """Copies of our networks and optimisers, and the step of the reference with them."""
        ours = self.trainer
        nets = (ours.generator, ours.discriminator), (ours._optims["generator"], ours._optims["discriminator"])
        networks, optimizers = copy.deepcopy(nets)
        norms = (ours.generator_norms, ours.discriminator_norms) if ours.clips_gradients else None

        def step(batch, independent):
            assert ours.prompt_labels is not None  # training began with them
            return stage2_step(self.model, networks, optimizers, norms, batch, independent, ours.prompt_labels[0])

        return networks, step

    def _stage2_step(self, loader):
        batches = iter(loader)
        batch, independent = next(batches), next(batches)
        joined = {key: torch.cat([batch[key], independent[key]]) for key in ("img", "label", "domain")}
        ours = self.trainer
        ours.set_model_mode("train")
        for optimizer in ours._optims.values():
            # Warm-up begins at a rate so small that a wrong update would not show.
            optimizer.param_groups[0]["lr"] = ours.cfg.OPTIM.LR
            # Else AdamW's first step is a whole one even where a gradient is nothing but rounding.
            optimizer.param_groups[0]["eps"] = 1e-5
        published = [dropout.p for dropout in find_dropouts(ours.discriminator)]
        # Ours judges both halves in one pass, so it draws other masks of the same distribution: compared without.
        for dropout in find_dropouts(ours.discriminator):
            dropout.p = 0.0
        (generator, discriminator), step = self._reference_nets()

        torch.manual_seed(1)
        found = ours.forward_backward(joined)
        torch.manual_seed(1)
        _, (loss_d, loss_g) = step(batch, independent)
        for network in (ours.discriminator, discriminator):
            for dropout, p in zip(find_dropouts(network), published, strict=True):
                dropout.p = p
        noise = image_noise(1, range(8), generator.latent_dim)
        features = torch.nn.functional.normalize(torch.randn(8, ours.backbone.feature_size), dim=-1)
        with torch.no_grad():
            gap = difference(ours.generator(features, noise), generator(features, noise))
        gap = max(gap, abs(found["loss_d"] - loss_d), abs(found["loss_g"] - loss_g))
        ours.set_model_mode("train")
        generator.train()
        (seconds, _), (theirs, _) = median_pair(
            lambda: ours.forward_backward(joined), lambda: step(batch, independent), self.amounts.repeats
        )
        note = "two batches of 32; decoding and the search for the independent batch not counted"
        return self.row("stage II step", 1000 * seconds, 1000 * theirs, "ms", None, gap, note)

    def _stage2_epoch(self, loader, before):
        ours = self.trainer
        first, later = epoch_times(ours, self.amounts.epochs)
        networks, step = self._reference_nets()
        n_val = min(self.amounts.images or len(ours.val_loader.dataset), len(ours.val_loader.dataset))
        val = self.image_loader(ours.val_loader, 1, n_val)
        noise = image_noise(ours.cfg.SEED, range(n_val), networks[0].latent_dim)
        # Before the networks are trained on, so that both sides hold the same ones.
        validation, expected = timed(lambda: classify_one_by_one(self.model, self.published, networks[0], val, noise))
        gap = difference(self.cosines(ours, ours.val_loader, n_val), expected)
        validation *= len(ours.val_loader.dataset) / n_val
        networks[0].train()
        training, note = self._reference_epoch(step, loader)
        if n_val < len(ours.val_loader.dataset):
            note += f", validation from {n_val} images"
        self.seconds["stage2"] = before + first, later, training + validation
        what = "stage II epoch with validation, exact"
        return self.row(what, later, training + validation, "s", 5, gap, note)

    def _reference_epoch(self, step, loader):
        """Time of the reference's training epoch in s, and how it was found."""
        n_steps = min(self.amounts.positions or len(loader), len(loader))
        if n_steps == len(loader):
            random.seed(1)
            return timed(lambda: stage2_training(step, loader))[0], f"reference: all {n_steps} steps"
        positions = [round(i * (len(loader) - 1) / max(1, n_steps - 1)) for i in range(n_steps)]
        seconds, _ = timed(lambda: stage2_training(step, loader, positions))
        return seconds * len(loader) / n_steps, f"reference: scaled from {n_steps} of {len(loader)} steps"

    def cosines(self, trainer: PromptTrainer, loader: DataLoader, n_images: int) -> Tensor:
        """Our cosines (n_images, C) of a split's first images, from their cached features."""
        trainer.set_model_mode("eval")
        features = torch.from_numpy(trainer.image_features.of_split(loader, "again")[:n_images].copy())
        with torch.no_grad():
            return trainer.predict(features, range(n_images)) / self.model.logit_scale.exp()

    def _inference(self):
        """Row: the test split seen again. Leaves behind what a first test takes."""
        ours = self.trainer
        loader = ours.test_loader
        n_test = len(loader.dataset)
        self.seconds["test"], _ = timed(lambda: ours.test("test"))
        seconds, _ = median_seconds(lambda: ours.test("test"), max(3, self.amounts.repeats))
        n_images = min(self.amounts.images or n_test, n_test)
        noise = image_noise(ours.cfg.SEED, range(n_images), ours.generator.latent_dim)
        published = self.image_loader(loader, 1, n_images)
        theirs, expected = timed(
            lambda: classify_one_by_one(self.model, self.published, ours.generator, published, noise)
        )
        gap = difference(self.cosines(ours, loader, n_images), expected)
        self.seconds["reference_test"] = theirs * n_test / n_images
        what = f"test split seen again, SPG, {len(self.classnames)} classes"
        note = f"{n_test} images; reference on {n_images}, one by one"
        return self.row(what, n_test / seconds, n_images / theirs, "images/s", 20, gap, note)

    # ---- TRAIN_VIEWS and whole runs ----

    def views(self) -> list[Row]:
        """Row: an epoch of stage II with TRAIN_VIEWS.

        Without real runs only one view is encoded, since the number of views makes no difference to an epoch.
        """
        n_views = VIEWS if self.amounts.real_runs else 1
        trainer = SPG(self.cfg("views", n_views), self.trainer.backbone)
        self.give_labels(trainer)
        with trained(trainer) as encoding:
            first, later = epoch_times(trainer, max(3, self.amounts.epochs))
        self.seconds["views"] = encoding * VIEWS / n_views, first, later
        note = "another augmentation, so no outputs to compare; views are encoded before"
        what = f"stage II epoch with validation, TRAIN_VIEWS {VIEWS}"
        return [self.row(what, later, self.seconds["stage2"][2], "s", None, None, note)]

    def whole_run(self, views: int, goal: float) -> Row:
        """Row: both stages at the published epochs, and the test."""
        note = "every epoch costs the same: reference scaled from its epochs above; "
        if self.amounts.real_runs:
            seconds, note = self._real_run(views), note + "ours run for real"
        else:
            seconds, note = self._scaled_run(views), note + "ours too"
        epochs1, epochs2 = self.n_sources * self.stage1_epochs, self.trainer.max_epoch
        reference = epochs1 * self.seconds["stage1"][2] + epochs2 * self.seconds["stage2"][2]
        reference += self.seconds["reference_test"]
        what = f"whole SPG run, {'TRAIN_VIEWS ' + str(views) if views else 'exact'}"
        return self.row(what, seconds, reference, "s", goal, None, note)

    def _real_run(self, views):
        return timed(lambda: SPG(self.cfg(f"whole_{views}", views)).train())[0]

    def _scaled_run(self, views):
        """Time of a whole run from that of its parts: first epochs, which encode validation images, and later ones."""
        first1, later1, _ = self.seconds["stage1"]
        first2, later2, _ = self.seconds["stage2"]
        epochs2 = self.trainer.max_epoch - 1
        if not views:
            stage1 = first1 + (self.stage1_epochs - 1) * later1
            return self.n_sources * stage1 + first2 + epochs2 * later2 + self.seconds["test"]
        # Stage I encodes the views of its domain; stage II finds them all in the cache.
        encoding, first, later = self.seconds["views"]
        stage1 = self._stage1_views_epoch() * (self.stage1_epochs - 1) + first1
        return encoding + self.n_sources * stage1 + first + epochs2 * later + self.seconds["test"]

    def _stage1_views_epoch(self):
        """Time of a later epoch of stage I with views (s)."""
        cfg = self.trainer.stage1_cfg(self.trainer.dm.dataset.source_domains[0])
        cfg.defrost()
        cfg.TRAINER.FEATURES.TRAIN_VIEWS, cfg.OUTPUT_DIR = 1, os.path.join(cfg.OUTPUT_DIR, "views")
        cfg.freeze()
        stage1 = SPG_CoOp(cfg, self.trainer.backbone)
        with trained(stage1):
            return epoch_times(stage1, 3)[1]


def find_dropouts(network: nn.Module) -> list[nn.Dropout]:
    """The Dropout layers of a network."""
    return [module for module in network.modules() if isinstance(module, torch.nn.Dropout)]


@contextlib.contextmanager
def trained(trainer: PromptTrainer) -> Iterator[float]:
    """A trainer that is ready to train; yields how long it took to get ready (s)."""
    seconds, _ = timed(trainer.before_train)
    try:
        yield seconds
    finally:
        trainer.epoch_bar.close()
        trainer.close_writer()


def epoch_times(trainer: PromptTrainer, n_later: int) -> tuple[float, float]:
    """Time in s of the first epoch with its validation and checkpoint, and the median of those after it."""
    times = []
    for trainer.epoch in range(1 + n_later):
        seconds, _ = timed(lambda: one_epoch(trainer))
        times.append(seconds)
    return times[0], statistics.median(times[1:])


def one_epoch(trainer: PromptTrainer) -> None:
    """An epoch as Dassl's trainers run it."""
    trainer.before_epoch()
    trainer.run_epoch()
    trainer.after_epoch()
