"""Files of prompt labels: the learned context of each source domain.

<label_dir>/<dataset>/<backbone>/seed_<k>/<domain>.pt               ours: {"ctx": (n_ctx, D), "origin", "seconds"}
<label_dir>/<dataset>/<backbone>/seed_<k>/<dataset>_CoOp_<code>.pt  the authors': a tensor (n_ctx, D)

DPSPG has two labels of a domain, "pos" and "neg". Ours are in <label_dir>/<sign>/, the authors' have the folder <sign>
at any level.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from common.files import atomic_write
from common.run import differences
from trainers.modules.tensor_files import read_tensors, require_finite


@dataclass(frozen=True)
class LabelFolder:
    """The folder of the prompt labels of one data set, backbone, seed and sign ("pos", "neg" or "")."""

    label_dir: str
    dataset: str
    backbone: str
    seed: int
    sign: str = ""

    def file_for(self, domain: str) -> Path:
        """The file of our own label of a domain."""
        return Path(self.label_dir, self.sign, self.dataset, self.backbone, f"seed_{self.seed}", f"{domain}.pt")

    def find(self, domain: str, code: str) -> Path | None:
        """The label file of a domain, ours before a published one, or None."""
        published = f"{self.dataset}_CoOp_{code}.pt"
        with_seed = [self.dataset, self.backbone, f"seed_{self.seed}"]
        # DPSPG's authors have the sign at any level, and no folder of a seed.
        folders = [
            Path(self.label_dir, *levels[:i], self.sign, *levels[i:])
            for levels in (with_seed, with_seed[:2])
            for i in range(len(levels) + 1)
        ]
        candidates = [self.file_for(domain), *(folder / published for folder in folders)]
        return next((path for path in candidates if path.is_file()), None)


def save_prompt_label(
    path: str | PathLike, ctx: Tensor, origin: Mapping[str, Any], seconds: float | None = None
) -> None:
    """Write a prompt label in one step.

    Args:
        origin: everything that the label depends on, plain values by name.
        seconds: training time.
    """
    require_finite({"ctx": ctx}, f"Prompt label {path} is not written", "The training broke: lower OPTIM.LR.")
    with atomic_write(path) as handle:
        # A view would be saved with its whole storage.
        ctx = ctx.detach().cpu().clone()
        torch.save({"ctx": ctx, "origin": dict(origin), "seconds": seconds}, handle)


def load_prompt_label(
    path: str | PathLike, n_ctx: int, ctx_dim: int, origin: Mapping[str, Any], node: str = "TRAINER.SPG"
) -> tuple[Tensor, float | None]:
    """Read a prompt label, ours or a published one, and check that it fits this run.

    Args:
        origin: see `save_prompt_label`. Published labels have none, so they fit.
        node: config node of the method, for messages.

    Returns:
        (n_ctx, D) in single precision, and the training time in seconds (None: unknown).
    """
    fix = f"Delete {path} to train it again, or name another {node}.LABEL_DIR."
    content = read_tensors(path, "Prompt label", fix)
    label = content if isinstance(content, dict) else {"ctx": content}
    ctx, seconds, theirs = label.get("ctx"), label.get("seconds"), label.get("origin", {})
    if not isinstance(ctx, Tensor) or not isinstance(theirs, dict):
        raise UserError(f"{path} is no prompt label: it has no context tensor. {fix}")
    if ctx.shape != (n_ctx, ctx_dim):
        raise UserError(
            f"Prompt label {path} has shape {tuple(ctx.shape)}; this run needs ({n_ctx}, {ctx_dim}), n_ctx x width of "
            f"the text tower. Use the N_CTX, CTX_INIT and backbone it was made with. {fix}"
        )
    require_finite({"ctx": ctx}, f"Prompt label {path}", fix)
    if changes := differences(theirs, origin):
        raise UserError(f"Prompt label {path} was trained with other settings: {changes}. {fix}")
    return ctx.float(), seconds
