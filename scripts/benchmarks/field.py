"""Measures of the methods beside SPG: steps of MaPLe, PromptSRC and KgCoOp, inference of DPSPG."""

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from clip.model import CLIP

from common.startup import REPOSITORY
from scripts.benchmarks.reference import PublishedTextEncoder
from scripts.benchmarks.reference_field import Step, dpspg_one_by_one, kgcoop_step, maple_step, promptsrc_step
from scripts.benchmarks.text import CLASSES, random_clip, relative_difference
from scripts.benchmarks.timing import Row, difference, median_pair, timed
from trainers.base.trainer import PromptTrainer
from trainers.config import default_cfg, merge_file
from trainers.dpspg import DPSPG_TRANSFORMER
from trainers.kgcoop import KgCoOp
from trainers.maple import MaPLe
from trainers.methods import find_method
from trainers.modules.clip.backbone import Backbone
from trainers.promptsrc import PromptSRC

BATCH = 4  # of MaPLe's and PromptSRC's repositories
STEP_GOALS = {65: 3, 345: 7}
KGCOOP_BATCH, KGCOOP_GOAL = 32, 12
INFERENCE_GOALS = {7: 18, 65: 15}


@dataclass(frozen=True)
class FieldAmounts:
    """How much is measured.

    Attributes:
        every: {C: n}: the reference's text tower encodes every n-th class, and its time is multiplied. Of 345 classes
            it would keep some 16 GB for the backward pass.
        repeats: timed calls; the median counts.
        images, reference: {C: images} that DPSPG classifies, ours and the reference.
    """

    every: dict[int, int]
    repeats: int
    images: dict[int, int]
    reference: dict[int, int]


FULL = FieldAmounts({345: 3}, 3, {7: 32, 65: 8}, {7: 4, 65: 2})
QUICK = FieldAmounts({345: 5}, 1, {7: 16, 65: 4}, {7: 1, 65: 1})


class FieldBench:
    """Measures methods against their references, side by side, with a CLIP of random weights.

    Args:
        model: the CLIP; its image tower is a ViT.
        name: of it, for the table.
        amounts: FieldAmounts.
        folder: that trainers may take for theirs.
        goals: whether the project's goals, which are for ViT-B/16's size, apply.
        opts: KEY VALUE pairs on top of the methods' published configs.
    """

    def __init__(
        self,
        model: CLIP,
        name: str,
        amounts: FieldAmounts,
        folder: str | Path,
        goals: bool = True,
        opts: Sequence[Any] = (),
    ) -> None:
        self.model, self.name, self.amounts, self.folder = model, name, amounts, Path(folder)
        self.goals, self.opts = goals, list(opts)
        model.visual.to(memory_format=torch.channels_last)  # as load_backbone has it
        self.backbone = Backbone(model, "ViT-B/16", "fp32", torch.device("cpu"))

    def rows(self) -> Iterator[Row]:
        """All rows, in the order of the table."""
        for step in (self.maple, self.promptsrc):
            for n_classes in STEP_GOALS:
                yield step(n_classes)
        yield self.kgcoop(65)
        for n_classes in INFERENCE_GOALS:
            yield self.dpspg(n_classes)

    def trainer(self, kind: type[PromptTrainer], classnames: Sequence[str]) -> Any:
        """A trainer of these classes by the config of its paper."""
        cfg = default_cfg()
        folder = REPOSITORY / "configs/trainers" / find_method(kind.__name__).config_folder
        merge_file(cfg, folder / "published.yaml")
        cfg.merge_from_list([*self.opts, "TRAINER.NAME", kind.__name__, "USE_CUDA", False])
        cfg.merge_from_list(["OUTPUT_DIR", str(self.folder), f"TRAINER.{kind.SETTINGS}.PREC", "fp32"])
        cfg.freeze()
        torch.manual_seed(1)
        with contextlib.redirect_stdout(io.StringIO()):  # what trainers say while they are built
            return kind(cfg, self.backbone, classnames)

    def row(self, what: str, times: tuple[float, float], goal: float, gap: float, note: str) -> Row:
        """A Row in ms."""
        ours, theirs = (1000 * seconds for seconds in times)
        return Row(f"{what}, {self.name}", ours, theirs, "ms", goal if self.goals else None, gap, note)

    # ---- steps ----

    def maple(self, n_classes: int) -> Row:
        """Row: a step of MaPLe."""

        def texts(encoder, learner):
            return encoder(learner.ctx, list(learner.compound_prompts_text))

        def step(trainer, encoder, learner, images, labels):
            return maple_step(self.model, encoder, learner, images, labels)

        return self._step(MaPLe, n_classes, texts, step, words="of a")

    def promptsrc(self, n_classes: int) -> Row:
        """Row: a step of PromptSRC; the fixed features, which are computed once for a run, are given."""

        def texts(encoder, learner):
            return encoder(learner.ctx, list(learner.deep_ctx))

        def step(trainer, encoder, learner, images, labels):
            weights = trainer.settings.TEXT_LOSS_WEIGHT, trainer.settings.IMAGE_LOSS_WEIGHT
            return promptsrc_step(self.model, encoder, learner, images, labels, trainer.fixed_features, weights)

        return self._step(PromptSRC, n_classes, texts, step)

    def _step(self, kind, n_classes, texts, step, words=""):
        """Row: a step of a method.

        Args:
            texts: called with the reference's text encoder and the learner: the text features (C, E).
            step: called with our trainer, the text encoder, the learner, images and labels: the reference's `Step`.
            words: fixed ones behind the learned ones.
        """
        every = self.amounts.every.get(n_classes, 1)
        names = CLASSES[n_classes]
        side = self.model.visual.input_resolution
        batch = {"img": torch.randn(BATCH, 3, side, side), "label": torch.arange(BATCH), "index": range(BATCH)}
        ours = self.trainer(kind, names)
        few = ours if every == 1 else self.trainer(kind, names[::every])  # the same start, but for fewer classes
        for trainer in (ours, few):
            trainer.fixed_features = F.normalize(torch.randn(trainer.num_classes, self.backbone.feature_size), dim=-1)
        encoder = PublishedTextEncoder(self.model, names[::every], few.encoder.n_ctx, words)
        learner = copy.deepcopy(few.model)

        def reference():
            return step(few, encoder, learner, batch["img"], batch["label"])

        gap = agreement(few, batch, learner, reference)
        optimizer = torch.optim.SGD(learner.parameters(), lr=1e-5, momentum=0.9, weight_decay=5e-4)
        (seconds, _), (theirs, _) = median_pair(
            lambda: ours.forward_backward(batch), lambda: (reference(), optimizer.step()), self.amounts.repeats
        )
        note = f"per step of {BATCH} images, both towers"
        if every > 1:
            share = n_classes / len(encoder.tokens)
            theirs += (share - 1) * timed(lambda: texts(encoder, learner).sum().backward())[0]
            note += f"; reference on {len(encoder.tokens)} classes, its text tower's time scaled"
        what = f"{kind.__name__} step at batch {BATCH}, {n_classes} classes"
        return self.row(what, (seconds, theirs), STEP_GOALS[n_classes], gap, note)

    def kgcoop(self, n_classes: int) -> Row:
        """Row: a step of KgCoOp, image features given."""
        ours = self.trainer(KgCoOp, CLASSES[n_classes])
        features = F.normalize(torch.randn(KGCOOP_BATCH, self.backbone.feature_size), dim=-1)
        labels = torch.arange(KGCOOP_BATCH) % n_classes
        batch = {"features": features, "label": labels, "index": range(KGCOOP_BATCH)}
        encoder = PublishedTextEncoder(self.model, CLASSES[n_classes], ours.encoder.n_ctx)
        learner = copy.deepcopy(ours.model)
        given = labels, ours.fixed_features, ours.settings.W

        def reference():
            return kgcoop_step(self.model, encoder, learner, features, *given)

        gap = agreement(ours, batch, learner, reference)
        times = median_pair(lambda: ours.forward_backward(batch), reference, self.amounts.repeats)
        (seconds, _), (theirs, _) = times
        what = f"KgCoOp step at batch {KGCOOP_BATCH}, {n_classes} classes"
        return self.row(what, (seconds, theirs), KGCOOP_GOAL, gap, "per step, image features given")

    # ---- inference ----

    @torch.no_grad()
    def dpspg(self, n_classes: int) -> Row:
        """Row: images classified by DPSPG, their features given."""
        ours = self.trainer(DPSPG_TRANSFORMER, CLASSES[n_classes])
        ours.set_model_mode("eval")
        n_ours, n_reference = self.amounts.images[n_classes], self.amounts.reference[n_classes]
        features = F.normalize(torch.randn(n_ours, self.backbone.feature_size), dim=-1)
        encoder = PublishedTextEncoder(self.model, CLASSES[n_classes], ours.encoder.n_ctx)
        some, alpha = features[:n_reference], ours.settings.ALPHA
        (seconds, found), (theirs, expected) = median_pair(
            lambda: ours.predict(features, range(n_ours)),
            lambda: dpspg_one_by_one(encoder, ours.generators, some, alpha),
            self.amounts.repeats,
        )
        gap = difference(found[:n_reference] / self.model.logit_scale.exp(), expected)
        times = seconds / n_ours, theirs / n_reference
        note = f"per image, features given; batch {n_ours}, reference {n_reference}, one by one"
        return self.row(f"DPSPG inference, {n_classes} classes", times, INFERENCE_GOALS[n_classes], gap, note)


def agreement(trainer: Any, batch: dict[str, Any], learner: Any, reference: Callable[[], Step]) -> float:
    """Largest difference between our step and the reference's: loss, features, gradients of all that is learned.

    Args:
        trainer: ours; makes its step, and so takes one update.
        learner: the reference's network, which began where ours does.
        reference: its step.
    """
    with torch.no_grad():
        features = trainer.image_features.of_batch(batch)
        text_features = trainer.text_features(features, batch["index"])
    found = trainer.forward_backward(batch)
    loss, expected_texts, expected_features = reference()
    gaps = [abs(found["loss"] - loss.item()), difference(text_features, expected_texts)]
    gaps.append(difference(features, expected_features))
    pairs = zip(trainer.model.parameters(), learner.parameters(), strict=True)
    return max(gaps + [relative_difference(ours.grad, theirs.grad) for ours, theirs in pairs])


def field_rows(quick: bool, folder: str | Path) -> Iterator[Row]:
    """Yield all rows at ViT-B/16's size."""
    model = random_clip("ViT-B/16", image_tower=True)
    yield from FieldBench(model, "ViT-B/16 size", QUICK if quick else FULL, folder).rows()
