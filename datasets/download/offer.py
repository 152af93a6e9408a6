"""Offering the download of a data set where one is missing."""

import shlex
import sys
from pathlib import Path

from common.errors import UserError
from common.files import size_text
from datasets.download.sources import find_source, get, locate_set


def download_command(dataset_name: str, root: str | Path) -> str:
    """The command that downloads a set, for messages."""
    return f"python scripts/download.py {dataset_name} --root {shlex.quote(str(root))}"


def offer_download(dataset_name: str, root: str | Path) -> bool:
    """Ask on a terminal whether to download a set that is missing, and do so.

    Without a terminal nothing is asked or done: the caller's message should name :func:`download_command`.

    Args:
        dataset_name: as in configs/datasets/, or the name of its class.
        root: the data root.

    Returns:
        whether the set is there now; False for a set that cannot be downloaded.

    Raises:
        UserError: the download failed.
    """
    try:
        source = find_source(dataset_name)
    except UserError:
        return False
    location, missing = locate_set(source, root)
    if not missing:
        return True
    if not sys.stdin.isatty():
        return False
    size = f" ({size_text(source.about)})" if source.about else ""
    state = f"has no {', '.join(missing)} under {root}" if location else f"is not under {root}"
    try:
        answer = input(f"{source.title} {state}. Download it{size} now? [y/N] ")
    except EOFError:
        return False
    if answer.strip().lower() not in ("y", "yes"):
        return False
    get(source, root)
    return True
