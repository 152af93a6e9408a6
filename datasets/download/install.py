"""Download a published set, and put it into place when all of it is there."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from common.errors import UserError, warn
from common.files import is_writable, size_text
from common.locks import file_lock
from datasets.benchmarks import SPG_TerraIncognita
from datasets.contents import SPLIT_FOLDER, class_folders, list_folders, list_images
from datasets.download.archives import BadArchive, extract
from datasets.download.camera_traps import select_images
from datasets.download.fetch import fetch
from datasets.download.sources import Archive, Source, locate_set
from datasets.layouts import Location

WORK_FOLDER = ".download"  # in the data root, for archives and their content


def get(
    source: Source,
    root: str | Path,
    mirror: str = "",
    archives: Iterable[str | Path] = (),
    any_counts: bool = False,
) -> None:
    """Download a set, unless it is below `root`.

    Archives go to `<root>/.download/`, are extracted there, counted and renamed into place, DomainNet one domain after
    the other. A second call resumes an interrupted one. `archives` are files of the user, `mirror` is a folder or the
    address of one with archives by their names, and `any_counts` accepts too few images.
    """
    root = Path(os.path.abspath(os.path.expanduser(root)))
    location, missing = locate_set(source, root)
    if location and not missing:
        print(f"{source.title} is already there: {_summary(source, location)}.")
        _check_counts(source, location, source.dataset.domains, any_counts=True)
        return
    by_domain = all(archive.domain for archive in source.archives)
    if not by_domain or not location:
        _check_nothing_there(source, root)
    own = _match_archives(source, archives)
    with _work_folder(source, root) as work:
        print(f"{source.title} goes to {root}. For its terms of use and citation see DATASETS.md.")
        if by_domain:
            for archive in source.archives:
                if archive.domain in missing:
                    _install(source, [archive], [archive.domain], root, work, mirror, own, any_counts)
        else:
            _install(source, source.archives, source.dataset.domains, root, work, mirror, own, any_counts)
    location, _ = locate_set(source, root)
    assert location is not None
    print(f"{source.title} is there: {_summary(source, location)}.")


def _check_nothing_there(source: Source, root: Path) -> None:
    """Raise UserError if files of the user would be overwritten; split files may be there first."""
    own = {layout.folder.lower() for layout in source.dataset.layouts}
    for name in list_folders(root) if root.is_dir() else []:
        if name.lower() in own and list_folders(root / name):
            raise UserError(
                f"{root / name} is there, but is no complete {source.title} (layouts: DATASETS.md): half-extracted? "
                "Move it away, and run this again."
            )


def _match_archives(source: Source, archives: Iterable[str | Path]) -> dict[str, Path]:
    """Files of the user, by the name of their archive."""
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
def _work_folder(source: Source, root: Path) -> Iterator[Path]:
    """`<root>/.download`, for one process and set at a time; removed when it is empty."""
    work = root / WORK_FOLDER
    if root.exists() and not root.is_dir():
        raise UserError(f"--root {root} is a file. Name the folder for the data sets.")
    if not (is_writable(root) and is_writable(work)):
        raise UserError(f"Cannot write to {root}: it is read-only. Name another folder for the data sets (--root).")
    lock_file = work / f"{source.title}.lock"
    with file_lock(lock_file, f"downloads {source.title}", seconds=2):
        try:
            yield work
        finally:
            shutil.rmtree(work / source.title, ignore_errors=True)
            with contextlib.suppress(OSError):
                lock_file.unlink()
                work.rmdir()  # unless an archive is there


def _install(
    source: Source,
    archives: Sequence[Archive],
    domains: Sequence[str],
    root: Path,
    work: Path,
    mirror: str,
    own: dict[str, Path],
    any_counts: bool,
) -> None:
    """Download and extract archives, and rename the set or one domain of it into place."""
    files = [_obtain(source, archive, work, mirror, own) for archive in archives]
    scratch = work / source.title
    shutil.rmtree(scratch, ignore_errors=True)
    _extract(source, files, scratch, work)
    location = _find_extracted(source, scratch, files[-1], domains)
    _check_counts(source, location, domains, any_counts, files)
    there, _ = locate_set(source, root)
    if len(domains) == len(source.dataset.domains):
        place = root / location.layout.folder
        if (place / SPLIT_FOLDER).is_dir() and not (location.folder / SPLIT_FOLDER).exists():
            _move(place / SPLIT_FOLDER, location.folder / SPLIT_FOLDER)
        with contextlib.suppress(OSError):
            place.rmdir()
        _move(location.folder, place)
    else:
        place = there.images_dir if there else root / source.dataset.layouts[0].folder
        place.mkdir(exist_ok=True)
        _move(location.domain_dirs[domains[0]], place / domains[0])
    for file in files:
        if file.parent == work:
            file.unlink()


def _obtain(source: Source, archive: Archive, work: Path, mirror: str, own: dict[str, Path]) -> Path:
    """The file of an archive: of the user, of a mirror, or downloaded."""
    if archive.name in own:
        return own[archive.name]
    is_address = mirror.lower().startswith(("http://", "https://"))
    if mirror and not is_address:
        file = Path(mirror) / archive.name
        if not file.is_file():
            raise UserError(f"--mirror {mirror} is neither an http(s) address nor a folder that has {archive.name}.")
        return file
    file, url = work / archive.name, f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
    if not file.is_file():
        size = f" ({size_text(archive.about)})" if archive.about else ""
        print(f"{source.title}: downloading {archive.name}{size} from {url}", flush=True)
    fetch(url, file, archive.known_hash, f"Or open {archive.url} in a browser, save the file as {file}, and try again.")
    return file


def _extract(source: Source, files: Sequence[Path], scratch: Path, work: Path) -> None:
    """Extract archives into `scratch/<folder of the set>`, since a folder of that name may hold a single domain."""
    folder, file, places = scratch / source.dataset.layouts[0].folder, files[-1], None
    try:
        if source.dataset is SPG_TerraIncognita:
            file = files[0]
            extract(file, scratch / ".annotations")
            places = select_images(scratch / ".annotations", file)
            file = files[1]
        extract(file, folder, places)
    except BadArchive as error:
        if file.parent != work:
            raise UserError(f"{error} Get it again from where it came.") from error
        file.unlink()
        raise UserError(f"{error} It was deleted: run the same command again to download it anew.") from error


def _find_extracted(source: Source, scratch: Path, file: Path, domains: Sequence[str]) -> Location:
    """Find the set that was extracted, in any layout, perhaps under another name."""
    folder = scratch / source.dataset.layouts[0].folder
    for place in (folder, *(folder / name for name in list_folders(folder))):
        location, missing = locate_set(source, place)
        if location and not set(domains) & set(missing):
            return location
    raise UserError(
        f"{file} is no archive of {source.title}: it should hold the domains {', '.join(domains)}. Delete it to "
        "download it again."
    )


def _move(folder: Path, place: Path) -> None:
    try:
        os.rename(folder, place)
    except OSError as error:
        raise UserError(f"Cannot move {folder} to {place}: {error.strerror}. Move away what is there.") from error


def _count_images(source: Source, location: Location, domain: str) -> int:
    folder = location.domain_dirs[domain]
    folders = class_folders(folder, location.layout.parts, source.dataset.class_name)
    return sum(map(len, list_images(folder, folders).values()))


def _check_counts(
    source: Source, location: Location, domains: Sequence[str], any_counts: bool, files: Sequence[Path] = ()
) -> None:
    """Compare the numbers of images with the known ones: warn, or raise UserError if there are too few."""
    dataset = source.dataset
    differing, too_few = [], False
    for domain in domains:
        known, found = dataset.image_counts[domain], _count_images(source, location, domain)
        # An image that is known to be wrong may have been removed.
        n_skipped = sum(path.startswith(f"{domain}/") for path in dataset.skipped)
        if not known - n_skipped <= found <= known:
            differing.append(f"{domain} {found:,} of {known:,}")
            too_few |= found < known  # more images, such as duplicates, are no sign of a broken archive
    if not differing:
        return
    message = f"{source.title} in {location.folder} has other image counts than the full set: {', '.join(differing)}."
    if any_counts or not too_few:
        warn(message)
        return
    raise UserError(
        f"{message} It was not put into place. To use it all the same, run the same command with --any-counts; to "
        f"download it anew, delete {', '.join(map(str, files))}."
    )


def _summary(source: Source, location: Location) -> str:
    n_images = sum(_count_images(source, location, domain) for domain in source.dataset.domains)
    return f"{n_images:,} images in {location.images_dir} ({location.layout.name} layout)"
