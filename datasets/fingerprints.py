"""Fingerprints of data sets: hashes of the contents of their images, independent of paths."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
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
        return _sha256("/".join(row) for row in self._hashed("train_x", "val"))

    @cached_property
    def test_fingerprint(self) -> str:
        return _sha256("/".join(row) for row in self._hashed("test"))

    def domain_fingerprints(self, splits: Sequence[str]) -> dict[str, str]:
        """Fingerprint of the images of each domain in these splits together."""
        lines: dict[str, set[str]] = defaultdict(set)
        for _, domain, *image in self._hashed(*splits):
            lines[domain].add("/".join(image))
        return {domain: _sha256(found) for domain, found in sorted(lines.items())}

    def check_unchanged(self) -> None:
        """Raise UserError if images have changed since a fingerprint was first computed."""
        for name in ("fingerprint", "test_fingerprint"):
            before = self.__dict__.pop(name, None)
            if before is not None and getattr(self, name) != before:
                raise UserError("The images of the data set changed during the run. Delete the run and start it again.")

    def _hashed(self, *splits: str) -> Iterator[tuple[Any, ...]]:
        """Split, domain, class name and content hash of each image."""
        items = [(split, item) for split in splits for item in getattr(self, split)]
        hashes = content_hashes([item.impath for _, item in items])
        for (split, item), content in zip(items, hashes, strict=True):
            yield split, self.domains[item.domain], item.classname, content


def _sha256(lines: Iterable[str]) -> str:
    text = "".join(sorted(f"{line}\n" for line in lines))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
