"""Reproducibility: deterministic algorithms, and the versions that results depend on."""

import contextlib
import os
import platform
import subprocess
from importlib import metadata

from common.startup import REPOSITORY

PACKAGES = ("torch", "torchvision", "clip-anytorch", "open_clip_torch", "numpy", "pillow", "scipy", "scikit-learn")


def make_deterministic() -> None:
    """Select torch's deterministic algorithms, with a warning where it has none."""
    # On a GPU, cuBLAS needs a workspace of 8 MB for them.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, to find bugs
    torch.backends.cudnn.benchmark = False


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that results depend on; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), **dict.fromkeys(PACKAGES)}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def revision() -> str | None:
    """The git revision of this code, with "+changes" if files differ from it; None outside of git."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+changes"]
    try:
        return subprocess.run(command, capture_output=True, check=True, encoding="utf-8", timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
