"""contexts.npz: contexts that a run generated for some images, and the prompt labels it learned from, for pictures."""

import zipfile
from dataclasses import dataclass
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


def evenly_spaced(n, at_most):
    """At most `at_most` of the indices 0 ... n-1, spread evenly over all of them."""
    return np.linspace(0, n - 1, min(n, at_most)).round().astype(int)


def write_contexts(folder, contexts):
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


def read_contexts(path):
    """Read one contexts.npz as a Contexts.

    Raises:
        UserError: the file is missing, damaged or something else; it is never executed.
    """
    names = Contexts.__dataclass_fields__
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = Contexts(**{name: archive[name] for name in names})
        for array, of in ((found.contexts, (found.domains, found.splits)), (found.labels, (found.label_domains,))):
            if array.ndim != 3 or array.dtype.kind != "f" or not np.isfinite(array).all():
                raise ValueError("its contexts are no finite numbers of shape (N, n_ctx, D)")
            if any(words.shape != array.shape[:1] or words.dtype.kind != "U" for words in of):
                raise ValueError("its names do not go with its contexts")
        if found.labels.size and found.labels.shape[1:] != found.contexts.shape[1:]:
            raise ValueError("its prompt labels do not go with its contexts")
    except (OSError, ValueError, TypeError, AttributeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} holds no contexts: {error}. Delete it; the pictures go without.") from error
    except Exception as error:  # bytes that are no such file end in any kind of exception
        raise UserError(f"{path} is damaged ({type(error).__name__}). Delete it; the pictures go without.") from error
    return found
