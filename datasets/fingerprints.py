"""Fingerprints of data sets: which images are in which split, wherever they are stored."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from dassl.data.datasets import Datum


def fingerprint_of(dataset: Any, splits: Iterable[str], name_of: Callable[[Datum], str]) -> str:
    """sha256 (hexadecimal) of the domain, class and name of every image in each of a data set's splits."""
    lines = [
        f"{split}/{dataset.domains[item.domain]}/{item.classname}/{name_of(item)}\n"
        for split in splits
        for item in getattr(dataset, split)
    ]
    return hashlib.sha256("".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()
