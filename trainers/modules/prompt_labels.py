"""Prompt labels: the learned context of each source domain, as files.

<label_dir>/<dataset>/<backbone>/seed_<k>/<domain>.pt              ours: {"ctx": (n_ctx, D), "made_from": {...}}
<label_dir>/<dataset>/<backbone>/seed_<k>/<dataset>_CoOp_<code>.pt the authors': a bare (n_ctx, D) tensor

DPSPG's labels of a sign lie in a folder of that name: ours at the first level, its authors' at any level and without
seed_<k>.
"""

from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.files import atomic_write
from trainers.modules.finite import require_finite
from trainers.modules.tensor_files import read_tensors


@dataclass(frozen=True)
class LabelFolder:
    """Where the prompt labels of one data set, backbone and seed live.

    Args:
        label_dir: root of all prompt labels.
        dataset: "PACS", "VLCS", ...
        backbone: backbone label, e.g. "RN50", "ViT-B16".
        seed: the seed the labels are trained with.
        sign: "pos" or "neg", where labels have one.
    """

    label_dir: str
    dataset: str
    backbone: str
    seed: int
    sign: str = ""

    @property
    def path(self) -> Path:
        return Path(self.label_dir, self.sign, self.dataset, self.backbone, f"seed_{self.seed}")

    def file_for(self, domain: str) -> Path:
        """The file our own label of a domain is written to."""
        return self.path / f"{domain}.pt"

    def find(self, domain: str, code: str) -> Path | None:
        """The label file of a domain, ours before a published one; None if there is neither."""
        published = f"{self.dataset}_CoOp_{code}.pt"
        levels = self.dataset, self.backbone, f"seed_{self.seed}"
        places = [(*levels[:n][:i], self.sign, *levels[:n][i:]) for n in (3, 2) for i in range(n + 1)]
        candidates = (self.file_for(domain), *(Path(self.label_dir, *place, published) for place in places))
        return next((path for path in candidates if path.is_file()), None)


@dataclass(frozen=True)
class LabelOrigin:
    """What a prompt label was learned from; another origin makes it a label for something else.

    Attributes:
        backbone_sha256: fingerprint of the CLIP weights.
        classnames: tuple of class names.
        class_token_position: "end", "middle" or "front".
        data: fingerprint of the training images: their labels and contents.
        recipe: settings of the training by name, plain values; None where they are not known, and not compared then.
    """

    backbone_sha256: str
    classnames: tuple[str, ...]
    class_token_position: str
    data: str
    recipe: dict[str, Any] | None = None


def save_prompt_label(
    path: str | PathLike, ctx: torch.Tensor, origin: LabelOrigin, seconds: float | None = None
) -> None:
    """Write a prompt label, whole or not at all.

    Args:
        path: file to write.
        ctx: (n_ctx, D) context.
        origin: LabelOrigin.
        seconds: that learning it took; None: not known.

    Raises:
        UserError: a number in it is not finite; nothing is written then.
    """
    require_finite({"ctx": ctx}, f"Prompt label {path}, which is not written", "The training that it comes from broke.")
    made_from = {**asdict(origin), "classnames": list(origin.classnames)}
    with atomic_write(path) as handle:
        # clone(): a view would drag its whole storage into the file.
        torch.save({"ctx": ctx.detach().cpu().clone(), "made_from": made_from, "seconds": seconds}, handle)


def label_seconds(path: str | PathLike) -> float | None:
    """How long learning a prompt label took; None of those that do not say."""
    content = read_tensors(path, "Prompt label", f"Delete {path} to have it trained anew.")
    return content.get("seconds") if isinstance(content, dict) else None


def load_prompt_label(
    path: str | PathLike, n_ctx: int, ctx_dim: int, origin: LabelOrigin, node: str = "TRAINER.SPG"
) -> torch.Tensor:
    """Read a prompt label, ours or a published one, and check that it belongs to this run.

    Args:
        path: file to read.
        n_ctx, ctx_dim: the shape it must have.
        origin: LabelOrigin of this run; published labels carry none and are checked by their shape alone.
        node: the method's, whose keys messages name.

    Returns:
        (n_ctx, D) float32 tensor.

    Raises:
        UserError: the file is damaged, no prompt label, of another shape, or made from something else.
    """
    remove = f"Delete {path} to have it trained anew, or choose another {node}.LABEL_DIR."
    content = read_tensors(path, "Prompt label", remove)
    made_from = content.get("made_from") if isinstance(content, dict) else None
    ctx = content.get("ctx") if isinstance(content, dict) else content
    if not isinstance(ctx, torch.Tensor) or not (made_from is None or isinstance(made_from, dict)):
        raise UserError(f"{path} is no prompt label: no context tensor in it. {remove}")
    if ctx.shape != (n_ctx, ctx_dim):
        raise UserError(
            f"Prompt label {path} has shape {tuple(ctx.shape)}; this run needs ({n_ctx}, {ctx_dim}): n_ctx x the "
            f"width of the backbone's text tower. Use the n_ctx ({node}.N_CTX, CTX_INIT) and backbone it was made "
            f"with. {remove}"
        )
    require_finite({"ctx": ctx}, f"Prompt label {path}", remove)
    if made_from is not None:
        _check_origin(path, made_from, origin, remove)
    return ctx.float()


def _check_origin(path, made_from, origin, remove):
    differences = {
        "backbone_sha256": "another backbone (its weights differ from this run's)",
        "classnames": "other class names",
        "class_token_position": "another CLASS_TOKEN_POSITION",
        "data": "other training images (the data set or its split has changed)",
    }
    ours = {**asdict(origin), "classnames": list(origin.classnames)}
    for key, what in differences.items():
        if made_from.get(key) != ours[key]:
            raise UserError(f"Prompt label {path} was learned with {what}. {remove}")
    theirs = made_from.get("recipe")
    if isinstance(theirs, dict) and origin.recipe is not None and theirs != origin.recipe:
        keys = sorted(key for key in {*theirs, *origin.recipe} if theirs.get(key) != origin.recipe.get(key))
        changed = ", ".join(f"{key} {theirs.get(key)} there and {origin.recipe.get(key)} here" for key in keys)
        raise UserError(f"Prompt label {path} was learned with other settings of stage I: {changed}. {remove}")
