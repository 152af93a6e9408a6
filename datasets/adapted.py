"""Data sets as the users of Dassl and CoOp write them, with all that our trainers ask of one.

What such a class does not say follows from its Datums, by these rules:

- Without names of domains there is one domain, called as the data set is, which is source and target.
- With names, Datum.domain is an index into them, or, as in Dassl's own sets, one into DATASET.SOURCE_DOMAINS and, of
  test images, into TARGET_DOMAINS. Where these are not given, source and target domains are those that images are of.
- A domain's code is its name; all images of a split are tested.
"""

from collections.abc import Sequence
from typing import Any

from dassl.data.datasets import DatasetBase, Datum
from yacs.config import CfgNode

from common.errors import UserError, some
from datasets.base import DomainGeneralizationDataset
from datasets.fingerprints import Fingerprints


class AdaptedDataset(Fingerprints):
    """A data set of DatasetBase alone, as our trainers take it.

    Attributes:
        train_x, val, test: lists of Datum whose domain is an index into `domains`.
        domains: names of all domains.
        source_domains, target_domains: of these, those that are trained and tested on.
        test_subset: "all".
        classnames, num_classes, lab2cname: the data set's.

    Args:
        dataset: the data set.
        name: its name, DATASET.NAME.
        sources, targets: DATASET.SOURCE_DOMAINS and TARGET_DOMAINS; empty: not given.

    Raises:
        UserError: no rule says which domain an image is of, there are no test images, or no class names.
    """

    test_subset = "all"

    def __init__(
        self, dataset: DatasetBase, name: str, sources: Sequence[str] = (), targets: Sequence[str] = ()
    ) -> None:
        self.name = name
        splits = {split: list(getattr(dataset, split) or ()) for split in ("train_x", "val", "test")}
        if not splits["test"]:
            raise UserError(f"{name} has no test images; give DatasetBase.__init__ a list of Datum as `test`.")
        if dataset.domains and not sources and not splits["train_x"]:
            raise UserError(
                f"{name} has no training images without DATASET.SOURCE_DOMAINS: name those to train on "
                f"(--source-domains) among {', '.join(dataset.domains)}."
            )
        unnamed = [item for items in splits.values() for item in items if not item.classname]
        if unnamed:
            raise UserError(
                f"{name} does not say of which class {unnamed[0].impath} is; prompts need names: Datum(..., "
                'classname="dog").'
            )
        self.classnames, self.num_classes = list(dataset.classnames), dataset.num_classes
        self.lab2cname = dataset.lab2cname
        self.domains = list(dataset.domains) or [name]
        if not dataset.domains:
            self._check_one_domain(splits, sorted({*sources, *targets} - {name}))
            sources = targets = ()
        unknown = sorted({*sources, *targets} - set(self.domains))
        if unknown:
            raise UserError(f"{name} has no domain {unknown[0]}; it has {', '.join(self.domains)}.")
        names_of = self._names_of(splits, sources, targets)
        self.train_x, self.val, self.test = (self._placed(items, names_of[split]) for split, items in splits.items())
        self.source_domains = list(sources) or self._domains_in(self.train_x)
        self.target_domains = list(targets) or self._domains_in(self.test)

    def code(self, domain: str) -> str:
        """The code of a domain: its name."""
        return domain

    def _check_one_domain(self, splits: dict[str, list[Datum]], asked: Sequence[str]) -> None:
        if asked:
            raise UserError(
                f"{self.name} names no domains, but DATASET.SOURCE_DOMAINS or TARGET_DOMAINS name {some(asked)}. Leave "
                "these out (--source-domains, --target-domains), or give the class of the data set `domains`."
            )
        if any(item.domain for items in splits.values() for item in items):
            raise UserError(
                f"{self.name} has images of several domains (Datum.domain), but no names for them: give its class "
                '`domains = ["art", "photo", ...]`.'
            )

    def _names_of(
        self, splits: dict[str, list[Datum]], sources: Sequence[str], targets: Sequence[str]
    ) -> dict[str, Sequence[str]]:
        """The names that Datum.domain is an index into, of each split."""
        used = {split: {item.domain for item in items} for split, items in splits.items()}
        asked = {"train_x": sources, "val": sources, "test": targets}
        if all(max(found, default=-1) < len(asked[split]) for split, found in used.items()):
            return asked
        for split, found in used.items():
            names = {self.domains[index] if index < len(self.domains) else index for index in found}
            strange = names - set(asked[split] or self.domains)
            if strange:
                raise UserError(
                    f"{self.name} has images of domain {some(sorted(map(str, strange)))} in {split}; accepted: "
                    "Datum.domain as an index into DATASET.SOURCE_DOMAINS (of test images TARGET_DOMAINS), here "
                    f"{some(asked[split])}, or into its `domains`, {', '.join(self.domains)}."
                )
        return dict.fromkeys(splits, self.domains)

    def _placed(self, items: list[Datum], names: Sequence[str]) -> list[Datum]:
        index = [self.domains.index(name) for name in names]
        return [
            item
            if index[item.domain] == item.domain
            else Datum(item.impath, item.label, index[item.domain], item.classname)
            for item in items
        ]

    def _domains_in(self, items: list[Datum]) -> list[str]:
        return [self.domains[index] for index in sorted({item.domain for item in items})]


def adapted(dataset: Any, cfg: CfgNode) -> Any:
    """A data set that has all that our trainers ask of one: itself, or an `AdaptedDataset` of it."""
    if isinstance(dataset, DomainGeneralizationDataset):
        return dataset
    return AdaptedDataset(dataset, cfg.DATASET.NAME, cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
