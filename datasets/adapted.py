"""Data sets as users of Dassl and CoOp write them, with the attributes that our trainers need.

Rules for attributes that such a class does not have:

- Without names of domains there is one domain, called as the data set, which is source and target.
- With names, Datum.domain is an index into them or, as in Dassl's own sets, into DATASET.SOURCE_DOMAINS and, for test
  images, TARGET_DOMAINS. If these are empty, the images define source and target domains.
- A domain's code is its name. All images of the test split are tested.
"""

from collections.abc import Sequence
from typing import Any

from dassl.data.datasets import DatasetBase, Datum
from yacs.config import CfgNode

from common.errors import UserError, join_truncated
from datasets.base import DomainGeneralizationDataset
from datasets.fingerprints import Fingerprints

SPLITS = ("train_x", "val", "test")


class AdaptedDataset(Fingerprints):
    """A `DatasetBase` with domains and fingerprints; its Datum.domain is an index into `domains`."""

    test_subset = "all"

    def __init__(
        self, dataset: DatasetBase, name: str, sources: Sequence[str] = (), targets: Sequence[str] = ()
    ) -> None:
        self.name = name
        splits = {split: list(getattr(dataset, split) or ()) for split in SPLITS}
        self._check_splits(dataset, splits, sources)
        self.classnames, self.num_classes = list(dataset.classnames), dataset.num_classes
        self.lab2cname = dataset.lab2cname
        self.domains = list(dataset.domains) or [name]
        if not dataset.domains and any(item.domain for items in splits.values() for item in items):
            raise UserError(f"{name}: its class does not name its domains. Give it `domains = ['art', 'photo', ...]`.")
        if unknown := sorted({*sources, *targets} - set(self.domains)):
            raise UserError(
                f"{name} has no domain {unknown[0]}. Name some of {', '.join(self.domains)} (--source-domains, "
                "--target-domains), or none."
            )
        names = self._domain_names(splits, sources, targets)
        self.train_x, self.val, self.test = (self._renumber(splits[split], names[split]) for split in SPLITS)
        self.source_domains = list(sources) or self._domains_in(self.train_x)
        self.target_domains = list(targets) or self._domains_in(self.test)

    def code(self, domain: str) -> str:
        return domain

    def _check_splits(self, dataset: DatasetBase, splits: dict[str, list[Datum]], sources: Sequence[str]) -> None:
        if not splits["test"]:
            raise UserError(f"{self.name} has no test images. Give DatasetBase.__init__ a list of Datum as `test`.")
        if dataset.domains and not sources and not splits["train_x"]:
            raise UserError(
                f"DATASET.SOURCE_DOMAINS is empty, and {self.name} has no training images then. Name some of "
                f"{', '.join(dataset.domains)} (--source-domains)."
            )
        for item in (item for items in splits.values() for item in items):
            if not item.classname:
                raise UserError(f"{self.name}: {item.impath} has no class name for prompts. Set Datum.classname.")

    def _domain_names(
        self, splits: dict[str, list[Datum]], sources: Sequence[str], targets: Sequence[str]
    ) -> dict[str, Sequence[str]]:
        """The names into which Datum.domain is an index, of each split."""
        used = {split: {item.domain for item in items} for split, items in splits.items()}
        chosen = {"train_x": sources, "val": sources, "test": targets}
        if all(max(found, default=-1) < len(chosen[split]) for split, found in used.items()):
            return chosen
        for split, found in used.items():
            names = {self.domains[index] if index < len(self.domains) else str(index) for index in found}
            strange = names - set(chosen[split] or self.domains)
            if strange:
                raise UserError(
                    f"{self.name} has images of domain {join_truncated(sorted(strange))} in {split}. Make Datum.domain "
                    f"an index into its `domains`, {', '.join(self.domains)}, or into the chosen domains, "
                    f"{join_truncated(chosen[split])}."
                )
        return dict.fromkeys(splits, self.domains)

    def _renumber(self, items: list[Datum], names: Sequence[str]) -> list[Datum]:
        if list(names) == self.domains:
            return items
        index = [self.domains.index(name) for name in names]
        return [Datum(item.impath, item.label, index[item.domain], item.classname) for item in items]

    def _domains_in(self, items: list[Datum]) -> list[str]:
        return [self.domains[index] for index in sorted({item.domain for item in items})]


def adapted(dataset: Any, cfg: CfgNode) -> Any:
    """The data set itself if it is one of ours, else an `AdaptedDataset` of it."""
    if isinstance(dataset, DomainGeneralizationDataset):
        return dataset
    return AdaptedDataset(dataset, cfg.DATASET.NAME, cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
