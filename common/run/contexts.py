"""contexts.npz: contexts that a run generated for some images, and the prompt labels it learned from, for pictures."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import atomic_write

CONTEXTS_FILE = "contexts.npz"


@dataclass(frozen=True)
class Contexts:
    """What contexts.npz holds.

    Attributes:
        contexts: (N, n_ctx, D) float16, generated.
        domains: (N,) domain names of the images they were generated for.
        splits: (N,) "val" (images of source domains) or "test" (of target domains).
        labels: (L, n_ctx, D) float16 prompt labels; L is 0 where the run did not have them.
        label_domains: (L,) domain names of these.
    """

    contexts: np.ndarray
    domains: np.ndarray
    splits: np.ndarray
    labels: np.ndarray
    label_domains: np.ndarray


def evenly_spaced(n: int, at_most: int) -> np.ndarray:
    """At most `at_most` of the indices 0 ... n-1, spread evenly over all of them."""
    return np.linspace(0, n - 1, min(n, at_most)).round().astype(int)


def write_contexts(folder: str | PathLike, contexts: Contexts) -> None:
    """Write a Contexts to <folder>/contexts.npz, whole or not at all."""
    with atomic_write(Path(folder) / CONTEXTS_FILE) as handle:
        np.savez_compressed(
            handle,
            contexts=np.asarray(contexts.contexts, np.float16),
            domains=np.asarray(contexts.domains, np.str_),
            splits=np.asarray(contexts.splits, np.str_),
            labels=np.asarray(contexts.labels, np.float16),
            label_domains=np.asarray(contexts.label_domains, np.str_),
        )


def read_contexts(path: str | PathLike) -> Contexts:
    """Read one contexts.npz as a Contexts.

    Raises:
        UserError: the file is missing, damaged or something else; it is never executed.
    """
    mend = "Delete it; the pictures go without."
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = Contexts(**{name: archive[name] for name in Contexts.__dataclass_fields__})
    except Exception as error:  # bytes that are no such file end in any kind of exception
        raise UserError(
            f"{path} holds no contexts: it is damaged or something else ({type(error).__name__}). {mend}"
        ) from error
    for array, words in (
        (found.contexts, (found.domains, found.splits)),
        (found.labels, (found.label_domains,)),
    ):
        if array.ndim != 3 or array.dtype.kind != "f" or not np.isfinite(array).all():
            raise UserError(f"{path}: its contexts are no finite numbers of shape (N, n_ctx, D). {mend}")
        if any(names.shape != array.shape[:1] or names.dtype.kind != "U" for names in words):
            raise UserError(f"{path}: its names do not go with its contexts. {mend}")
    if found.labels.shape[1:] != found.contexts.shape[1:]:
        raise UserError(f"{path}: its prompt labels do not go with its contexts. {mend}")
    return found
