"""The words of CLIP's vocabulary that are nearest to learned and generated context vectors.

    python scripts/interpret_prompt.py output/pacs/CoOp/RN50/default/sketch/seed1        the learned context of a run
    python scripts/interpret_prompt.py output/pacs/SPG/RN50/pacs/sketch/seed1 --images dog.jpg    generated for images
    python scripts/interpret_prompt.py prompt_labels/PACS/RN50/seed_1/*.pt --backbone RN50        prompt labels
    python scripts/interpret_prompt.py prompt_learner/model.pth.tar-50 --backbone RN50            a checkpoint of CoOp

A run of SPG without --images shows contexts that it kept (contexts.npz): of each domain the first, and its prompt
labels. Distances are Euclidean, in the space of token embeddings. Words are what CLIP's tokenizer has, parts of words
with a hyphen. Learned vectors need not be near any word; a distance far above that from word to word says so.
"""

import _repository

import argparse
import functools
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from common.errors import UserError, command
from common.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.modules.clip.text_tower import TextTower
    from trainers.modules.clip.tokenizer import Tokenizer
    from trainers.predictor import Predictor

MEND = "Accepted: prompt labels (.pt), checkpoints of a prompt learner, and folders of runs with contexts."
SAMPLE = 256  # words, by which the distance from word to word is told


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="prompt labels, or folders of runs")
    parser.add_argument("--backbone", default="", help="the CLIP; of a run by default its own")
    parser.add_argument(
        "--images", nargs="+", default=[], help="generate contexts for these, by a run of SPG, DPSPG or CoCoOp"
    )
    parser.add_argument("--topk", type=int, default=5, help="words for each vector (default: 5)")
    parser.add_argument("--words", action="store_true", help="whole words of letters only, no parts and no signs")
    parser.add_argument("--json", default="", metavar="FILE", help="write what was found there, too")
    return parser.parse_args(argv)


def nearest_words(
    context: "Tensor", embeddings: "Tensor", words: Sequence[str], topk: int
) -> list[list[tuple[str, float]]]:
    """The words nearest to each vector of a context.

    Args:
        context: (n_ctx, D).
        embeddings: (V, D) token embeddings.
        words: V words.
        topk: how many.

    Returns:
        for each vector a list of (word, distance), the nearest first.
    """
    import torch

    # The faster way, by a matrix product, does not give 0 for equal vectors.
    exact = "donot_use_mm_for_euclid_dist"
    # What a run kept lies in main memory, whatever device its model is on.
    distances = torch.cdist(context.float().cpu(), embeddings.float().cpu(), compute_mode=exact)
    values, indices = distances.topk(topk, dim=1, largest=False)
    return [
        [(words[i], value) for i, value in zip(which, row, strict=True)]
        for which, row in zip(indices.tolist(), values.tolist(), strict=True)
    ]


def word_distance(embeddings: "Tensor") -> float:
    """Median distance from a token to its nearest other one; of a sample that is always the same."""
    import torch

    sample = embeddings[:: max(1, len(embeddings) // SAMPLE)].float()
    return torch.cdist(sample, embeddings.float()).topk(2, dim=1, largest=False).values[:, 1].median().item()


def vocabulary(tokenizer: "Tokenizer | None" = None) -> list[str]:
    """The V tokens of a tokenizer, OpenAI's unless given, as words; those that only begin or continue a word end in a
    hyphen.
    """
    from trainers.modules.clip.tokenizer import CLIP_TOKENIZER

    return (tokenizer or CLIP_TOKENIZER).words()


@functools.lru_cache(maxsize=1)
def text_tower(backbone: str) -> "TextTower":
    """The text tower of a CLIP."""
    from trainers.modules.clip.backbone import load_backbone

    return load_backbone(backbone).text


def contexts_of(path: str | Path, args: argparse.Namespace) -> "tuple[dict[str, Tensor], TextTower]":
    """Contexts by name, (n_ctx, D) each, and the backbone's text tower.

    Raises:
        UserError: nothing of the kind is there.
    """
    path = Path(path)
    if path.is_dir():
        return contexts_of_run(path, args)
    if not path.is_file():
        raise UserError(f"{path} is not there. {MEND}")
    if not args.backbone:
        raise UserError(f"{path} does not say for which CLIP it was learned; name it with --backbone.")
    from trainers.modules.tensor_files import read_tensors

    content = read_tensors(path, "File of contexts", MEND)
    if isinstance(content, dict):
        state = content.get("state_dict")
        content = (state if isinstance(state, dict) else content).get("ctx")
    if not hasattr(content, "shape") or len(content.shape) not in (2, 3) or not content.is_floating_point():
        raise UserError(f"{path} holds no context (n_ctx, D). {MEND}")
    return named(content, path.stem, None), text_tower(args.backbone)


def named(context: "Tensor", name: str, classnames: Sequence[str] | None) -> "dict[str, Tensor]":
    """A context (n_ctx, D) under its name; class-specific ones (C, n_ctx, D) under those of the classes, if known."""
    if len(context.shape) == 2:
        return {name: context}
    return dict(zip(classnames or (f"class {i}" for i in range(1, len(context) + 1)), context, strict=True))


def contexts_of_run(path: Path, args: argparse.Namespace) -> "tuple[dict[str, Tensor], TextTower]":
    """Contexts of a run's model: learned, or generated for --images, or those that the run kept."""
    from trainers.cocoop import CoCoOp
    from trainers.dpl import DPL
    from trainers.dpspg import DPSPG_TRANSFORMER
    from trainers.predictor import Predictor
    from trainers.spg import SPG_CGAN

    predictor = Predictor(path, backbone=args.backbone or None)
    trainer, method = predictor.trainer, predictor.trainer.cfg.TRAINER.NAME
    tower = trainer.backbone.text
    if args.images:
        if not isinstance(trainer, (SPG_CGAN, DPSPG_TRANSFORMER, CoCoOp)):
            raise UserError(f"{path} is a run of {method}, which makes no context from an image; leave out --images.")
        return contexts_of_images(predictor, args.images), tower
    if isinstance(trainer, SPG_CGAN):
        return kept_contexts(path), tower
    if isinstance(trainer, DPSPG_TRANSFORMER):
        raise UserError(f"{path} makes two contexts of each image: name some images (--images a.jpg b.jpg).")
    if isinstance(trainer, DPL):
        return {"mean over the source domains' images": trainer.model.source_context}, tower
    context = getattr(getattr(trainer, "model", None), "ctx", None)
    if context is None:
        raise UserError(f"{path} is a run of {method}, which has no context. {MEND}")
    return named(context.detach(), method, predictor.classnames), tower


def contexts_of_images(predictor: "Predictor", images: Sequence[str]) -> "dict[str, Tensor]":
    """The contexts (n_ctx, D) that a run's model makes of images, by their paths, and by sign where they have one."""
    import torch

    from trainers.dpspg import DPSPG_TRANSFORMER
    from trainers.spg import SPG_CGAN

    trainer, (features, indices) = predictor.trainer, predictor.encode(images)
    with torch.no_grad():
        if isinstance(trainer, DPSPG_TRANSFORMER):
            signs = [(sign, generator(features)) for sign, generator in trainer.generators.items()]
            return {f"{image} ({sign})": contexts[i] for i, image in enumerate(images) for sign, contexts in signs}
        contexts = trainer.contexts(features, indices) if isinstance(trainer, SPG_CGAN) else trainer.model(features)
    return dict(zip(images, contexts, strict=True))


def kept_contexts(folder: Path) -> "dict[str, Tensor]":
    """Of what a run of SPG kept: the prompt labels, and the first generated context of each domain.

    Raises:
        UserError: it kept none.
    """
    import torch

    from common.run.contexts import CONTEXTS_FILE, read_contexts

    if not (folder / CONTEXTS_FILE).is_file():
        raise UserError(
            f"{folder} generates a context for each image, and kept none ({CONTEXTS_FILE}): name some images "
            "(--images a.jpg b.jpg)."
        )
    kept = read_contexts(folder / CONTEXTS_FILE)
    found = {f"prompt label of {name}": label for name, label in zip(kept.label_domains, kept.labels, strict=True)}
    for name, split, context in zip(kept.domains, kept.splits, kept.contexts, strict=True):
        found.setdefault(f"generated for an image of {name} ({split})", context)
    return {name: torch.from_numpy(context) for name, context in found.items()}


def run(args: argparse.Namespace) -> dict[str, dict[str, list]]:
    """Print the words of all contexts; returns them by path and name."""
    if args.topk < 1:
        raise UserError(f"--topk is {args.topk}; accepted: a number from 1.")
    found: dict[str, dict[str, list]] = {}
    for path in args.paths:
        contexts, tower = contexts_of(path, args)
        words = vocabulary(tower.tokenizer)
        chosen = [i for i, word in enumerate(words) if word.isalpha() or not args.words]
        words = [words[i] for i in chosen]
        embeddings = tower.token_embedding.weight[chosen]
        for name, context in contexts.items():
            if context.shape[1] != embeddings.shape[1]:
                raise UserError(
                    f"The context in {path} has width {context.shape[1]}, the text tower of the backbone "
                    f"{embeddings.shape[1]}: name the CLIP that it was learned with (--backbone)."
                )
            if not context.isfinite().all():
                raise UserError(f"The context in {path} ({name}) holds values that are not finite.")
            nearest = nearest_words(context, embeddings, words, min(args.topk, len(words)))
            found.setdefault(str(path), {})[name] = nearest
            rows = [[i, *(f"{w} {d:.3f}" for w, d in row)] for i, row in enumerate(nearest, start=1)]
            columns = ["vector", *range(1, len(nearest[0]) + 1)]
            print(f"{path}: {name}\n")
            print(tabulate(rows, columns, tablefmt="github", disable_numparse=True) + "\n")
        print(f"From a word to the nearest other one it is {word_distance(embeddings):.3f} (median).\n", flush=True)
    if args.json:
        try:
            write_json(args.json, found)
        except OSError as error:
            raise UserError(f"--json {args.json} cannot be written: {error.strerror}.") from error
    return found


@command
def main(argv: list[str] | None = None) -> None:
    """Exit code 0, 1 with one message, or 130 if interrupted."""
    args = parse_args(argv)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    run(args)


if __name__ == "__main__":
    sys.exit(main())
