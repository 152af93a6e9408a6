"""The same command on the same machine gives the same numbers; and what these depend on beside the command."""

import os
import subprocess

from common.dassl_path import REPOSITORY


def make_deterministic() -> None:
    """Have torch take deterministic algorithms, and warn where it has none.

    On a CPU this changes nothing and costs nothing; on a GPU, cuBLAS needs a workspace of 8 MB, and some backward
    passes are slower.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    # Which is for finding bugs, and takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch hides its type
    torch.backends.cudnn.benchmark = False


def revision() -> str | None:
    """The git revision of this code, with "+changes" if files differ from it; None outside of git."""
    try:
        found = _git("rev-parse", "HEAD")
        return found + "+changes" if _git("status", "--porcelain", "--untracked-files=no") else found
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments):
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, capture_output=True, check=True, encoding="utf-8", timeout=10).stdout.strip()
