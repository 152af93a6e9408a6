"""contexts.npz: generated contexts of some images, and the prompt labels they were learned from, for plots."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import atomic_write

CONTEXTS_FILE = "contexts.npz"


@dataclass(frozen=True)
class Contexts:
    """The content of contexts.npz, for N images and L prompt labels; L is 0 in tests of another run's model."""

    contexts: np.ndarray  # (N, n_ctx, D) float16, generated
    domains: np.ndarray  # (N,) domain names of their images
    splits: np.ndarray  # (N,) "val" (images of source domains) or "test" (of target domains)
    labels: np.ndarray  # (L, n_ctx, D) float16 prompt labels
    label_domains: np.ndarray  # (L,) their domain names


def write_contexts(folder: str | PathLike, contexts: Contexts) -> None:
    """Write <folder>/contexts.npz atomically."""
    numbers = {"contexts": np.float16(contexts.contexts), "labels": np.float16(contexts.labels)}
    with atomic_write(Path(folder) / CONTEXTS_FILE) as handle:
        np.savez_compressed(handle, **{**contexts.__dict__, **numbers})


def read_contexts(path: str | PathLike) -> Contexts:
    """Read one contexts.npz without running code; raises UserError if it is missing, damaged or something else."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = Contexts(**{name: archive[name] for name in Contexts.__dataclass_fields__})
        if not np.isfinite(found.contexts).all() or found.labels.shape[1:] != found.contexts.shape[1:]:
            raise ValueError("its contexts are not finite or do not match its labels")
        return found
    except Exception as error:  # NumPy's reader raises many kinds of exceptions
        raise UserError(f"{path} holds no contexts: {error}. Delete it, and plots leave out its contexts.") from error
