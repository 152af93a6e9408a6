"""The base of all domain generalization datasets: from names of domains to lists of images."""

import math
import os
import random
import shlex
from collections.abc import Sequence, Set
from pathlib import Path

from dassl.data.datasets import DatasetBase, Datum
from yacs.config import CfgNode

from common.errors import UserError
from common.files import is_writable
from common.messages import some, warn
from common.progress import progress
from datasets import names
from datasets.contents import SPLIT_FOLDER, Unused, collect, describe
from datasets.fingerprints import Fingerprints
from datasets.layouts import Layout, Location, check_root, locate
from datasets.listing import ClassFolder, beside_classes, class_folders, list_images
from datasets.readable import keep_readable
from datasets.splits import Image, match_split, read_split, seeded_split, write_split

TEST_SUBSETS = ("all", "published")
CLASS_SUBSETS = ("all", "base", "new")  # all classes, the first half of them, the rest
KNOWN_TO_BE_WRONG = "known to be wrong"


class NotMadeYet(UserError):
    """A set that makes its own images has not made them, and must not now."""


class DomainGeneralizationDataset(Fingerprints, DatasetBase):
    """Images of the same classes in several domains; trained on some domains, tested on others.

    ``train_x`` and ``val`` are the train and val splits of the source domains, ``test`` is all images of the
    target domains. Labels, domain labels and names are the same in every layout. A subclass only says what
    its set looks like:

    Class attributes:
        dataset_dir: short name of the set, for folders.
        domains: full names of all domains, sorted; a domain's index here is its domain label.
        codes: the published code of each domain.
        classes: class names as prompts have them, sorted; None: those that the folders show.
        n_classes: number of classes, checked where ``classes`` is None; None: any.
        class_aliases: from names of class folders to class names, where these are not their spelling.
        layouts: accepted layouts, the preferred first.
        image_counts: known number of images of each domain; other numbers are reported.
        skipped: images known to be wrong, as ``"<domain>/<class>/<file name>"``.
        absent_classes: whether a domain may have no folder for a class.
        splits_cover_all: whether train and val split together are all images of a domain. If not, a target domain is
            tested on all its images, unless DATASET.TEST_SUBSET is "published".
        writes: whether a split that is made is written (where it is not, the next one is the same), and images that
            the set makes itself.

    Attributes:
        source_domains, target_domains: full names.
        test_subset: "all", or "published" (test on train and val split only).
        layout: the one in use.
        dataset_dir: the set's own folder.
        split_files: from domain to the split file in use.
        unused: from domain to what of it is not used: paths relative to its folder, by reason; "": what lies beside
            the domains.

    Args:
        cfg: the configuration; read are DATASET.ROOT, SOURCE_DOMAINS, TARGET_DOMAINS, NUM_SHOTS, TEST_SUBSET,
            SUBSAMPLE_CLASSES, SKIP_UNREADABLE, and SEED (few-shot only), OUTPUT_DIR (split files if the data root is
            read-only), VERBOSE.

    Raises:
        UserError: anything about domains, folders or split files that the user can mend.
    """

    dataset_dir: str = ""
    domains: list[str] = []
    codes: list[str] = []
    classes: list[str] | None = None
    n_classes: int | None = None
    class_aliases: dict[str, str] = {}
    layouts: list[Layout] = []
    image_counts: dict[str, int] = {}
    skipped: Set[str] = frozenset()
    absent_classes: bool = False
    splits_cover_all: bool = True
    writes: bool = True

    # --- what launchers ask, without listing images ---

    @classmethod
    def list_domains(cls, root: str | Path = "") -> list[str]:
        """Full names of all domains, sorted; a set that may be any folder looks them up in ``root``."""
        return list(cls.domains)

    @classmethod
    def list_codes(cls, root: str | Path = "") -> list[str]:
        """The codes of :meth:`list_domains`, in the same order."""
        return list(cls.codes)

    @classmethod
    def resolve_domains(
        cls,
        root: str | Path = "",
        source_domains: Sequence[str | int] = (),
        target_domains: Sequence[str | int] = (),
    ) -> tuple[list[str], list[str]]:
        """Full names of the source and target domains that a configuration names by name or code.

        Args:
            root: DATASET.ROOT; looked at only by a set that may be any folder.
            source_domains: DATASET.SOURCE_DOMAINS; empty: all domains but the targets.
            target_domains: DATASET.TARGET_DOMAINS.

        Returns:
            sources and targets.

        Raises:
            UserError: no target; an unknown domain; a domain named twice; no source is left.
        """
        return names.resolve_domains(
            cls.__name__,
            cls.list_domains(root),
            cls.list_codes(root),
            cls._domain_aliases(),
            source_domains,
            target_domains,
        )

    @classmethod
    def find_domain(cls, name: str, root: str | Path = "") -> str | None:
        """The full name of the domain that a name, a code or a spelling of them stands for; None if there is none."""
        return names.find_domain(name, cls.list_domains(root), cls.list_codes(root), cls._domain_aliases())

    @classmethod
    def data_root(cls, cfg: CfgNode) -> Path:
        """DATASET.ROOT as an absolute path; a set that makes its own images makes them here.

        Raises:
            UserError: it is not set, or not a folder.
        """
        return check_root(cfg.DATASET.ROOT)

    @classmethod
    def locate(cls, root: Path, verbose: bool = True) -> Location:
        """Where the set is below ``root``.

        Raises:
            UserError: it is not there.
        """
        return locate(root, cls.__name__, cls.domains, cls.layouts, verbose)

    @classmethod
    def class_name(cls, folder: str) -> str:
        """The name of the class whose folder is called ``folder``."""
        return cls.class_aliases.get(folder) or names.class_name(folder)

    @staticmethod
    def split_sizes(n: int) -> tuple[int, int]:
        """Numbers of training and validation images out of ``n``: 70 % and the rest.

        Rounded to the nearest, halves to even: so the published PACS splits are.
        """
        n_train = round(0.7 * n)
        return n_train, n - n_train

    @classmethod
    def _domain_aliases(cls):
        return [
            alias
            for layout in cls.layouts
            if layout.domain_folders
            for alias in zip(layout.domain_folders, cls.domains, strict=True)
        ]

    # --- what trainers ask ---

    def __init__(self, cfg: CfgNode) -> None:
        self.test_subset = getattr(cfg.DATASET, "TEST_SUBSET", "all")
        if self.test_subset not in TEST_SUBSETS:
            accepted = ", ".join(TEST_SUBSETS)
            raise UserError(f"DATASET.TEST_SUBSET is {self.test_subset!r}. Accepted: {accepted}.")
        root = self.data_root(cfg)
        self.domains, self.codes = self.list_domains(root), self.list_codes(root)
        self.source_domains, self.target_domains = self.resolve_domains(
            root, cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS
        )
        both = set(self.source_domains) & set(self.target_domains)
        if both and self.source_domains != self.target_domains:
            warn(f"{some(sorted(both))} is a source and a target domain: test images are trained on.")
        used = [domain for domain in self.domains if domain in {*self.source_domains, *self.target_domains}]

        location = self.locate(root, cfg.VERBOSE)
        self.layout = location.layout
        self.dataset_dir = str(location.folder)
        self._domain_dirs = location.domain_dirs
        for domain, folder in location.domain_dirs.items():
            if os.path.realpath(cfg.OUTPUT_DIR) == os.path.realpath(folder):
                raise UserError(f"OUTPUT_DIR {cfg.OUTPUT_DIR}: it is the folder of the domain {domain}. Name another.")
        if cfg.VERBOSE:
            print(f"{self._name}: {location.images_dir} ({self.layout.name} layout)")
        self._check_domain_folders(used, location)
        # Where the folders say which classes there are, those of unused domains count as well: labels must
        # not depend on the choice of domains.
        folders = {
            domain: class_folders(self._domain_dirs[domain], self.layout.parts, self.class_name)
            for domain in (used if self.classes else sorted(self._domain_dirs))
        }
        self._class_names = self._check_classes(folders, used)
        self._labels = {classname: label for label, classname in enumerate(self._class_names)}
        subset = self._subset(getattr(cfg.DATASET, "SUBSAMPLE_CLASSES", "all"))

        self.split_files: dict[str, str] = {}
        self.unused: dict[str, Unused] = {"": location.beside_domains()}
        train_x, val, test = [], [], []
        for domain in progress(used, description=f"Listing {self._name}", unit="domain"):
            images = self._list_images(domain, folders[domain])
            self._warn_of_missing_images(domain, images)
            needed_for_test = domain in self.target_domains and self.covers_domains
            train, validation = [], []
            if domain in self.source_domains or needed_for_test:
                train, validation = self._split(domain, images, cfg)
            if domain in self.source_domains:
                shots = cfg.DATASET.NUM_SHOTS
                train_x += self._few_shots(self._data(domain, train), shots, cfg.SEED)
                # CoOp chooses the epoch of a few-shot run on at most 4 images of each class.
                val += self._few_shots(self._data(domain, validation), min(shots, 4), cfg.SEED)
            if needed_for_test:
                test += self._data(domain, dict.fromkeys([*train, *validation]))
            elif domain in self.target_domains:
                test += self._data(domain, (Image(folder, name) for folder in images for name in images[folder]))
        if cfg.VERBOSE:
            self._report_unused(root)
        if getattr(cfg.DATASET, "SKIP_UNREADABLE", False):
            named = zip(("train", "val", "test"), (train_x, val, test), strict=True)
            train_x, val, test = (keep_readable(items, f"{self._name}, {split}") for split, items in named)
        train_x, val, test = (self._subsampled(items, subset) for items in (train_x, val, test))
        self._check_not_empty(train_x, val, test)
        self._class_names = [self._class_names[label] for label in subset]
        untrained = sorted({item.label for item in test} - {item.label for item in train_x})
        if untrained:
            warn(
                f"no source domain of {self._name} has training images of "
                f"{some(self._class_names[label] for label in untrained)}, but the target domains are tested on them."
            )
        super().__init__(train_x=train_x, val=val, test=test)

    @property
    def num_classes(self) -> int:
        """Number of classes, whether all of them have training images or not."""
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
        """The code of a domain that is given by its full name."""
        return self.codes[self.domains.index(domain)]

    @property
    def _name(self):
        return type(self).__name__

    @property
    def covers_domains(self) -> bool:
        """Whether a domain has the same images as a source (train and val split) and as a target."""
        return self.splits_cover_all or self.test_subset == "published"

    # --- folders ---

    def _check_domain_folders(self, used, location):
        missing = [domain for domain in used if domain not in location.domain_dirs]
        if missing:
            found = some(sorted(path.name for path in location.domain_dirs.values()))
            raise UserError(
                f"{self._name}: {location.images_dir} has no folder for {', '.join(missing)}. Found: "
                f"{found}. Looked for: {self.layout}. Extract the set again, or leave what is missing out of "
                "DATASET.SOURCE_DOMAINS and TARGET_DOMAINS."
            )

    def _check_classes(self, folders, used):
        """Class names in the order of their labels; complains if folders are missing or unknown."""
        found = {domain: {folder.classname for folder in listed} for domain, listed in folders.items()}
        mend = "Extract the set again, or move away what does not belong there."
        classes = self.classes or sorted(set().union(*found.values()))
        if not self.classes and self.n_classes not in (None, len(classes)):
            numbers = ", ".join(f"{domain} {len(there)}" for domain, there in found.items())
            once = [name for name in classes if sum(name in there for there in found.values()) == 1]
            raise UserError(
                f"{self._name} has {self.n_classes} classes, but in {self.dataset_dir} there are folders for "
                f"{len(classes)} ({numbers}). In one domain only: {some(once)}. {mend}"
            )
        for domain in used:
            missing = sorted(set(classes) - found[domain])
            unknown = sorted(found[domain] - set(classes))
            if missing and not self.classes and self.n_classes is None:
                there = some(other for other in found if missing[0] in found[other])
                mend = (
                    f"{missing[0]} is there in {there}: rename it if it is misspelled, move it away if it is no class; "
                    f"if {domain} really has no such images, say so by an empty folder: "
                    f"mkdir {shlex.quote(str(self._domain_dirs[domain] / missing[0]))}"
                )
            if unknown or (missing and not self.absent_classes):
                raise UserError(
                    f"{self._name}: the class folders of {domain} in {self._domain_dirs[domain]} are not "
                    f"those of the set. Missing: {some(missing)}. Unknown: {some(unknown)}. {mend}"
                )
        return list(classes)

    def _list_images(self, domain: str, folders: list[ClassFolder]) -> dict[ClassFolder, list[str]]:
        """From the class folders of one domain to the images in them; what is not used is noted."""
        domain_dir = self._domain_dirs[domain]
        index_file = Path(self.dataset_dir) / SPLIT_FOLDER / f"{self.code(domain)}_index.json"
        images, unused = list_images(domain_dir, folders, index_file)
        collect(unused, beside_classes(domain_dir, self.layout.parts))
        self.unused[domain] = unused
        for folder in images:
            if any(path.startswith(f"{domain}/{folder.classname}/") for path in self.skipped):
                wrong = [name for name in images[folder] if self._is_skipped(domain, folder, name)]
                images[folder] = [name for name in images[folder] if name not in wrong]
                if wrong:
                    collect(unused, {KNOWN_TO_BE_WRONG: wrong}, f"{folder.path}/")
        if not any(images.values()):
            raise UserError(
                f"{self._name}: the class folders of {domain} in {domain_dir} hold no images: "
                f"{some(folder.path for folder in folders)}. Looked for: {self.layout}. Extract the set "
                "again, or leave this domain out of DATASET.SOURCE_DOMAINS and TARGET_DOMAINS."
            )
        return images

    def _is_skipped(self, domain, folder, name):
        return f"{domain}/{folder.classname}/{name}" in self.skipped

    def _report_unused(self, root: Path) -> None:
        found = [(domain or "the set's own folder", describe(unused)) for domain, unused in self.unused.items()]
        told = "; ".join(f"{place}: {what}" for place, what in found if what)
        if told:
            folder = f"--root {shlex.quote(str(root))}" if self.image_counts else shlex.quote(str(root))
            warn(f"not used of {self._name} in {self.dataset_dir}: {told}. Which: python scripts/datasets.py {folder}")

    def _warn_of_missing_images(self, domain, images):
        there = {folder.classname for folder, listed in images.items() if listed}
        empty = [classname for classname in self._class_names if classname not in there]
        if empty:
            warn(f"{domain} of {self._name} in {self.dataset_dir} has no images of: {some(empty)}.")
        count = sum(map(len, images.values()))
        skipped = sum(path.startswith(f"{domain}/") for path in self.skipped)
        known = self.image_counts.get(domain, count + skipped) - skipped
        if count != known:
            warn(f"{domain} of {self._name} in {self.dataset_dir} has {count:,} images; the full set has {known:,}.")

    def _check_not_empty(self, train_x, val, test):
        for data, key in ((train_x, "SOURCE"), (test, "TARGET")):
            if not data:
                raise UserError(
                    f"{self._name}: no images are left for DATASET.{key}_DOMAINS by the split files "
                    f"{', '.join(self.split_files.values())}. Move them away to get new splits."
                )
        if not val:
            warn(
                f"the source domains of {self._name} ({some(self.source_domains)}) are too small to validate on, so no "
                "epoch can be chosen by that: set TEST.FINAL_MODEL last_step."
            )

    # --- splits ---

    def _split(self, domain, images, cfg):
        """The train and val splits of one domain: from its split file, which is written if there is none."""
        file_name = f"{self.code(domain)}_train_val_split.json"
        path = Path(self.dataset_dir) / SPLIT_FOLDER / file_name
        if not path.is_file():
            path = self._split_of_seed(path, cfg.SEED)
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
                f"Cannot write the split file {path}: {error.strerror}. Split files are kept beside the images, or in "
                "OUTPUT_DIR if the data root is read-only: make room there, or set another OUTPUT_DIR."
            ) from error
        if cfg.VERBOSE:
            print(f"{self._name}: split of {domain} (train {len(train):,}, val {len(val):,}) written to {path}")
        return train, val

    def _split_of_seed(self, path: Path, seed: int) -> Path:
        """The split file in the seed's own folder, where there are such, as in the authors' older files; else `path`.

        Raises:
            UserError: there are, but none of this seed.
        """
        seeds = sorted(found.parent.name for found in path.parent.glob(f"*/{path.name}") if found.parent.name.isdigit())
        if not seeds:
            return path
        if str(seed) not in seeds:
            raise UserError(
                f"{path.parent} has splits of seed {', '.join(seeds)}, but none of {seed}: pass --seed {seeds[0]}, or "
                f"take one for all seeds: cp {shlex.quote(str(path.parent / seeds[0]))}/*.json "
                f"{shlex.quote(str(path.parent))}/"
            )
        return path.parent / str(seed) / path.name

    def _read_split(self, path, domain, images):
        train, val = self._matched(path, domain, images)
        if both := set(train) & set(val):
            warn(f"the split file {path} lists {len(both):,} images for both train and val.")
        unlisted = sum(map(len, images.values())) - len({*train, *val})
        if unlisted and self.splits_cover_all:
            warn(
                f"{unlisted:,} images of {domain} in {self._domain_dirs[domain]} are not in the split file {path} and "
                "are not used. If it is of another version of the set, move it away to get a new split."
            )
        return train, val

    def _matched(
        self, path: Path, domain: str, images: dict[ClassFolder, list[str]]
    ) -> tuple[list[Image], list[Image]]:
        """The images of a domain that a split file lists for training and for validation."""
        domain_dir = self._domain_dirs[domain]
        aliases = self._domain_aliases()
        parts = {part for layout in self.layouts for part in layout.parts if part}
        listed = [
            [entry for entry in entries if f"{domain}/{entry.class_folder}/{entry.name}" not in self.skipped]
            for entries in read_split(path, parts)
        ]
        train, val = match_split(
            path,
            listed,
            images,
            is_domain=lambda name: names.find_domain(name, self.domains, aliases=aliases) == domain,
            class_name=self.class_name,
            parts=parts,
            start=self._start_of_rows(domain),
            place=f"{domain} ({domain_dir})",
        )
        return train, val

    def _rows(self, domain, images):
        """[impath, label, domain_index, classname] of each image, as in split files."""
        start, index = self._start_of_rows(domain), self.domains.index(domain)
        return [
            [f"{start}/{folder.path}/{name}", self._labels[folder.classname], index, folder.classname]
            for folder, name in images
        ]

    def _start_of_rows(self, domain: str) -> str:
        return os.path.relpath(self._domain_dirs[domain], Path(self.dataset_dir).parent).replace(os.sep, "/")

    # --- images ---

    def _subset(self, subset: str) -> range:
        """The labels of all classes, of the first half, "base", or of the others, "new" (CoOp).

        Raises:
            UserError: it is another subset, or leaves no choice.
        """
        if subset not in CLASS_SUBSETS:
            raise UserError(f"DATASET.SUBSAMPLE_CLASSES is {subset!r}. Accepted: {', '.join(CLASS_SUBSETS)}.")
        n = len(self._class_names)
        half = math.ceil(n / 2)
        labels = {"all": range(n), "base": range(half), "new": range(half, n)}[subset]
        if len(labels) < 2:
            left = some(repr(self._class_names[label]) for label in labels)
            by_key = f", and DATASET.SUBSAMPLE_CLASSES {subset} leaves {left}" if subset != "all" else f", {left}"
            mend = ", or leave DATASET.SUBSAMPLE_CLASSES out" if subset != "all" else ""
            raise UserError(
                f"{self._name} in {self.dataset_dir}: it has {n} class{'es' * (n > 1)}{by_key}. A classifier chooses "
                f"between two classes or more: add class folders{mend}."
            )
        return labels

    @staticmethod
    def _subsampled(items: list[Datum], labels: range) -> list[Datum]:
        """The images of these labels, with labels from 0."""
        if labels.start == 0:
            return [item for item in items if item.label in labels]
        return [
            Datum(item.impath, item.label - labels.start, item.domain, item.classname)
            for item in items
            if item.label in labels
        ]

    def _data(self, domain, images):
        start, index = str(self._domain_dirs[domain]), self.domains.index(domain)
        return [
            Datum(
                f"{start}{os.sep}{folder.path}/{name}",
                self._labels[folder.classname],
                index,
                folder.classname,
            )
            for folder, name in images
        ]

    def _few_shots(self, data, num_shots, seed):
        """``num_shots`` images of each class of one domain, drawn as CoOp does; all if ``num_shots`` < 1.

        Drawn by SEED for one domain at a time, without touching the global random state: a domain gives the
        same shots whatever the other domains are, so that prompt labels and CGAN see the same images.
        SEED < 0: not seeded.
        """
        if num_shots < 1:
            return data
        state = random.getstate()
        try:
            if seed >= 0:
                random.seed(seed)
            return self.generate_fewshot_dataset(data, num_shots=num_shots)
        finally:
            if seed >= 0:
                random.setstate(state)
