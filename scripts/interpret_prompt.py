"""The words of CLIP's vocabulary that are nearest to learned and generated context vectors.

    python scripts/interpret_prompt.py output/PACS/CoOp/RN50/default/sketch/seed1        the learned context of a run
    python scripts/interpret_prompt.py output/PACS/SPG/RN50/pacs/sketch/seed1 --images dog.jpg    generated for images
    python scripts/interpret_prompt.py prompt_labels/PACS/RN50/seed_1/*.pt --backbone RN50        prompt labels

Distances are Euclidean, in the space of token embeddings. Words are what CLIP's tokenizer has: parts of words are shown
with a hyphen. Learned vectors need not be near any word; a distance far above those between words says so.
"""

import argparse
import sys
import warnings
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from tabulate import tabulate  # noqa: E402

from common.dassl_path import use_dassl  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.records import write_record  # noqa: E402

MEND = "Accepted: prompt labels (.pt) and folders of runs that learn or generate contexts."


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="prompt labels, or folders of runs")
    parser.add_argument("--backbone", default="", help="the CLIP; of a run by default its own")
    parser.add_argument("--images", nargs="+", default=[], help="generate contexts for these, by a run of SPG")
    parser.add_argument("--topk", type=int, default=5, help="words for each vector (default: 5)")
    parser.add_argument("--json", default="", metavar="FILE", help="write what was found there, too")
    return parser.parse_args(argv)


def nearest_words(context, embeddings, words, topk):
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

    distances = torch.cdist(context.float(), embeddings.float())
    values, indices = distances.topk(topk, dim=1, largest=False)
    return [
        [(words[i], value) for i, value in zip(which, row, strict=True)]
        for which, row in zip(indices.tolist(), values.tolist(), strict=True)
    ]


def vocabulary():
    """CLIP's V tokens as words; those that only begin or continue a word end in a hyphen."""
    from clip.clip import _tokenizer

    tokens = [_tokenizer.decoder[i] for i in range(len(_tokenizer.decoder))]
    return [token.removesuffix("</w>") if token.endswith("</w>") else f"{token}-" for token in tokens]


def contexts_of(path, args):
    """Contexts by name, (n_ctx, D) each, and the backbone's token embeddings.

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
    from trainers.modules.clip_backbone import load_clip
    from trainers.modules.tensor_files import read_tensors

    content = read_tensors(path, "Prompt label", MEND)
    context = content.get("ctx") if isinstance(content, dict) else content
    if not hasattr(context, "shape") or len(context.shape) != 2:
        raise UserError(f"{path} holds no context (n_ctx, D). {MEND}")
    return {path.stem: context}, load_clip(args.backbone).token_embedding.weight


def contexts_of_run(path, args):
    """Contexts of a run's model: learned, or generated for --images."""
    import torch

    from trainers.predictor import Predictor
    from trainers.spg_cgan import SPG_CGAN

    predictor = Predictor(path, backbone=args.backbone or None)
    trainer = predictor.trainer
    embeddings = trainer.clip_model.token_embedding.weight
    if isinstance(trainer, SPG_CGAN):
        if not args.images:
            raise UserError(f"{path} generates a context for each image: name some (--images a.jpg b.jpg).")
        features, indices = predictor.encode(args.images)
        with torch.no_grad():
            contexts = trainer.contexts(features, indices)
        return dict(zip(args.images, contexts, strict=True)), embeddings
    context = getattr(getattr(trainer, "model", None), "ctx", None)
    if context is None:
        raise UserError(f"{path} is a run of {trainer.cfg.TRAINER.NAME}, which has no context. {MEND}")
    if context.dim() == 3:
        return dict(zip(predictor.classnames, context.detach(), strict=True)), embeddings
    return {trainer.cfg.TRAINER.NAME: context.detach()}, embeddings


def run(args):
    """Print the words of all contexts; returns them by path and name."""
    if args.topk < 1:
        raise UserError(f"--topk is {args.topk}; accepted: a number from 1.")
    words, found = vocabulary(), {}
    for path in args.paths:
        contexts, embeddings = contexts_of(path, args)
        for name, context in contexts.items():
            if context.shape[1] != embeddings.shape[1]:
                raise UserError(
                    f"The context in {path} has width {context.shape[1]}, the text tower of the backbone "
                    f"{embeddings.shape[1]}: name the CLIP that it was learned with (--backbone)."
                )
            nearest = nearest_words(context, embeddings, words, args.topk)
            found.setdefault(str(path), {})[name] = nearest
            rows = [[i, *(f"{w} {d:.3f}" for w, d in row)] for i, row in enumerate(nearest, start=1)]
            print(f"{path}: {name}\n")
            print(tabulate(rows, ["vector", *range(1, args.topk + 1)], tablefmt="github", disable_numparse=True) + "\n")
    if args.json:
        write_record(args.json, found)
    return found


def main(argv=None):
    """Exit code 0, or 1 with one message."""
    args = parse_args(argv)
    use_dassl()
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    from train import user_errors

    try:
        run(args)
    except user_errors() as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
