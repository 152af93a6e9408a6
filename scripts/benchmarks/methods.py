"""Text tower, training steps and inference of methods at the size of ViT-B/16, with random weights."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import reference
import torch
import torch.nn.functional as F
from clip.model import CLIP
from torch import Tensor

from common.startup import REPOSITORY
from common.threads import plan_threads, use_threads
from datasets.benchmarks import SPG_PACS
from scripts.benchmarks.classes import DOMAIN_NET, OFFICE_HOME
from scripts.benchmarks.timing import Row, difference, median_pair, timed
from trainers.base.trainer import PromptTrainer
from trainers.cocoop import CoCoOp
from trainers.config import default_cfg, merge_file
from trainers.coop import CoOp
from trainers.dpspg import DPSPG_TRANSFORMER
from trainers.kgcoop import KgCoOp
from trainers.maple import MaPLe
from trainers.methods import find_method
from trainers.modules.clip.backbone import Backbone
from trainers.modules.prompt_encoder import PromptEncoder
from trainers.promptsrc import PromptSRC

N_CTX = 4
CLASSES = {7: tuple(SPG_PACS.classes), 65: OFFICE_HOME, 345: DOMAIN_NET}
GOALS = {7: 18, 65: 15, 345: 15}


class Amounts(NamedTuple):
    """Numbers of images; the reference encodes every n-th class, and its time is multiplied by n."""

    ours: int
    reference: int
    every: int = 1


FULL = {7: Amounts(32, 4), 65: Amounts(8, 2), 345: Amounts(4, 1)}
QUICK = {7: Amounts(16, 1), 65: Amounts(4, 1), 345: Amounts(2, 1, every=5)}


def random_clip(image_tower: bool = False) -> CLIP:
    """A CLIP of ViT-B/16's size with random weights; without `image_tower`, its image tower is tiny."""
    tower = {"vision": 12, "resolution": 224, "vit_width": 768, "patch": 16} if image_tower else {}
    return reference.tiny_clip(embed_dim=512, width=512, layers=12, **tower)


FOUR_WORDS = ("N_CTX", 4, "CTX_INIT", "a photo of a")


class Step(NamedTuple):
    """A training step of a method: our trainer, the function of the reference, and the number of images.

    `opts` are keys and values of the method's node, on top of its published config. Steps without `has_images` get
    image features. If `is_split`, the reference takes one image at a time, and the row has the time per image.
    """

    name: str
    trainer: type[PromptTrainer]
    expected: Callable[..., tuple[Tensor, Tensor]]
    batch: int
    goal: float
    opts: Sequence[Any] = ()
    has_images: bool = True
    is_split: bool = False


COOP = Step("CoOp, forward and backward", CoOp, reference.coop, 32, 12, FOUR_WORDS, has_images=False)
COCOOP = Step("CoCoOp step at batch 8", CoCoOp, reference.cocoop, 8, 8, FOUR_WORDS, is_split=True)
KGCOOP = Step("KgCoOp step at batch 32", KgCoOp, reference.kgcoop, 32, 12, has_images=False)
MAPLE = Step("MaPLe step at batch 4", MaPLe, reference.maple, 4, 3)
PROMPTSRC = Step("PromptSRC step at batch 4", PromptSRC, reference.promptsrc, 4, 3)
DPSPG = Step("DPSPG inference", DPSPG_TRANSFORMER, reference.dpspg_transformer, 1, 0, has_images=False)


class MethodBench:
    """Measures methods and the reference on one CLIP with a ViT, by the median of repeated calls."""

    def __init__(self, model: CLIP, name: str, folder: Path, repeats: int) -> None:
        self.model, self.name, self.folder, self.repeats = model, name, folder, repeats
        model.visual.to(memory_format=torch.channels_last)  # as load_backbone does
        self.backbone = Backbone(model, "ViT-B/16", "fp32", torch.device("cpu"))
        use_threads(plan_threads(self.backbone.n_tower_weights))

    def build(self, step: Step, classnames: Sequence[str]) -> Any:
        """A trainer for these classes, with the config of the method's paper."""
        kind, cfg, node = step.trainer, default_cfg(), f"TRAINER.{step.trainer.NODE}"
        merge_file(cfg, REPOSITORY / f"configs/trainers/{find_method(kind.__name__).config_folder}/published.yaml")
        words = [f"{node}.{word}" if i % 2 == 0 else word for i, word in enumerate(step.opts)]
        words += ["TRAINER.NAME", kind.__name__, f"{node}.PREC", "fp32", "USE_CUDA", False]
        cfg.merge_from_list([*words, "OUTPUT_DIR", str(self.folder)])
        cfg.freeze()
        torch.manual_seed(1)
        with contextlib.redirect_stdout(io.StringIO()):  # trainers print notes
            return kind(cfg, self.backbone, classnames)

    def features(self, n: int) -> Tensor:
        """Random image or text features (n, E)."""
        return F.normalize(torch.randn(n, self.backbone.feature_size), dim=-1)

    def step(self, step: Step, n_classes: int, goal: float = 0.0, every: int = 1, n_reference: int = 0) -> Row:
        """Time a step.

        With `every` above 1, the reference encodes every n-th class, and a second measurement with two classes scales
        its time. It takes `n_reference` images, or with 0 as many as ours.
        """
        names, n_reference = CLASSES[n_classes], n_reference or step.batch
        side, fixed = self.model.visual.input_resolution, self.features(n_classes)
        images = torch.randn(step.batch, 3, side, side) if step.has_images else self.features(step.batch)
        indices = torch.arange(step.batch)
        labels = indices % len(names[::every])
        batch = {"img" if step.has_images else "features": images, "label": labels, "index": indices}
        few = {key: value[:n_reference] for key, value in batch.items()}
        ours, same = self.build(step, names), self.build(step, names[::every])
        if step.trainer is PromptSRC:  # a run encodes 60 templates once
            ours.fixed_features, same.fixed_features = fixed, fixed[::every]
        learned = copy_tensors(same)
        optimiser = reference.optimiser(same.cfg.OPTIM, learned.values())

        def published(every: int) -> float:
            """Forward and backward of the reference on every n-th class; returns the loss."""
            optimiser.zero_grad()
            chosen, loss, size = names[::every], 0.0, 1 if step.is_split else n_reference
            more = {"t_fixed": fixed[::every]} if step.trainer is PromptSRC else {}
            for part in range(0, n_reference, size):
                given = {"img": images[part : part + size], "label": labels[part : part + size] % len(chosen)}
                part_loss = step.expected(self.model, chosen, learned, given, **more)[1] * size / n_reference
                part_loss.backward()
                loss += part_loss.item()
            optimiser.step()
            return loss

        gaps = [abs(same.forward_backward(few)["loss"] - published(every))]
        gaps += [difference(tensor.grad, learned[key].grad) for key, tensor in learned_tensors(same).items()]
        (seconds, _), (theirs, _) = median_pair(
            lambda: ours.forward_backward(batch), lambda: published(every), self.repeats
        )
        note = f"batch {step.batch}, {'both towers' if step.has_images else 'image features given'}"
        if every > 1:
            n_chosen = len(names[::every])
            two, _ = timed(lambda: published(n_classes - 1))
            theirs = two + (theirs - two) * (n_classes - 2) / (n_chosen - 2)
            note += f"; reference on {n_chosen} classes, scaled"
        if step.is_split:
            seconds, theirs, note = seconds / step.batch, theirs / n_reference, f"{note}; per image"
        name = f"{step.name}, {n_classes} classes, {self.name}"
        return Row(name, 1000 * seconds, 1000 * theirs, "ms", goal or step.goal, max(gaps), note)

    @torch.no_grad()
    def text_tower(self, n_classes: int, amounts: Amounts) -> Row:
        """Time the forward pass for each image."""
        names, every, n_reference = CLASSES[n_classes], amounts.every, amounts.reference
        encoder = PromptEncoder(self.model, names, N_CTX)
        contexts = 0.05 * torch.randn(amounts.ours, N_CTX, encoder.ctx_dim)
        (ours, features), (theirs, expected) = median_pair(
            lambda: encoder(contexts),
            lambda: torch.stack(
                [reference.plain_text_features(self.model, names[::every], one) for one in contexts[:n_reference]]
            ),
            self.repeats,
        )
        times = 1000 * ours / amounts.ours, 1000 * theirs * n_classes / len(names[::every]) / n_reference
        note = f"per image; batch {amounts.ours}, reference {n_reference} on {len(names[::every])} classes"
        name = f"text tower, per-image contexts, {n_classes} classes, {self.name}"
        return Row(name, *times, "ms", GOALS[n_classes], difference(features[:n_reference, ::every], expected), note)

    @torch.no_grad()
    def inference(self, n_classes: int, n_ours: int, n_reference: int, goal: float) -> Row:
        """Time the classification of images by DPSPG."""
        names, features = CLASSES[n_classes], self.features(n_ours)
        ours = self.build(DPSPG, names)
        ours.set_model_mode("eval")
        learned, some = copy_tensors(ours), [{"img": image} for image in features[:n_reference].split(1)]
        (seconds, found), (theirs, expected) = median_pair(
            lambda: ours.predict(features, range(n_ours)),
            lambda: torch.cat([DPSPG.expected(self.model, names, learned, image)[0] for image in some]),
            self.repeats,
        )
        gap, name = difference(found[:n_reference], expected), f"{DPSPG.name}, {n_classes} classes, {self.name}"
        note = f"per image, features given; batch {n_ours}, reference {n_reference} one by one"
        times = 1000 * seconds / n_ours, 1000 * theirs / n_reference
        return Row(name, *times, "ms", goal, gap, note)


def learned_tensors(trainer: PromptTrainer) -> dict[str, Any]:
    """Learned tensors and statistics of batch norms by "<network>.<published name>", as the reference takes them."""
    found: dict[str, Tensor] = {}
    for name, network in trainer._models.items():
        statistics = {key: value for key, value in network.named_buffers() if "running_" in key}
        found |= {f"{name}.{key}": value for key, value in (dict(network.named_parameters()) | statistics).items()}
    return found


def copy_tensors(trainer: PromptTrainer) -> dict[str, Any]:
    tensors = learned_tensors(trainer)
    return {key: value.detach().clone().requires_grad_(value.requires_grad) for key, value in tensors.items()}


def vit_b16(quick: bool, folder: Path) -> MethodBench:
    return MethodBench(random_clip(image_tower=True), "ViT-B/16 size", folder, 1 if quick else 3)


def text_rows(quick: bool, folder: Path) -> Iterator[Row]:
    """Yield the text tower for each number of classes, and the steps of CoOp and CoCoOp."""
    bench = vit_b16(quick, folder)
    for n_classes, amounts in (QUICK if quick else FULL).items():
        yield bench.text_tower(n_classes, amounts)
    yield bench.step(COOP, 65)
    yield bench.step(COCOOP, 65, n_reference=1 if quick else 2)


def field_rows(quick: bool, folder: Path) -> Iterator[Row]:
    """Yield the steps of MaPLe, PromptSRC and KgCoOp, and the inference of DPSPG."""
    bench = vit_b16(quick, folder)
    for step in (MAPLE, PROMPTSRC):
        yield bench.step(step, 65)
        # With all 345 classes, the reference would need 16 GB for its backward pass.
        yield bench.step(step, 345, goal=7, every=5 if quick else 3)
    yield bench.step(KGCOOP, 65)
    yield bench.inference(7, *(16, 1) if quick else (32, 4), goal=18)
    yield bench.inference(65, *(4, 1) if quick else (8, 2), goal=15)
