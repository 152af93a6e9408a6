"""Print the words of CLIP's vocabulary that are nearest to the context vectors of a run.

    python scripts/interpret_prompt.py output/pacs/CoOp/RN50/default/sketch/seed1
    python scripts/interpret_prompt.py output/pacs/SPG/RN50/pacs/sketch/seed1 --images dog.jpg

Without --images, a run of SPG shows its prompt labels and one generated context of each domain. Distances are
Euclidean, between token embeddings. A word that ends with a hyphen is the start of a longer one. A context vector need
not be near any word: compare its distances with the distance between words in the last line.
"""

import _repository

import argparse
import os
import sys
import warnings
from typing import TYPE_CHECKING

from common.errors import UserError, command

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.predictor import Predictor


def find_nearest(vectors: "Tensor", embeddings: "Tensor", k: int) -> "tuple[Tensor, Tensor]":
    """Distances and numbers (N, k) of the embeddings (V, D) nearest to vectors (N, D)."""
    import torch

    # The faster way, a matrix product, does not give 0 for equal vectors.
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(vectors.float().cpu(), embeddings.float().cpu(), compute_mode=mode).topk(k, largest=False)


def find_contexts(predictor: "Predictor", run: str) -> "dict[str, Tensor]":
    """The contexts (n_ctx, D) that a run learned or recorded, by title; raises UserError if there are none."""
    import torch

    from common.image_results import CONTEXTS_FILE, read_contexts

    method, model = predictor.trainer.cfg.TRAINER.NAME, getattr(predictor.trainer, "model", None)
    if method in ("SPG", "SPG_CGAN"):
        if not os.path.exists(f"{run}/{CONTEXTS_FILE}"):
            raise UserError(f"{run}: {CONTEXTS_FILE} is missing. Name images: --images dog.jpg")
        record = read_contexts(f"{run}/{CONTEXTS_FILE}")
        found = {f"prompt label of {name}": row for name, row in zip(record.label_domains, record.labels, strict=True)}
        for name, split, row in zip(record.domains, record.splits, record.contexts, strict=True):
            found.setdefault(f"generated for an image of {name} ({split})", row)
        return {title: torch.from_numpy(row) for title, row in found.items()}
    if method in ("DPSPG", "DPSPG_TRANSFORMER"):
        raise UserError(f"{run}: {method} generates two contexts for each image. Name images: --images dog.jpg")
    context = getattr(model, "source_context" if method == "DPL" else "ctx", None)
    if context is None:
        raise UserError(f"{run}: {method} has no context. Name a run of another method.")
    if context.dim() == 3:  # a context for each class
        return dict(zip(predictor.classnames, context.detach(), strict=True))
    return {"mean over the source domains' images" if method == "DPL" else method: context.detach()}


def generate_contexts(predictor: "Predictor", images: list[str]) -> "dict[str, Tensor]":
    """The contexts (n_ctx, D) that a run generates for images, by title; raises UserError if it generates none."""
    import torch

    trainer, method = predictor.trainer, predictor.trainer.cfg.TRAINER.NAME
    features, indices = predictor.encode(images)
    with torch.no_grad():
        if method in ("SPG", "SPG_CGAN"):
            by_sign = {"": trainer.contexts(features, indices)}
        elif method in ("DPSPG", "DPSPG_TRANSFORMER"):
            by_sign = {f" ({sign})": generator(features) for sign, generator in trainer.generators.items()}
        elif method == "CoCoOp":
            by_sign = {"": trainer.model(features)}
        else:
            raise UserError(f"--images: {method} generates no contexts. Remove the flag.")
    return {f"{image}{sign}": by_sign[sign][i] for i, image in enumerate(images) for sign in by_sign}


@command
def main(argv: list[str] | None = None) -> None:
    """Exit code 0, 1 with one message, or 130 if interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--backbone", help="the CLIP, if it has moved (default: the CLIP of the run)")
    parser.add_argument("--images", nargs="+", help="show contexts for these images (SPG, DPSPG, CoCoOp)")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    from tabulate import tabulate

    from trainers.predictor import Predictor

    predictor = Predictor(args.run, backbone=args.backbone)
    contexts = generate_contexts(predictor, args.images) if args.images else find_contexts(predictor, args.run)
    text_tower = predictor.trainer.backbone.text
    words, embeddings = text_tower.tokenizer.words(), text_tower.token_embedding.weight
    for title, context in contexts.items():
        rows = []
        for distances, numbers in zip(*find_nearest(context, embeddings, 5), strict=True):
            rows.append([f"{words[n]} {d:.3f}" for n, d in zip(numbers.tolist(), distances.tolist(), strict=True)])
        table = tabulate(
            rows, ["vector", *range(1, 6)], "github", showindex=range(1, 1 + len(rows)), disable_numparse=True
        )
        print(f"{title}\n\n{table}\n")
    sample = embeddings[:: max(1, len(embeddings) // 256)]
    median = find_nearest(sample, embeddings, 2)[0][:, 1].median()
    print(f"Distance between a word and the nearest other word: {median:.3f} (median)")


if __name__ == "__main__":
    sys.exit(main())
