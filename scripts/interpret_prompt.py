"""Print the words of CLIP's vocabulary that are nearest to learned and generated context vectors.

    python scripts/interpret_prompt.py output/pacs/CoOp/RN50/default/sketch/seed1        the learned context of a run
    python scripts/interpret_prompt.py output/pacs/SPG/RN50/pacs/sketch/seed1 --images dog.jpg    generated for images
    python scripts/interpret_prompt.py prompt_labels/PACS/RN50/seed_1/*.pt --backbone RN50        prompt labels
    python scripts/interpret_prompt.py prompt_learner/model.pth.tar-50 --backbone RN50            a checkpoint of CoOp

Without --images, a run of SPG shows its prompt labels and one generated context of each domain. Distances are
Euclidean, between token embeddings. A part of a word ends with a hyphen. A learned vector need not be near any word:
compare its distances with the one from word to word.
"""

import _repository

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from common.errors import UserError, command

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.modules.clip.text_tower import TextTower
    from trainers.predictor import Predictor

ACCEPTED = "Name prompt labels (.pt), checkpoints of a prompt learner, or folders of runs with contexts."


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="prompt labels, checkpoints, or folders of runs")
    parser.add_argument("--backbone", default="", help="the CLIP (default: the run's)")
    parser.add_argument("--images", nargs="+", default=[], help="generate contexts for images: SPG, DPSPG, CoCoOp")
    parser.add_argument("--topk", type=int, default=5, help="words for each vector (default: %(default)s)")
    return parser.parse_args(argv)


def nearest(vectors: "Tensor", embeddings: "Tensor", k: int) -> "tuple[Tensor, Tensor]":
    """Distances and numbers (N, k) of the embeddings (V, D) nearest to vectors (N, D)."""
    import torch

    # The faster way, by a matrix product, does not give 0 for equal vectors.
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(vectors.float().cpu(), embeddings.float().cpu(), compute_mode=mode).topk(k, largest=False)


def find_contexts(path: Path, args: argparse.Namespace) -> "tuple[dict[str, Tensor], TextTower]":
    """Contexts (n_ctx, D) by name, and the text tower; raises UserError if the path has none."""
    from torch import Tensor

    from trainers.modules.clip.backbone import load_backbone
    from trainers.modules.tensor_files import read_tensors

    if path.is_dir():
        return contexts_of_run(path, args)
    if not path.is_file():
        raise UserError(f"{path} does not exist. {ACCEPTED}")
    if not args.backbone:
        raise UserError(f"{path} does not say which CLIP it was learned for. Name it with --backbone.")
    content = read_tensors(path, "File of contexts", ACCEPTED)
    state = content.get("state_dict", content) if isinstance(content, dict) else {"ctx": content}
    context = state.get("ctx") if isinstance(state, dict) else None
    if not isinstance(context, Tensor) or context.dim() not in (2, 3) or not context.is_floating_point():
        raise UserError(f"{path} holds no context (n_ctx, D). {ACCEPTED}")
    classes = [f"class {i}" for i in range(1, 1 + len(context))]
    return by_class(context, path.stem, classes), load_backbone(args.backbone).text


def by_class(context: "Tensor", name: str, classnames: Sequence[str]) -> "dict[str, Tensor]":
    """A context (n_ctx, D) by its name, or class-specific ones (C, n_ctx, D) by class."""
    return {name: context} if context.dim() == 2 else dict(zip(classnames, context, strict=True))


def contexts_of_run(path: Path, args: argparse.Namespace) -> "tuple[dict[str, Tensor], TextTower]":
    """Contexts of a run: learned, generated for --images, or recorded in contexts.npz."""
    from trainers.dpl import DPL
    from trainers.dpspg import DPSPG_TRANSFORMER
    from trainers.predictor import Predictor
    from trainers.spg import SPG_CGAN

    predictor = Predictor(path, backbone=args.backbone or None)
    trainer, method = predictor.trainer, predictor.trainer.cfg.TRAINER.NAME
    if args.images:
        contexts = generated_contexts(predictor, args.images, path)
    elif isinstance(trainer, SPG_CGAN):
        contexts = recorded_contexts(path)
    elif isinstance(trainer, DPSPG_TRANSFORMER):
        raise UserError(f"{path} makes two contexts of each image. Name some images (--images a.jpg b.jpg).")
    elif isinstance(trainer, DPL):
        contexts = {"mean over the source domains' images": trainer.model.source_context}
    elif (context := getattr(getattr(trainer, "model", None), "ctx", None)) is not None:
        contexts = by_class(context.detach(), method, predictor.classnames)
    else:
        raise UserError(f"{path} is a run of {method}, which has no context. {ACCEPTED}")
    return contexts, trainer.backbone.text


def generated_contexts(predictor: "Predictor", images: Sequence[str], path: Path) -> "dict[str, Tensor]":
    """The contexts (n_ctx, D) that a run generates for images."""
    import torch

    from trainers.cocoop import CoCoOp
    from trainers.dpspg import DPSPG_TRANSFORMER
    from trainers.spg import SPG_CGAN

    trainer = predictor.trainer
    if not isinstance(trainer, (SPG_CGAN, DPSPG_TRANSFORMER, CoCoOp)):
        raise UserError(f"{path} is a run of {trainer.cfg.TRAINER.NAME}, which generates none. Leave out --images.")
    features, indices = predictor.encode(images)
    with torch.no_grad():
        if isinstance(trainer, DPSPG_TRANSFORMER):
            by_sign = {f" ({sign})": generator(features) for sign, generator in trainer.generators.items()}
        elif isinstance(trainer, SPG_CGAN):
            by_sign = {"": trainer.contexts(features, indices)}
        else:
            by_sign = {"": trainer.model(features)}
    return {f"{image}{sign}": by_sign[sign][i] for i, image in enumerate(images) for sign in by_sign}


def recorded_contexts(folder: Path) -> "dict[str, Tensor]":
    """The prompt labels of a run of SPG and its first generated context of each domain, from contexts.npz."""
    import torch

    from common.run.contexts import CONTEXTS_FILE, read_contexts

    if not (folder / CONTEXTS_FILE).is_file():
        raise UserError(f"{folder} has no {CONTEXTS_FILE}. Name some images (--images a.jpg b.jpg).")
    record = read_contexts(folder / CONTEXTS_FILE)
    found = {f"prompt label of {name}": label for name, label in zip(record.label_domains, record.labels, strict=True)}
    for name, split, context in zip(record.domains, record.splits, record.contexts, strict=True):
        found.setdefault(f"generated for an image of {name} ({split})", context)
    return {name: torch.from_numpy(context) for name, context in found.items()}


@command
def main(argv: list[str] | None = None) -> None:
    """Exit code 0, 1 with one message, or 130 if interrupted."""
    args = parse_args(argv)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    if args.topk < 1:
        raise UserError(f"--topk is {args.topk}. Use a number from 1.")
    for path in args.paths:
        contexts, tower = find_contexts(Path(path), args)
        words, embeddings = tower.tokenizer.words(), tower.token_embedding.weight
        for name, context in contexts.items():
            if context.shape[1] != embeddings.shape[1]:
                raise UserError(
                    f"{path}: the context has width {context.shape[1]}, and the text tower of the backbone has width "
                    f"{embeddings.shape[1]}. Name the CLIP that it was learned with (--backbone)."
                )
            if not context.isfinite().all():
                raise UserError(f"{path}: the context ({name}) has values that are not finite. Use another file.")
            distances, numbers = nearest(context, embeddings, min(args.topk, len(words)))
            rows = [
                [i, *(f"{words[number]} {distance:.3f}" for number, distance in zip(*row, strict=True))]
                for i, row in enumerate(zip(numbers.tolist(), distances.tolist(), strict=True), start=1)
            ]
            columns = ["vector", *range(1, len(rows[0]))]
            print(f"{path}: {name}\n\n{tabulate(rows, columns, tablefmt='github', disable_numparse=True)}\n")
        sample = embeddings[:: max(1, len(embeddings) // 256)]
        median = nearest(sample, embeddings, 2)[0][:, 1].median()
        print(f"Distance from a word to the nearest other one: {median:.3f} (median).\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
