"""The base class of our data sets: from names of domains to lists of images."""

import math
import os
import random
import shlex
from collections.abc import Iterable, Sequence, Set
from pathlib import Path

from dassl.data.datasets import DatasetBase, Datum
from yacs.config import CfgNode

from common.errors import UserError, join_truncated, warn
from common.files import is_writable
from common.progress import progress
from datasets import names
from datasets.contents import SPLIT_FOLDER, ClassFolder, class_folders, list_images, read_folder
from datasets.fingerprints import Fingerprints
from datasets.layouts import Layout, Location, check_root, locate
from datasets.readable import keep_readable
from datasets.splits import Image, match_images, read_split, seeded_split, write_split

TEST_SUBSETS = ("all", "published")
CLASS_SUBSETS = ("all", "base", "new")  # all classes, the first half, the other half


class DomainGeneralizationDataset(Fingerprints, DatasetBase):
    """Images of the same classes in several domains; a subclass declares one set.

    `train_x` and `val` are splits of the source domains, `test` is all images of the target domains. Labels, names and
    domain labels are the same in every layout. `split_files` has the split file of each domain.
    """

    # Full names, sorted; Datum.domain is an index into them. `codes` are the published ones, in the same order.
    domains: list[str] = []
    codes: list[str] = []
    classes: list[str] | None = None  # class names in prompts, sorted; None: those of the folders
    n_classes: int | None = None  # number of classes if `classes` is None; None: any
    class_aliases: dict[str, str] = {}  # from folders to class names, if these are not their spelling
    layouts: list[Layout] = []  # the preferred one first
    image_counts: dict[str, int] = {}  # images of each domain in the full set
    skipped: Set[str] = frozenset()  # "<domain>/<class>/<file>" of images that are known to be wrong
    has_absent_classes: bool = False  # a domain may have no folder for a class
    splits_cover_all: bool = True  # train and val together are all images of a domain
    writes: bool = True  # writes split files, and images that the set makes itself

    @classmethod
    def list_domains(cls, root: str | Path = "") -> list[str]:
        """Full names of all domains, sorted. `FolderDG` reads them from `root`."""
        return list(cls.domains)

    @classmethod
    def list_codes(cls, root: str | Path = "") -> list[str]:
        """Codes of `list_domains`, in the same order."""
        return list(cls.codes)

    @classmethod
    def resolve_domains(
        cls,
        root: str | Path = "",
        source_domains: Sequence[str | int] = (),
        target_domains: Sequence[str | int] = (),
    ) -> tuple[list[str], list[str]]:
        """Full names of source and target domains; no sources mean all domains but the targets."""
        domains, codes = cls.list_domains(root), cls.list_codes(root)
        return names.resolve_domains(
            cls.__name__, domains, codes, cls._domain_aliases(), source_domains, target_domains
        )

    @classmethod
    def find_domain(cls, name: str, root: str | Path = "") -> str | None:
        """Full name of the domain that a name, a code or another spelling means; None if there is none."""
        return names.find_domain(name, cls.list_domains(root), cls.list_codes(root), cls._domain_aliases())

    @classmethod
    def data_root(cls, cfg: CfgNode) -> Path:
        """DATASET.ROOT as an absolute path. `MiniDigits` makes its images here."""
        return check_root(cfg.DATASET.ROOT)

    @classmethod
    def locate(cls, root: Path, verbose: bool = True) -> Location:
        """Find the set below `root`; raise UserError if it is not there."""
        return locate(root, cls.__name__, cls.domains, cls.layouts, verbose)

    @classmethod
    def class_name(cls, folder: str) -> str:
        """Name of the class of a folder."""
        return cls.class_aliases.get(folder) or names.class_name(folder)

    @staticmethod
    def split_sizes(n: int) -> tuple[int, int]:
        """Numbers of training and validation images out of `n`."""
        n_train = round(0.7 * n)  # halves to even, as in the published PACS splits
        return n_train, n - n_train

    @classmethod
    def _domain_aliases(cls):
        return [
            alias
            for layout in cls.layouts
            if layout.domain_folders
            for alias in zip(layout.domain_folders, cls.domains, strict=True)
        ]

    def __init__(self, cfg: CfgNode) -> None:
        self.test_subset = _choice(cfg, "TEST_SUBSET", TEST_SUBSETS)
        class_subset = _choice(cfg, "SUBSAMPLE_CLASSES", CLASS_SUBSETS)
        root = self.data_root(cfg)
        self.domains, self.codes = self.list_domains(root), self.list_codes(root)
        self.source_domains, self.target_domains = self.resolve_domains(
            root, cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS
        )
        both = set(self.source_domains) & set(self.target_domains)
        if both and self.source_domains != self.target_domains:
            warn(f"{join_truncated(sorted(both))} is a source and a target domain: test images are trained on.")
        used = [domain for domain in self.domains if domain in {*self.source_domains, *self.target_domains}]

        location = self.locate(root, cfg.VERBOSE)
        self.layout, self._domain_dirs = location.layout, location.domain_dirs
        self.dataset_dir = str(location.folder)
        if cfg.VERBOSE:
            print(f"{self._name}: {location.images_dir} ({self.layout.name} layout)")
        self._check_domain_folders(used, location, cfg.OUTPUT_DIR)
        # Labels must not depend on the choice of domains, so unused domains count if the folders give the classes.
        folders = {
            domain: class_folders(self._domain_dirs[domain], self.layout.parts, self.class_name)
            for domain in (used if self.classes else sorted(self._domain_dirs))
        }
        self._class_names = self._check_classes(folders, used)
        self._labels = {classname: label for label, classname in enumerate(self._class_names)}
        subset = self._subset(class_subset)

        self.split_files: dict[str, str] = {}
        train_x, val, test = self._list_splits(used, folders, cfg)
        if cfg.VERBOSE:
            self._warn_of_loose_images(location, used)
        if getattr(cfg.DATASET, "SKIP_UNREADABLE", False):
            named = zip(("train", "val", "test"), (train_x, val, test), strict=True)
            train_x, val, test = (keep_readable(items, f"{self._name}, {split}") for split, items in named)
        train_x, val, test = (self._subsampled(items, subset) for items in (train_x, val, test))
        self._class_names = [self._class_names[label] for label in subset]
        self._check_splits(train_x, val, test)
        super().__init__(train_x=train_x, val=val, test=test)

    @property
    def num_classes(self) -> int:
        """Number of classes, with or without training images."""
        return len(self._class_names)

    @property
    def classnames(self) -> list[str]:
        """Class names, in the order of the labels."""
        return list(self._class_names)

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class names by label."""
        return dict(enumerate(self._class_names))

    def code(self, domain: str) -> str:
        """Code of a domain."""
        return self.codes[self.domains.index(domain)]

    @property
    def covers_domains(self) -> bool:
        """Whether a domain has the same images as a source and as a target."""
        return self.splits_cover_all or self.test_subset == "published"

    @property
    def _name(self):
        return type(self).__name__

    # --- folders ---

    def _check_domain_folders(self, used: list[str], location: Location, output: str) -> None:
        for domain, folder in location.domain_dirs.items():
            if os.path.realpath(output) == os.path.realpath(folder):
                raise UserError(f"OUTPUT_DIR {output}: it is the folder of the domain {domain}. Name another.")
        missing = [domain for domain in used if domain not in location.domain_dirs]
        if missing:
            found = join_truncated(sorted(path.name for path in location.domain_dirs.values()))
            raise UserError(
                f"{self._name}: {location.images_dir} has no folder for {', '.join(missing)}. Found: {found}. Looked "
                f"for: {self.layout}. Extract the set again, or leave these domains out of DATASET.SOURCE_DOMAINS and "
                "TARGET_DOMAINS."
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
            if missing and not self.classes and self.n_classes is None:
                there = join_truncated(other for other in found if missing[0] in found[other])
                fix = (
                    f"{missing[0]} is there in {there}: rename or move misspelled folders. If {domain} has no such "
                    f"images, make an empty folder: mkdir {shlex.quote(str(self._domain_dirs[domain] / missing[0]))}"
                )
            if unknown or (missing and not self.has_absent_classes):
                raise UserError(
                    f"{self._name}: the class folders of {domain} in {self._domain_dirs[domain]} are not those of the "
                    f"set. Missing: {join_truncated(missing)}. Unknown: {join_truncated(unknown)}. {fix}"
                )
        return list(classes)

    def _list_images(self, domain: str, folders: list[ClassFolder]) -> dict[ClassFolder, list[str]]:
        images = list_images(self._domain_dirs[domain], folders)
        skipped = {path for path in self.skipped if path.startswith(f"{domain}/")}
        if skipped:
            images = {
                folder: [name for name in listed if f"{domain}/{folder.classname}/{name}" not in skipped]
                for folder, listed in images.items()
            }
        place = f"{domain} of {self._name} in {self.dataset_dir}"
        if not any(images.values()):
            raise UserError(
                f"{place}: the class folders hold no images: {join_truncated(folder.path for folder in folders)}. "
                "Extract the set again, or leave this domain out of DATASET.SOURCE_DOMAINS and TARGET_DOMAINS."
            )
        there = {folder.classname for folder, listed in images.items() if listed}
        if empty := [classname for classname in self._class_names if classname not in there]:
            warn(f"{place} has no images of: {join_truncated(empty)}.")
        n_images = sum(map(len, images.values()))
        n_known = self.image_counts.get(domain, n_images + len(skipped)) - len(skipped)
        if n_images != n_known:
            warn(f"{place} has {n_images:,} images; the full set has {n_known:,}.")
        return images

    def _warn_of_loose_images(self, location: Location, used: list[str]) -> None:
        folders = {location.images_dir}
        for domain in used:
            folders |= {self._domain_dirs[domain], *(self._domain_dirs[domain] / part for part in self.layout.parts)}
        loose = [str(folder / name) for folder in sorted(folders) for name in read_folder(folder).images]
        if loose:
            warn(
                f"{len(loose):,} images of {self._name} are not used, as they are in no class folder: "
                f"{join_truncated(loose)}."
            )

    # --- splits ---

    def _list_splits(
        self, used: list[str], folders: dict[str, list[ClassFolder]], cfg: CfgNode
    ) -> tuple[list[Datum], list[Datum], list[Datum]]:
        train_x: list[Datum] = []
        val: list[Datum] = []
        test: list[Datum] = []
        shots = cfg.DATASET.NUM_SHOTS
        for domain in progress(used, description=f"Listing {self._name}", unit="domain"):
            images = self._list_images(domain, folders[domain])
            is_source, is_target = domain in self.source_domains, domain in self.target_domains
            train: list[Image] = []
            validation: list[Image] = []
            if is_source or self.covers_domains:
                train, validation = self._split(domain, images, cfg)
            if is_source:
                train_x += self._few_shots(self._data(domain, train), shots, cfg.SEED)
                # CoOp chooses the epoch of a few-shot run on at most 4 images of each class.
                val += self._few_shots(self._data(domain, validation), min(shots, 4), cfg.SEED)
            if is_target and self.covers_domains:
                test += self._data(domain, dict.fromkeys([*train, *validation]))
            elif is_target:
                test += self._data(domain, (Image(folder, name) for folder in images for name in images[folder]))
        return train_x, val, test

    def _split(
        self, domain: str, images: dict[ClassFolder, list[str]], cfg: CfgNode
    ) -> tuple[list[Image], list[Image]]:
        """Split one domain by its split file, which is written if there is none."""
        file_name = f"{self.code(domain)}_train_val_split.json"
        path = Path(self.dataset_dir) / SPLIT_FOLDER / file_name
        if not path.is_file():
            path = _split_of_seed(path, cfg.SEED)
        if not path.is_file() and not is_writable(path.parent):
            path = Path(cfg.OUTPUT_DIR).absolute() / SPLIT_FOLDER / Path(self.dataset_dir).name.lower() / file_name
        self.split_files[domain] = str(path)
        if path.is_file():
            return self._read_split(path, domain, images)
        train, val = seeded_split(images, self.layout.parts, domain, self.split_sizes)
        if not self.writes:
            return train, val
        try:
            write_split(path, self._rows(domain, train), self._rows(domain, val))
        except OSError as error:
            raise UserError(
                f"Cannot write the split file {path}: {error.strerror}. Make space there, or set another OUTPUT_DIR."
            ) from error
        if cfg.VERBOSE:
            print(f"{self._name}: split of {domain} (train {len(train):,}, val {len(val):,}) written to {path}")
        return train, val

    def _read_split(
        self, path: Path, domain: str, images: dict[ClassFolder, list[str]]
    ) -> tuple[list[Image], list[Image]]:
        aliases = self._domain_aliases()
        wrong = tuple(path.removeprefix(domain) for path in self.skipped if path.startswith(f"{domain}/"))
        listed = [[impath for impath in impaths if not impath.endswith(wrong)] for impaths in read_split(path)]
        impaths = [*listed[0], *listed[1]]
        found = match_images(
            impaths,
            images,
            is_domain=lambda name: names.find_domain(name, self.domains, aliases=aliases) == domain,
            class_name=self.class_name,
            parts={part for layout in self.layouts for part in layout.parts if part},
        )
        place = f"{domain} in {self._domain_dirs[domain]}"
        n_images = sum(map(len, images.values()))
        matched = [image for image in found if image is not None]
        if len(matched) < len(found):
            raise UserError(
                f"The split file {path} lists {len(found):,} images, of which {len(found) - len(matched):,} are not "
                f"there in {place}; the first is {impaths[found.index(None)]}. Get the full set, or move the split "
                f"file away to get a new split of the {n_images:,} images that are there."
            )
        train, val = matched[: len(listed[0])], matched[len(listed[0]) :]
        if both := set(train) & set(val):
            warn(f"the split file {path} lists {len(both):,} images for both train and val.")
        n_unlisted = n_images - len(set(matched))
        if n_unlisted and self.splits_cover_all:
            warn(f"{n_unlisted:,} images of {place} are not in the split file {path} and are not used.")
        return train, val

    def _rows(self, domain: str, images: list[Image]) -> list[list]:
        start = os.path.relpath(self._domain_dirs[domain], Path(self.dataset_dir).parent).replace(os.sep, "/")
        index = self.domains.index(domain)
        return [
            [f"{start}/{folder.path}/{name}", self._labels[folder.classname], index, folder.classname]
            for folder, name in images
        ]

    def _data(self, domain: str, images: Iterable[Image]) -> list[Datum]:
        start, index = str(self._domain_dirs[domain]), self.domains.index(domain)
        return [
            Datum(f"{start}{os.sep}{folder.path}/{name}", self._labels[folder.classname], index, folder.classname)
            for folder, name in images
        ]

    def _few_shots(self, data: list[Datum], num_shots: int, seed: int) -> list[Datum]:
        """Draw images of each class of one domain as CoOp does; all images if `num_shots` < 1.

        A domain gives the same shots whatever the other domains are. A seed < 0 uses the global random state.
        """
        if num_shots < 1:
            return data
        state = random.getstate()
        if seed >= 0:
            random.seed(seed)
        shots = self.generate_fewshot_dataset(data, num_shots=num_shots)
        if seed >= 0:
            random.setstate(state)
        return shots

    # --- classes ---

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

    @staticmethod
    def _subsampled(items: list[Datum], labels: range) -> list[Datum]:
        """Images of these labels, with labels from 0."""
        return [
            Datum(item.impath, item.label - labels.start, item.domain, item.classname) if labels.start else item
            for item in items
            if item.label in labels
        ]

    def _check_splits(self, train_x: list[Datum], val: list[Datum], test: list[Datum]) -> None:
        for data, key in ((train_x, "SOURCE"), (test, "TARGET")):
            if not data:
                raise UserError(
                    f"{self._name}: no images are left for DATASET.{key}_DOMAINS by the split files "
                    f"{', '.join(self.split_files.values())}. Move them away to get new splits."
                )
        if not val:
            warn(
                f"the source domains of {self._name} ({join_truncated(self.source_domains)}) are too small to validate "
                "on, so no epoch can be chosen by that: set TEST.FINAL_MODEL last_step."
            )
        if untrained := sorted({item.classname for item in test} - {item.classname for item in train_x}):
            warn(
                f"no source domain of {self._name} has training images of {join_truncated(untrained)}, but the target "
                "domains are tested on them."
            )


def _choice(cfg: CfgNode, key: str, choices: Sequence[str]) -> str:
    value = getattr(cfg.DATASET, key, choices[0])
    if value not in choices:
        raise UserError(f"DATASET.{key} is {value!r}. Accepted: {', '.join(choices)}.")
    return value


def _split_of_seed(path: Path, seed: int) -> Path:
    """The split file in the folder of a seed, as in older files of the authors; else `path`."""
    seeds = sorted(found.parent.name for found in path.parent.glob(f"*/{path.name}") if found.parent.name.isdigit())
    if seeds and str(seed) not in seeds:
        raise UserError(
            f"{path.parent} has splits of seed {', '.join(seeds)}, but none of {seed}: pass --seed {seeds[0]}, or take "
            f"one for all seeds: cp {shlex.quote(str(path.parent / seeds[0]))}/*.json {shlex.quote(str(path.parent))}/"
        )
    return path.parent / str(seed) / path.name if seeds else path
