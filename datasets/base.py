"""The base class of our data sets: from names of domains to lists of images."""

import difflib
import math
import os
import random
import shlex
from collections.abc import Iterable, Sequence, Set
from pathlib import Path

import yaml
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from yacs.config import CfgNode

from common.errors import UserError, join_truncated, warn
from common.progress import progress
from common.run import class_subset
from common.startup import REPOSITORY
from datasets import names
from datasets.fingerprints import Fingerprints
from datasets.image_files import ClassFolder, class_folders, images_below, keep_readable, read_folder
from datasets.layouts import Layout, Location, check_root, locate
from datasets.splits import Image, find_split_file, match_images, read_split, seeded_split, write_split

CONFIGS = REPOSITORY / "configs" / "datasets"
EMBEDDED_DATASET = "mini_digits"  # needs no download
FOLDER = "folder"  # the config of any folder of domains


class DomainGeneralizationDataset(Fingerprints, DatasetBase):
    """Images of the same classes in several domains; a subclass declares one set.

    `train_x` and `val` are splits of the source domains, `test` is all images of the target domains. Labels, names and
    domain labels are the same in every layout. `split_files` has the split file of each domain.
    """

    # ---- a subclass declares ----

    # Full names, sorted; Datum.domain is an index into them. `codes` are the published ones, in the same order.
    domains: list[str] = []
    codes: list[str] = []
    classes: list[str] | None = None  # class names in prompts, sorted; None: names of the folders
    n_classes: int | None = None  # number of classes if `classes` is None; None: any
    class_aliases: dict[str, str] = {}  # from folders to class names, if these are not their spelling
    layouts: list[Layout] = []  # the preferred one first
    image_counts: dict[str, int] = {}  # images of each domain in the full set
    skipped: Set[str] = frozenset()  # "<domain>/<class>/<file>" of images that are known to be wrong
    has_absent_classes: bool = False  # a domain may have no folder for a class
    splits_cover_all: bool = True  # train and val together are all images of a domain
    writes: bool = True  # writes split files, and images that the set makes itself

    @staticmethod
    def split_sizes(n: int) -> tuple[int, int]:
        """Numbers of training and validation images out of `n`."""
        n_train = round(0.7 * n)  # halves to even, as in the published PACS splits
        return n_train, n - n_train

    # ---- questions that need no images ----

    @classmethod
    def list_domains(cls, root: str | Path = "") -> list[str]:
        """Full names of all domains, sorted. `FolderDG` reads them from `root`."""
        return list(cls.domains)

    @classmethod
    def list_codes(cls, root: str | Path = "") -> list[str]:
        """Codes of `list_domains`, in the same order; the names themselves if a set has no codes."""
        return list(cls.codes) or cls.list_domains(root)

    @classmethod
    def resolve_domains(
        cls, root: str | Path = "", source_domains: Sequence[str | int] = (), target_domains: Sequence[str | int] = ()
    ) -> tuple[list[str], list[str]]:
        """Full names of source and target domains; no sources mean all domains but the targets."""
        domains, codes, aliases = cls.list_domains(root), cls.list_codes(root), cls._domain_aliases()
        listed = (name if code == name else f"{name} ({code})" for name, code in zip(domains, codes, strict=True))
        accepted = f"Accepted: {', '.join(listed)}."

        def full_names(values: Sequence[str | int], key: str) -> list[str]:
            found: list[str] = []
            for value in [values] if isinstance(values, str) else values:
                name = names.find_domain(value, domains, codes, aliases)
                if name is None:
                    close = difflib.get_close_matches(str(value), domains, n=1)
                    hint = f" Did you mean {close[0]}?" if close else ""
                    raise UserError(f"DATASET.{key}: {cls.__name__} has no domain {value!r}. {accepted}{hint}")
                if name in found:
                    raise UserError(f"DATASET.{key} names {name} twice. Name each domain once.")
                found.append(name)
            return found

        targets = full_names(target_domains, "TARGET_DOMAINS")
        sources = full_names(source_domains, "SOURCE_DOMAINS")
        if not targets:
            example = f"--target-domains {codes[-1]}"
            raise UserError(f"DATASET.TARGET_DOMAINS is empty. Name a domain to test on: {example}. {accepted}")
        sources = sources or [domain for domain in domains if domain not in targets]
        if not sources:
            raise UserError("DATASET.TARGET_DOMAINS names every domain. Name fewer, or set DATASET.SOURCE_DOMAINS.")
        return sources, targets

    @classmethod
    def find_domain(cls, name: str, root: str | Path = "") -> str | None:
        """Full name of the domain that a name, a code or another spelling means; None if there is none."""
        return names.find_domain(name, cls.list_domains(root), cls.list_codes(root), cls._domain_aliases())

    @classmethod
    def _domain_aliases(cls) -> list[tuple[str, str]]:
        named = [layout.domain_folders for layout in cls.layouts if layout.domain_folders]
        return [alias for folders in named for alias in zip(folders, cls.domains, strict=True)]

    @classmethod
    def class_name(cls, folder: str) -> str:
        """Name of the class of a folder."""
        return cls.class_aliases.get(folder) or names.class_name(folder)

    @classmethod
    def data_root(cls, cfg: CfgNode) -> Path:
        """DATASET.ROOT as an absolute path. `MiniDigits` makes its images here."""
        return check_root(cfg.DATASET.ROOT)

    @classmethod
    def locate(cls, root: Path, verbose: bool = True) -> Location:
        """Find the set below `root`; raise UserError if it is not there."""
        return locate(root, cls, verbose)

    def code(self, domain: str) -> str:
        return self.codes[self.domains.index(domain)]

    @property
    def covers_domains(self) -> bool:
        """Whether a domain has the same images as a source and as a target."""
        return self.splits_cover_all or self.test_subset == "published"

    # ---- from the config to lists of images ----

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg, self._name = cfg, type(self).__name__
        self.test_subset = getattr(cfg.DATASET, "TEST_SUBSET", "all")
        root = self.data_root(cfg)
        self.domains, self.codes = self.list_domains(root), self.list_codes(root)
        self.source_domains, self.target_domains = self.resolve_domains(
            root, cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS
        )
        both = set(self.source_domains) & set(self.target_domains)
        if both and self.source_domains != self.target_domains:
            warn(f"{join_truncated(sorted(both))} is a source and a target domain: test images are trained on.")
        used = [domain for domain in self.domains if domain in {*self.source_domains, *self.target_domains}]

        self._location = self.locate(root, cfg.VERBOSE)
        self.layout, self.dataset_dir = self._location.layout, str(self._location.folder)
        if cfg.VERBOSE:
            print(f"{self._name}: {self._location.images_dir} ({self.layout.name} layout)")
        self._check_domain_folders(used)
        # Labels must not depend on the choice of domains, so unused domains count if the folders give the classes.
        listed = used if self.classes else sorted(self._location.domain_dirs)
        dirs = self._location.domain_dirs
        folders = {domain: class_folders(dirs[domain], self.layout.parts, self.class_name) for domain in listed}
        self._class_names = self._check_classes(folders, used)
        self._labels = {classname: label for label, classname in enumerate(self._class_names)}
        labels = self._subset(class_subset(cfg))

        self.split_files: dict[str, str] = {}
        splits = self._list_splits(used, folders)
        if cfg.VERBOSE:
            self._warn_of_loose_images(used)
        if getattr(cfg.DATASET, "SKIP_UNREADABLE", False):
            splits = {split: keep_readable(items, f"{self._name}, {split}") for split, items in splits.items()}
        splits = {split: _subsampled(items, labels) for split, items in splits.items()}
        self._check_splits(**splits)
        super().__init__(train_x=splits["train"], val=splits["val"], test=splits["test"])
        # DatasetBase knows only classes with training images.
        self._classnames = [self._class_names[label] for label in labels]
        self._num_classes, self._lab2cname = len(labels), dict(enumerate(self._classnames))

    def _check_domain_folders(self, used: list[str]) -> None:
        output, found = self._cfg.OUTPUT_DIR, self._location.domain_dirs
        for domain, folder in found.items():
            if os.path.realpath(output) == os.path.realpath(folder):
                raise UserError(f"OUTPUT_DIR {output}: it is the folder of the domain {domain}. Name another.")
        if missing := [domain for domain in used if domain not in found]:
            raise UserError(
                f"{self._location.images_dir} has no folder for {', '.join(missing)} ({self.layout}). Extract the set "
                "again, or leave these domains out of DATASET.SOURCE_DOMAINS and TARGET_DOMAINS."
            )

    def _check_classes(self, folders: dict[str, list[ClassFolder]], used: list[str]) -> list[str]:
        """Class names in the order of their labels; raises UserError if folders are missing or unknown."""
        found = {domain: {folder.classname for folder in listed} for domain, listed in folders.items()}
        fix = "Extract the set again, or move away folders that are no classes."
        classes = self.classes or sorted(set().union(*found.values()))
        if not self.classes and self.n_classes not in (None, len(classes)):
            once = [name for name in classes if sum(name in there for there in found.values()) == 1]
            raise UserError(
                f"{self._name} has {self.n_classes} classes, but in {self.dataset_dir} there are folders for "
                f"{len(classes)}. In one domain only: {join_truncated(once)}. {fix}"
            )
        for domain in used:
            missing, unknown = sorted(set(classes) - found[domain]), sorted(found[domain] - set(classes))
            folder = self._location.domain_dirs[domain]
            if missing and not self.classes and self.n_classes is None:
                there = join_truncated(other for other in found if missing[0] in found[other])
                fix = (
                    f"{missing[0]} is there in {there}. Rename misspelled folders, or make an empty folder for a class "
                    f"without images: mkdir {shlex.quote(str(folder / missing[0]))}"
                )
            if unknown or (missing and not self.has_absent_classes):
                raise UserError(
                    f"{self._name}: the class folders of {domain} in {folder} differ from the classes of the set. "
                    f"Missing: {join_truncated(missing)}. Unknown: {join_truncated(unknown)}. {fix}"
                )
        return list(classes)

    def _subset(self, subset: str) -> range:
        """Labels of all classes, of the first half ("base") or of the other half ("new"), as in CoOp."""
        n = len(self._class_names)
        half = math.ceil(n / 2)
        labels = {"all": range(n), "base": range(half), "new": range(half, n)}[subset]
        if len(labels) < 2:
            left = join_truncated(repr(self._class_names[label]) for label in labels)
            raise UserError(
                f"{self._name} in {self.dataset_dir}: DATASET.SUBSAMPLE_CLASSES {subset} leaves {len(labels)} of {n} "
                f"classes ({left}), and a classifier needs two. Add class folders or use another subset."
            )
        return labels

    def _warn_of_loose_images(self, used: list[str]) -> None:
        dirs = [self._location.domain_dirs[domain] for domain in used]
        folders = {self._location.images_dir, *dirs, *(path / part for path in dirs for part in self.layout.parts)}
        loose = [str(folder / name) for folder in sorted(folders) for name in read_folder(folder).images]
        if loose:
            warn(f"{len(loose):,} images are not used, as they are in no class folder: {join_truncated(loose)}.")

    # ---- images and splits ----

    def _list_splits(self, used: list[str], folders: dict[str, list[ClassFolder]]) -> dict[str, list[Datum]]:
        splits: dict[str, list[Datum]] = {"train": [], "val": [], "test": []}
        shots = self._cfg.DATASET.NUM_SHOTS
        for domain in progress(used, description=f"Listing {self._name}", unit="domain"):
            images = self._list_images(domain, folders[domain])
            is_source, is_target = domain in self.source_domains, domain in self.target_domains
            train: list[Image] = []
            val: list[Image] = []
            if is_source or self.covers_domains:
                train, val = self._split(domain, images)
            if is_source:
                splits["train"] += self._few_shots(self._data(domain, train), shots)
                # CoOp chooses the epoch of a few-shot run on at most 4 images of each class.
                splits["val"] += self._few_shots(self._data(domain, val), min(shots, 4))
            if is_target and self.covers_domains:
                splits["test"] += self._data(domain, dict.fromkeys([*train, *val]))
            elif is_target:
                all_images = (Image(folder, name) for folder in images for name in images[folder])
                splits["test"] += self._data(domain, all_images)
        return splits

    def _list_images(self, domain: str, folders: list[ClassFolder]) -> dict[ClassFolder, list[str]]:
        domain_dir = self._location.domain_dirs[domain]
        images = {folder: images_below(domain_dir / folder.path) for folder in folders}
        skipped = {path for path in self.skipped if path.startswith(f"{domain}/")}
        for folder, listed in images.items() if skipped else ():
            images[folder] = [name for name in listed if f"{domain}/{folder.classname}/{name}" not in skipped]
        place = f"{domain} of {self._name} in {self.dataset_dir}"
        if not any(images.values()):
            raise UserError(f"{place}: its class folders hold no images. Extract the set again, or leave it out.")
        there = {folder.classname for folder, listed in images.items() if listed}
        if empty := [classname for classname in self._class_names if classname not in there]:
            warn(f"{place} has no images of: {join_truncated(empty)}.")
        n_images = sum(map(len, images.values()))
        n_known = self.image_counts.get(domain, n_images + len(skipped)) - len(skipped)
        if n_images != n_known:
            warn(f"{place} has {n_images:,} images; the full set has {n_known:,}.")
        return images

    def _split(self, domain: str, images: dict[ClassFolder, list[str]]) -> tuple[list[Image], list[Image]]:
        """Split one domain by its split file, which is written if there is none."""
        cfg = self._cfg
        path = find_split_file(self.dataset_dir, self.code(domain), cfg.SEED, cfg.OUTPUT_DIR)
        self.split_files[domain] = str(path)
        if path.is_file():
            return self._read_split(path, domain, images)
        train, val = seeded_split(images, self.layout.parts, domain, self.split_sizes)
        if self.writes:
            start = os.path.join(Path(self.dataset_dir).parent, "")
            rows = (
                [[i.impath.removeprefix(start), i.label, i.domain, i.classname] for i in self._data(domain, part)]
                for part in (train, val)
            )
            write_split(path, *rows)
            if cfg.VERBOSE:
                print(f"{self._name}: split of {domain} (train {len(train):,}, val {len(val):,}) written to {path}")
        return train, val

    def _read_split(
        self, path: Path, domain: str, images: dict[ClassFolder, list[str]]
    ) -> tuple[list[Image], list[Image]]:
        aliases = self._domain_aliases()
        wrong = tuple(path.removeprefix(domain) for path in self.skipped if path.startswith(f"{domain}/"))
        train, val = ([impath for impath in impaths if not impath.endswith(wrong)] for impaths in read_split(path))
        found = match_images(
            [*train, *val],
            images,
            is_domain=lambda name: names.find_domain(name, self.domains, aliases=aliases) == domain,
            class_name=self.class_name,
            parts={part for layout in self.layouts for part in layout.parts if part},
        )
        place = f"{domain} in {self._location.domain_dirs[domain]}"
        n_images = sum(map(len, images.values()))
        matched = [image for image in found if image is not None]
        if len(matched) < len(found):
            raise UserError(
                f"The split file {path} lists {len(found):,} images, of which {len(found) - len(matched):,} are not "
                f"there in {place}; the first is {[*train, *val][found.index(None)]}. Get the full set, or move the "
                f"split file away to get a new split of the {n_images:,} images that are there."
            )
        n_unlisted = n_images - len(set(matched))
        if n_unlisted and self.splits_cover_all:
            warn(f"{n_unlisted:,} images of {place} are not in the split file {path} and are not used.")
        train_images, val_images = matched[: len(train)], matched[len(train) :]
        if both := set(train_images) & set(val_images):
            warn(f"the split file {path} lists {len(both):,} images for both train and val.")
        return train_images, val_images

    def _data(self, domain: str, images: Iterable[Image]) -> list[Datum]:
        start, index = str(self._location.domain_dirs[domain]), self.domains.index(domain)
        return [
            Datum(f"{start}{os.sep}{folder.path}/{name}", self._labels[folder.classname], index, folder.classname)
            for folder, name in images
        ]

    def _few_shots(self, data: list[Datum], num_shots: int) -> list[Datum]:
        """Draw images of each class of one domain as CoOp does; all images if `num_shots` < 1.

        A domain gives the same shots whatever the other domains are. A seed < 0 uses the global random state.
        """
        if num_shots < 1:
            return data
        state, seed = random.getstate(), self._cfg.SEED
        if seed >= 0:
            random.seed(seed)
        shots = self.generate_fewshot_dataset(data, num_shots=num_shots)
        if seed >= 0:
            random.setstate(state)
        return shots

    def _check_splits(self, train: list[Datum], val: list[Datum], test: list[Datum]) -> None:
        for data, key in ((train, "SOURCE"), (test, "TARGET")):
            if not data:
                raise UserError(
                    f"{self._name}: no images are left for DATASET.{key}_DOMAINS by the split files "
                    f"{', '.join(self.split_files.values())}. Move them away to get new splits."
                )
        if not val:
            warn(
                f"the source domains {join_truncated(self.source_domains)} have no validation images: no epoch can be "
                "selected. Set TEST.FINAL_MODEL last_step."
            )
        if untrained := sorted({item.classname for item in test} - {item.classname for item in train}):
            warn(f"no source domain has training images of {join_truncated(untrained)}, which the test needs.")


def _subsampled(items: list[Datum], labels: range) -> list[Datum]:
    """Images of these labels, with labels from 0."""
    return [
        Datum(item.impath, item.label - labels.start, item.domain, item.classname) if labels.start else item
        for item in items
        if item.label in labels
    ]


# ---- the data sets that a command line can name: configs in configs/datasets/, and any folder of domains ----


def known_names() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != FOLDER)


def known_domains() -> set[str]:
    """Full names of the domains of all our sets."""
    kinds = map(DATASET_REGISTRY.get, DATASET_REGISTRY.registered_names())
    return {domain for kind in kinds if issubclass(kind, DomainGeneralizationDataset) for domain in kind.domains}


def dataset_config(name: str, data: str) -> tuple[Path, str]:
    """Find the config file and the data root of a known set, below `data`, or of a folder."""
    if name.lower() in (*known_names(), FOLDER):
        return CONFIGS / f"{name.lower()}.yaml", data
    if Path(name).is_dir():
        return CONFIGS / f"{FOLDER}.yaml", name
    raise UserError(f"Unknown data set {name!r}: neither a folder nor one of {', '.join(known_names())}.")


def dataset_class(config: Path) -> type[DomainGeneralizationDataset]:
    """The registered class that the config file of a data set names."""
    return DATASET_REGISTRY.get(yaml.safe_load(config.read_text(encoding="utf-8"))["DATASET"]["NAME"])
