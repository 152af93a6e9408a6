"""Fingerprints of data sets: hashes of the contents of their images, independent of paths."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from common.content_hashes import content_hashes
from common.errors import UserError


class Fingerprints:
    """Base class of data sets with a sha256 over domain, class and content hash of their images."""

    domains: list[str]

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the training and validation images, and of their split."""
        return _fingerprint(self, "train_x", "val")

    @cached_property
    def test_fingerprint(self) -> str:
        """Fingerprint of the test images."""
        return _fingerprint(self, "test")

    def domain_fingerprints(self, splits: Sequence[str]) -> dict[str, str]:
        """Fingerprint of the images of each domain in these splits together."""
        items = [item for split in splits for item in getattr(self, split)]
        lines: dict[str, set[str]] = defaultdict(set)
        for item, content in zip(items, content_hashes([item.impath for item in items]), strict=True):
            lines[self.domains[item.domain]].add(f"{item.classname}/{content}\n")
        return {domain: _sha256(found) for domain, found in sorted(lines.items())}

    def check_unchanged(self) -> None:
        """Raise UserError if images have changed since a fingerprint was first computed."""
        for name in ("fingerprint", "test_fingerprint"):
            before = self.__dict__.pop(name, None)
            if before is not None and getattr(self, name) != before:
                raise UserError("The images of the data set changed during the run. Delete the run and start it again.")


def _fingerprint(dataset: Any, *splits: str) -> str:
    items = [(split, item) for split in splits for item in getattr(dataset, split)]
    hashes = content_hashes([item.impath for _, item in items])
    return _sha256(
        f"{split}/{dataset.domains[item.domain]}/{item.classname}/{content}\n"
        for (split, item), content in zip(items, hashes, strict=True)
    )


def _sha256(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()
