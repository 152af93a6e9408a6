"""Offer the download of a data set that is missing."""

import shlex
import sys
from pathlib import Path

from common.errors import UserError
from common.files import size_text
from datasets.download.install import get
from datasets.download.sources import find_source, locate_set


def download_command(dataset_name: str, root: str | Path) -> str:
    """The command that downloads a set, for messages."""
    return f"python scripts/download.py {dataset_name} --root {shlex.quote(str(root))}"


def offer_download(dataset_name: str, root: str | Path) -> bool:
    """Ask on a terminal whether to download a missing set; return whether the set is there now."""
    try:
        source = find_source(dataset_name)
    except UserError:
        return False
    location, missing = locate_set(source, root)
    if not missing:
        return True
    if not sys.stdin.isatty():
        return False
    sizes = [archive.about for archive in source.archives]
    size = f" ({size_text(sum(size or 0 for size in sizes))})" if all(sizes) else ""
    state = f"has no {', '.join(missing)} under {root}" if location else f"is not under {root}"
    try:
        answer = input(f"{source.title} {state}. Download it{size} now? [y/N] ")
    except EOFError:
        return False
    if answer.strip().lower() not in ("y", "yes"):
        return False
    get(source, root)
    return True
