"""Download a published set, and put it into place when all of it is there."""

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from common.errors import UserError, warn
from common.files import SPLIT_FOLDER, is_writable
from common.locks import file_lock
from datasets.benchmarks import SPG_TerraIncognita
from datasets.download.archives import BadArchive, extract, select_camera_traps
from datasets.download.fetch import fetch
from datasets.download.sources import Archive, Source, find_source, locate_set
from datasets.image_files import class_folders, images_below, list_folders
from datasets.layouts import Location

WORK_FOLDER = ".download"  # in the data root, for archives and their content


def download_command(dataset_name: str, root: str | Path) -> str:
    return f"python scripts/download.py {dataset_name} --root {shlex.quote(str(root))}"


def offer_download(dataset_name: str, root: str | Path) -> bool:
    """Ask on a terminal whether to download a missing set; return whether the set is there now."""
    try:
        source = find_source(dataset_name)
    except UserError:
        return False
    _, missing = locate_set(source, root)
    if not missing or not sys.stdin.isatty():
        return not missing
    sizes = [archive.about for archive in source.archives]
    size = f" ({tqdm.format_sizeof(sum(size or 0 for size in sizes), 'B')})" if all(sizes) else ""
    try:
        answer = input(f"{root} has no {', '.join(missing)} of {source.title}. Download it{size} now? [y/N] ")
    except EOFError:
        return False
    if answer.strip().lower() not in ("y", "yes"):
        return False
    get(source, root)
    return True


def get(
    source: Source, root: str | Path, mirror: str = "", archives: Iterable[str | Path] = (), any_counts: bool = False
) -> None:
    """Download a set, unless it is below `root`; a second call resumes an interrupted one.

    Archives go to `<root>/.download/`, are extracted there, counted and renamed into place, DomainNet one domain after
    the other.

    Args:
        mirror: a folder, or the address of one, with archives by their names.
        archives: files of the user.
        any_counts: accept too few images.
    """
    root = Path(os.path.abspath(os.path.expanduser(root)))
    location, missing = locate_set(source, root)
    if location and not missing:
        n_known = sum(source.dataset.image_counts.values())
        print(f"{source.title} is already there: {_summary(source, location)}; the full set has {n_known:,}.")
        return
    by_domain = all(archive.domain for archive in source.archives)
    if not by_domain or not location:
        _check_nothing_there(source, root)
    download = _Download(source, root, root / WORK_FOLDER, mirror, _match_archives(source, archives), any_counts)
    with _work_folder(source, root):
        print(f"{source.title} goes to {root}. For its terms of use and citation see docs/datasets.md.")
        if by_domain:
            for archive in source.archives:
                if archive.domain in missing:
                    download.install([archive], [archive.domain])
        else:
            download.install(source.archives, source.dataset.domains)
    location, _ = locate_set(source, root)
    assert location is not None
    print(f"{source.title} is there: {_summary(source, location)}.")


def _check_nothing_there(source: Source, root: Path) -> None:
    own = {layout.folder.lower() for layout in source.dataset.layouts}
    for name in list_folders(root) if root.is_dir() else []:
        if name.lower() in own and list_folders(root / name):
            raise UserError(f"{root / name} is no complete {source.title}. Move it away, and run this again.")


def _match_archives(source: Source, archives: Iterable[str | Path]) -> dict[str, Path]:
    names = [archive.name for archive in source.archives]
    own: dict[str, Path] = {}
    for path in map(Path, archives):
        if not path.is_file():
            raise UserError(f"--archive: there is no file {path}.")
        name = names[0] if len(names) == 1 else path.name
        if name not in names or name in own:
            raise UserError(f"--archive {path}: {source.title} has the archives {', '.join(names)}; name each once.")
        own[name] = path
    return own


@contextlib.contextmanager
def _work_folder(source: Source, root: Path) -> Iterator[None]:
    work = root / WORK_FOLDER
    if root.is_file() or not (is_writable(root) and is_writable(work)):
        raise UserError(f"--root {root}: it is a file or read-only. Name another folder for the data sets.")
    lock_file = work / f"{source.title}.lock"
    with file_lock(lock_file, f"downloads {source.title}", seconds=2):
        try:
            yield
        finally:
            shutil.rmtree(work / source.title, ignore_errors=True)
            with contextlib.suppress(OSError):
                lock_file.unlink()
                work.rmdir()  # unless an archive is there


@dataclass(frozen=True)
class _Download:
    source: Source
    root: Path
    work: Path
    mirror: str
    own: dict[str, Path]  # files of the user by the name of their archive
    any_counts: bool

    def install(self, archives: Sequence[Archive], domains: Sequence[str]) -> None:
        """Download and extract archives, and rename the set or one domain of it into place."""
        dataset = self.source.dataset
        files = [self.obtain(archive) for archive in archives]
        location = self.extract(files, domains)
        _check_counts(self.source, location, domains, self.any_counts, files)
        if len(domains) == len(dataset.domains):
            place = self.root / location.layout.folder
            if (place / SPLIT_FOLDER).is_dir() and not (location.folder / SPLIT_FOLDER).exists():
                _move(place / SPLIT_FOLDER, location.folder / SPLIT_FOLDER)
            with contextlib.suppress(OSError):
                place.rmdir()
            _move(location.folder, place)
        else:
            there, _ = locate_set(self.source, self.root)
            place = there.images_dir if there else self.root / dataset.layouts[0].folder
            place.mkdir(exist_ok=True)
            _move(location.domain_dirs[domains[0]], place / domains[0])
        for file in files:
            if file.parent == self.work:
                file.unlink()

    def obtain(self, archive: Archive) -> Path:
        """The file of an archive: of the user, of a mirror, or downloaded."""
        if archive.name in self.own:
            return self.own[archive.name]
        if self.mirror and not self.mirror.lower().startswith(("http://", "https://")):
            file = Path(self.mirror) / archive.name
            if not file.is_file():
                raise UserError(f"--mirror {self.mirror}: it is no http(s) address, and no folder with {archive.name}.")
            return file
        file = self.work / archive.name
        url = f"{self.mirror.rstrip('/')}/{archive.name}" if self.mirror else archive.url
        if not file.is_file():
            size = f" ({tqdm.format_sizeof(archive.about, 'B')})" if archive.about else ""
            print(f"{self.source.title}: downloading {archive.name}{size} from {url}", flush=True)
        by_hand = f"Or open {archive.url} in a browser, save the file as {file}, and try again."
        fetch(url, file, archive.known_hash, by_hand)
        return file

    def extract(self, files: Sequence[Path], domains: Sequence[str]) -> Location:
        """Extract archives in the work folder, and find the set there, in any layout, perhaps under another name."""
        scratch = self.work / self.source.title
        shutil.rmtree(scratch, ignore_errors=True)
        # An archive may hold a single domain without the set's own folder.
        folder, file, places = scratch / self.source.dataset.layouts[0].folder, files[-1], None
        try:
            if self.source.dataset is SPG_TerraIncognita:
                file = files[0]
                extract(file, scratch / ".annotations")
                places = select_camera_traps(scratch / ".annotations", file)
                file = files[1]
            extract(file, folder, places)
        except BadArchive as error:
            fix = "Get it again from its source."
            if file.parent == self.work:
                file.unlink()
                fix = "It was deleted: run the same command again to download it."
            raise UserError(f"{error} {fix}") from error
        for place in (folder, *(folder / name for name in list_folders(folder))):
            location, missing = locate_set(self.source, place)
            if location and not set(domains) & set(missing):
                return location
        domain_names = ", ".join(domains)
        raise UserError(f"{file}: it lacks domains of {self.source.title} ({domain_names}). Delete it and try again.")


def _move(folder: Path, place: Path) -> None:
    try:
        os.rename(folder, place)
    except OSError as error:
        raise UserError(f"Cannot move {folder} to {place}: {error.strerror}. Move that file or folder.") from error


def _count_images(source: Source, location: Location, domain: str) -> int:
    folder = location.domain_dirs[domain]
    folders = class_folders(folder, location.layout.parts, source.dataset.class_name)
    return sum(len(images_below(folder / inside.path)) for inside in folders)


def _check_counts(
    source: Source, location: Location, domains: Sequence[str], any_counts: bool, files: Sequence[Path]
) -> None:
    """Warn of domains with fewer images than the full set, or raise UserError."""
    fewer = []
    for domain in domains:
        known, found = source.dataset.image_counts[domain], _count_images(source, location, domain)
        # An image that is known to be wrong may have been removed.
        if found < known - sum(path.startswith(f"{domain}/") for path in source.dataset.skipped):
            fewer.append(f"{domain} {found:,} of {known:,}")
    message = f"{source.title} in {location.folder} has fewer images than the full set: {', '.join(fewer)}."
    if fewer and not any_counts:
        raise UserError(
            f"{message} To install it all the same, run the same command with --any-counts; to download it again, "
            f"delete {', '.join(map(str, files))}."
        )
    if fewer:
        warn(message)


def _summary(source: Source, location: Location) -> str:
    n_images = sum(_count_images(source, location, domain) for domain in source.dataset.domains)
    return f"{n_images:,} images in {location.images_dir} ({location.layout.name} layout)"
