"""What is there of a data set: its images by domain and class, damaged ones, copies. Looks only, writes nothing."""

import hashlib
import io
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from dassl.utils import read_image
from PIL import Image

from common.errors import UserError, some
from common.progress import progress
from common.threads import usable_cores
from datasets.base import DomainGeneralizationDataset
from datasets.contents import Unused, collect
from datasets.layouts import Location
from datasets.listing import beside_classes, class_folders, list_images

_FILES_AT_A_TIME = 32  # that a process is given


@dataclass
class Survey:
    """A set that was found.

    Args:
        name: what the user calls it.
        dataset: its class.
        location: where it is.
        domains: all domains of the set, whether they are there or not.
        classes: class names of the set, or those that the folders show.
        images: of each domain that is there and each class, the paths of the images, relative to
            ``location.images_dir``; a class without images in a domain may be missing.
        notes: what is not as it should be.
        unused: of each domain that is there what is not used, as paths by reason; "": of what lies beside the domains.
        unreadable: from path to what is wrong with the file; None: not examined.
        duplicates: paths of files with the same content, groups across domains first.
    """

    name: str
    dataset: type[DomainGeneralizationDataset]
    location: Location
    domains: list[str]
    classes: list[str]
    images: dict[str, dict[str, list[str]]]
    notes: list[str]
    unused: dict[str, Unused]
    unreadable: dict[str, str] | None = None
    duplicates: list[list[str]] = field(default_factory=list)

    def paths(self) -> Iterator[str]:
        """The paths of all images."""
        return chain.from_iterable(chain.from_iterable(by_class.values()) for by_class in self.images.values())

    def count(self, domain: str, classname: str | None = None) -> int:
        """Number of images of a domain, or of a class in it."""
        by_class = self.images.get(domain, {})
        return sum(map(len, by_class.values())) if classname is None else len(by_class.get(classname, ()))

    def classes_of(self, *domains: str) -> int:
        """Number of the set's classes that have images in one of these domains."""
        return sum(any(self.count(domain, name) for domain in domains) for name in self.classes)

    def known(self, domain: str) -> int | None:
        """Number of images of a domain in the full set, or None."""
        return self.dataset.image_counts.get(domain)

    def domains_of(self, paths: Iterable[str]) -> list[str]:
        """The domain of each of some images."""
        domains = {folder.name: domain for domain, folder in self.location.domain_dirs.items()}
        return [domains[path.split("/", 1)[0]] for path in paths]


def look(name: str, dataset: type[DomainGeneralizationDataset], root: Path) -> Survey:
    """List a set, however incomplete.

    Args:
        name: what the user calls it.
        dataset: its class.
        root: data root.

    Returns:
        what is there; files not yet examined.

    Raises:
        SetNotFound: it is not there.
        UserError: its folders contradict each other, or cannot be read.
    """
    location, domains = dataset.locate(root), dataset.list_domains(root)
    images: dict[str, dict[str, list[str]]] = {}
    notes: list[str] = []
    unused: dict[str, Unused] = {"": location.beside_domains()}
    for domain in domains:
        if domain not in location.domain_dirs:
            notes.append(f"{domain}: there is no folder of this domain. Half-extracted?")
            continue
        images[domain] = defaultdict(list)
        folder, unused[domain] = location.domain_dirs[domain], {}
        for part in location.layout.parts:
            try:
                listed = list_images(folder, class_folders(folder, (part,), dataset.class_name))
            except UserError as error:
                notes.append(f"{domain}: {error}")
                continue
            collect(unused[domain], listed.unused, f"{folder.name}/")
            for class_folder, names in listed.images.items():
                start = f"{folder.name}/{class_folder.path}"
                images[domain][class_folder.classname] += [f"{start}/{file_name}" for file_name in names]
        collect(unused[domain], beside_classes(folder, location.layout.parts), f"{folder.name}/")
    shown = sorted(set().union(*images.values()))
    classes = dataset.classes or shown
    survey = Survey(name, dataset, location, domains, list(classes), images, notes, unused)
    notes += _notes_on_classes(survey, shown)
    return survey


def _notes_on_classes(survey, shown):
    n_classes = survey.dataset.n_classes
    if n_classes not in (None, len(shown)):
        once = [name for name in shown if sum(name in there for there in survey.images.values()) == 1]
        yield f"there are folders for {len(shown)} classes, not {n_classes}. In one domain only: {some(once)}."
    if len(survey.classes) < 2:
        yield f"there is no choice between classes, only {some(survey.classes)}: a run needs two or more."
    for domain, there in survey.images.items():
        unknown = sorted(set(there) - set(survey.classes))
        if unknown:
            yield f"{domain}: these folders are no classes of the set: {some(unknown)}."
        missing = [name for name in survey.classes if name not in there]
        if missing:
            yield f"{domain}: no folder for {some(missing)}."
        empty = [name for name in survey.classes if name in there and not there[name]]
        if empty:
            yield f"{domain}: no images of {some(empty)}."


def examine(survey: Survey, decode: bool = True) -> None:
    """Find the files that cannot be decoded, and those with the same content, in several processes.

    Args:
        survey: its ``unreadable`` and ``duplicates`` are set.
        decode: decode each image; otherwise only files of the same size are read.

    Raises:
        UserError: a process was killed.
    """
    paths, base = list(survey.paths()), survey.location.images_dir
    sizes = [_size(base / path) for path in paths]
    several = {size for size, n in Counter(sizes).items() if size and n > 1}
    jobs = [(path, size in several) for path, size in zip(paths, sizes, strict=True) if decode or size in several]
    unreadable, same = {}, defaultdict(list)
    tasks = ((os.path.join(base, path), decode, hashed) for path, hashed in jobs)
    try:
        # Before the bar, which has a thread: processes are best forked from one that has none.
        with ProcessPoolExecutor(usable_cores(), initializer=warnings.simplefilter, initargs=("ignore",)) as pool:
            found = pool.map(_examine, tasks, chunksize=_FILES_AT_A_TIME)
            found = progress(found, total=len(jobs), description=f"Examining {survey.name}", unit="file")
            for (path, _), (reason, digest) in zip(jobs, found, strict=True):
                if reason:
                    unreadable[path] = reason
                elif digest:
                    same[digest].append(path)
    except BrokenProcessPool as error:
        raise UserError(
            f"A process that examined the images of {survey.name} was killed, perhaps for want of memory. Close other "
            "programs, or leave decoding out with --fast."
        ) from error
    survey.unreadable = unreadable if decode else None
    groups = [sorted(group) for group in same.values() if len(group) > 1]
    survey.duplicates = sorted(groups, key=lambda group: (-len(set(survey.domains_of(group))), group))


def _size(path):
    try:
        return os.stat(path).st_size
    except OSError:
        return None  # it is gone meanwhile, which reading it tells


def _examine(task):
    """What is wrong with a file ("" for nothing), and the sha256 of its content if that is wanted (else b"")."""
    path, decode, hashed = task
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        return error.strerror or str(error), b""
    reason = (why_unreadable(content) or why_refused(path)) if decode else ""
    return reason, hashlib.sha256(content).digest() if hashed else b""


def why_unreadable(content: bytes) -> str:
    """What is wrong with the content of an image file, "" if it can be decoded whole."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.verify()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except Image.DecompressionBombError:
        limit = Image.MAX_IMAGE_PIXELS or 0  # no limit, no such error
        return f"larger than the {2 * limit:,} pixels that Pillow decodes: scale it down"
    except Image.UnidentifiedImageError:
        return "no image that Pillow knows" if content else "empty"
    except Exception as error:  # PIL's readers raise OSError, SyntaxError, ValueError, struct.error ...
        return f"{error}" or type(error).__name__
    return ""


def why_refused(path: str) -> str:
    """Why training does not take an image that can be decoded, "" if it does: nothing may say what of it is white."""
    with Image.open(path) as image:
        if image.mode not in ("I", "F"):
            return ""
    try:
        read_image(path)
    except Exception as error:  # of whichever Dassl
        return str(error).removeprefix(f"Cannot read the image {path}: ")
    return ""
