"""Where the published sets can be downloaded, and how they come from their archives into a layout of theirs."""

import contextlib
import difflib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, warn
from common.files import is_writable, size_text
from common.locks import InUse, file_lock
from datasets.base import DomainGeneralizationDataset
from datasets.download.archives import DamagedArchive, extract
from datasets.download.camera_traps import select_images
from datasets.download.fetch import check_file, fetch
from datasets.layouts import SPLIT_FOLDER, Location, list_folders
from datasets.listing import class_folders, list_images
from datasets.spg_domainnet import SPG_DomainNet
from datasets.spg_officehome import SPG_OfficeHome
from datasets.spg_pacs import SPG_PACS
from datasets.spg_terraincognita import SPG_TerraIncognita
from datasets.spg_vlcs import SPG_VLCS

WORK_FOLDER = ".download"  # in the data root: archives until they are extracted, and what is being extracted


@dataclass(frozen=True)
class Archive:
    """One file to download.

    Args:
        name: file name; also that on a mirror.
        url: where it is.
        about: roughly how many bytes, for messages only; None: not known.
        size: exactly how many bytes, checked; None: not known.
        known_hash: checksum as in pooch, ``"sha256:..."`` or ``"md5:..."``, checked; None: not known.
        domain: the domain that it holds, "" if it is not just one.
    """

    name: str
    url: str
    about: int | None = None
    size: int | None = None
    known_hash: str | None = None
    domain: str = ""


@dataclass(frozen=True)
class Source:
    """A set that can be downloaded: its class and its archives."""

    dataset: type[DomainGeneralizationDataset]
    archives: tuple[Archive, ...]

    @property
    def title(self) -> str:
        """The set's name for people."""
        return self.dataset.__name__.removeprefix("SPG_")

    @property
    def about(self) -> int | None:
        """Rough size of all archives in bytes, None if not known."""
        sizes = [archive.about for archive in self.archives if archive.about is not None]
        return sum(sizes) if len(sizes) == len(self.archives) else None


def _drive(file_id):
    return f"https://drive.google.com/uc?id={file_id}"


_DOMAINNET = "http://csr.bu.edu/ftp/visda/2019/multi-source/"
_CAMERA_TRAPS = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps/"
_ANNOTATIONS = "eccv_18_annotations.tar.gz"

# By the names of configs/datasets. No size or checksum of these files is known for certain, so none is given.
SOURCES = {
    "pacs": Source(SPG_PACS, (Archive("pacs.zip", _drive("1m4X4fROCCXMO0lRLrr6Zz9Vb3974NWhE"), about=174_000_000),)),
    "vlcs": Source(SPG_VLCS, (Archive("vlcs.zip", _drive("1r0WL5DDqKfSPp9E3tRENwHaXNs1olLZd")),)),
    "office_home": Source(
        SPG_OfficeHome, (Archive("office_home_dg.zip", _drive("1gkbf_KaxoBws-GWT3XIPZ7BnkqbAxIFa")),)
    ),
    "terra_incognita": Source(
        SPG_TerraIncognita,
        (
            Archive(_ANNOTATIONS, _CAMERA_TRAPS + _ANNOTATIONS, about=3_000_000),
            Archive("eccv_18_all_images_sm.tar.gz", _CAMERA_TRAPS + "eccv_18_all_images_sm.tar.gz", about=6 * 10**9),
        ),
    ),
    "domainnet": Source(
        SPG_DomainNet,
        tuple(
            Archive(f"{domain}.zip", f"{_DOMAINNET}{folder}{domain}.zip", about=about, domain=domain)
            for domain, folder, about in (
                ("clipart", "groundtruth/", 1_200_000_000),
                ("infograph", "", 4_000_000_000),
                ("painting", "groundtruth/", 3_600_000_000),
                ("quickdraw", "", 450_000_000),
                ("real", "", 5_800_000_000),
                ("sketch", "", 2_600_000_000),
            )
        ),
    ),
}


def find_source(name: str) -> Source:
    """The :class:`Source` of a set, by the name of its config or of its class.

    Raises:
        UserError: nothing can be downloaded by that name.
    """
    key = name.lower()
    for known, source in SOURCES.items():
        if key in (known, source.dataset.__name__.lower()):
            return source
    if key in ("mini_digits", "minidigits"):
        raise UserError("MiniDigits needs no download: its images are made on first use, also without a network.")
    close = difflib.get_close_matches(key, SOURCES, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UserError(f"No data set {name!r} can be downloaded. Accepted: {', '.join(SOURCES)}, all.{hint}")


def locate_set(source: Source, root: str | Path) -> tuple[Location | None, list[str]]:
    """The location of a set below ``root``, or None, and the domains that are missing from it."""
    domains = list(source.dataset.domains)
    location = None
    if Path(root).is_dir():
        with contextlib.suppress(UserError):
            location = source.dataset.locate(Path(root), verbose=False)
    return location, [domain for domain in domains if location is None or domain not in location.domain_dirs]


def get(
    source: Source,
    root: str | Path,
    mirror: str = "",
    archives: Iterable[str | Path] = (),
    any_counts: bool = False,
) -> None:
    """See to it that a set is below ``root``; does nothing if it is there.

    Archives are downloaded to ``<root>/.download/``, extracted beside them, looked at, and renamed into place,
    DomainNet one domain after the other. A run that was broken off goes on where it stopped.

    Args:
        source: which set.
        root: the data root; made if missing.
        mirror: a folder, or the address of one, that has the archives by their names, instead of their owners.
        archives: archives that are on disk already.
        any_counts: accept other numbers of images than the known ones.

    Raises:
        UserError: no network, no space, a damaged or unsafe archive, other images than expected, ...
    """
    root = Path(os.path.abspath(os.path.expanduser(root)))
    location, missing = locate_set(source, root)
    if not missing:
        print(f"{source.title} is already there: {_summary(source, location, warn)}.")
        return
    by_domain = all(archive.domain for archive in source.archives)
    if location is None:
        _check_nothing_in_the_way(source, root)
    elif not by_domain:
        raise UserError(
            f"{source.title} in {location.folder} has no folder for {', '.join(missing)}: half-extracted? Move it "
            "away, and run this again."
        )
    on_disk = _match_archives(source, archives)
    with _work_folder(source, root) as work:
        print(f"{source.title} goes to {root}. For its terms of use and citation see DATASETS.md.")
        if by_domain:
            for archive in source.archives:
                if archive.domain in missing:
                    file = _obtain(source, archive, work, mirror, on_disk)
                    _install_domain(source, archive, file, work, root, any_counts)
                    _delete_ours(file, work)
        else:
            files = [_obtain(source, archive, work, mirror, on_disk) for archive in source.archives]
            _install(source, files, work, root, any_counts)
            for file in files:
                _delete_ours(file, work)
    location, _ = locate_set(source, root)
    print(f"{source.title} is there: {_summary(source, location)}.")


# --- before the download ---


def _check_nothing_in_the_way(source, root):
    """Nothing of the user's is ever overwritten."""
    own = {layout.folder.lower() for layout in source.dataset.layouts}
    present = list_folders(root) if root.is_dir() else []
    for name in present:
        # Split files may have been put there first.
        if name.lower() in own and list_folders(root / name):
            raise UserError(
                f"{root / name} is there, but is no layout of {source.title} (accepted ones: DATASETS.md): "
                "half-extracted? Move it away, and run this again."
            )


def _match_archives(source, archives):
    """Dict from the names of archives to the files that a user has of them."""
    names = [archive.name for archive in source.archives]
    on_disk = {}
    for path in map(Path, archives):
        if not path.is_file():
            raise UserError(f"--archive: there is no file {path}.")
        # A file of a set with one archive may have any name.
        name = names[0] if len(names) == 1 else path.name
        if name not in names or name in on_disk:
            raise UserError(f"--archive {path}: {source.title} has the archives {', '.join(names)}; name each once.")
        on_disk[name] = path
    return on_disk


@contextlib.contextmanager
def _work_folder(source, root):
    """``<root>/.download``, for one process and set at a time; gone after success, unless something else is in it."""
    if root.exists() and not root.is_dir():
        raise UserError(f"--root {root} is a file. Name the folder for the data sets.")
    work = root / WORK_FOLDER
    if not (is_writable(root) and is_writable(work)):
        raise UserError(
            f"Cannot write to {root}: it is read-only. Name another folder for the data sets: --root FOLDER."
        )
    lock_file = work / f"{source.dataset.__name__}.lock"
    with contextlib.ExitStack() as stack:
        try:
            work.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(lock_file, f"downloads {source.title}", seconds=0))
        except InUse:
            raise UserError(
                f"Another process is downloading {source.title} to {root}. Wait until it is done."
            ) from None
        except OSError as error:
            raise UserError(f"Cannot write to {root}: {error.strerror}. Name another --root.") from error
        try:
            yield work
        finally:
            shutil.rmtree(_extraction_folder(source, work), ignore_errors=True)
    with contextlib.suppress(OSError):
        lock_file.unlink(missing_ok=True)
        work.rmdir()


def _extraction_folder(source, work):
    return work / f"{source.dataset.__name__}.extracting"


# --- the archives ---


def _obtain(source, archive, work, mirror, on_disk):
    """The file of an archive: the user's, one that is there from before, or downloaded now; checked."""
    file = on_disk.get(archive.name)
    if file is None and mirror and not _is_address(mirror):
        file = Path(mirror) / archive.name
        if not file.is_file():
            raise UserError(f"--mirror {mirror} is neither an http(s) address nor a folder that has {archive.name}.")
    if file is None:
        file = work / archive.name
        url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
        size = f" ({size_text(archive.about)})" if archive.about else ""
        if not file.is_file():
            print(f"{source.title}: downloading {archive.name}{size} from {url}", flush=True)
        by_hand = (
            f"Or open {archive.url} in a browser, save the file as {file}, and run the same command again; a file "
            "that lies elsewhere is named by --archive FILE, a copy of the server by --mirror."
        )
        fetch(url, file, description=archive.name, by_hand=by_hand)
    wrong = check_file(file, archive.size, archive.known_hash)
    if wrong:
        raise UserError(f"{file} is not the file that {source.title} is made from: {wrong}. {_discard(file, work)}")
    return file


def _is_address(mirror):
    return mirror.lower().startswith(("http://", "https://"))


def _extract(source, file, work, target, places=None):
    try:
        extract(file, target, places, description=f"Extracting {file.name}")
    except DamagedArchive as error:
        raise UserError(f"{error} {_discard(file, work)}") from error


def _discard(file, work):
    """Delete a useless archive if it is ours; returns what to do next."""
    if file.parent != work:
        return "Get it again from where it came."
    file.unlink()
    return "It was deleted: run the same command again to download it anew."


def _delete_ours(file, work):
    if file.parent == work:
        file.unlink()


# --- into place ---


def _install(source, files, work, root, any_counts):
    """Extract a set, and rename it into place when it is found to be all there."""
    scratch = _fresh_folder(source, work)
    if source.dataset is SPG_TerraIncognita:
        annotations, images = files
        folder = scratch / source.dataset.layouts[0].folder
        _extract(source, annotations, work, scratch / "annotations")
        places = select_images(
            scratch / "annotations", source.dataset.domains, source.dataset.classes, source=annotations
        )
        _extract(source, images, work, folder, lambda name: places.get(Path(name).name, ()))
        shutil.rmtree(scratch / "annotations")
    else:
        _extract(source, files[0], work, scratch)
    location = _find_extracted(source, scratch, files[-1])
    _check_counts(source, location, source.dataset.domains, warn if any_counts else _refuse(files))
    place = root / location.layout.folder
    if (place / SPLIT_FOLDER).is_dir() and not (location.folder / SPLIT_FOLDER).exists():
        _move(place / SPLIT_FOLDER, location.folder / SPLIT_FOLDER)
    with contextlib.suppress(OSError):
        place.rmdir()
    _move(location.folder, place)


def _install_domain(source, archive, file, work, root, any_counts):
    """Extract one domain, and rename it into place."""
    scratch = _fresh_folder(source, work)
    # In a folder by the set's own name a single domain is recognised.
    _extract(source, file, work, scratch / source.dataset.layouts[0].folder)
    location = _find_extracted(source, scratch, file, [archive.domain])
    _check_counts(source, location, [archive.domain], warn if any_counts else _refuse([file]))
    there, _ = locate_set(source, root)
    place = there.images_dir if there else root / source.dataset.layouts[0].folder
    place.mkdir(exist_ok=True)
    _move(location.domain_dirs[archive.domain], place / archive.domain)


def _fresh_folder(source, work):
    """An empty folder to extract into, on the disk where the set goes."""
    scratch = _extraction_folder(source, work)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    return scratch


def _find_extracted(source, scratch, file, domains=None):
    """The location of what was extracted: in one of the known layouts, perhaps under another name."""
    wanted = domains or source.dataset.domains
    best = []
    for folder in [scratch, *(scratch / name for name in list_folders(scratch))]:
        location, _ = locate_set(source, folder)
        missing = [domain for domain in wanted if location is None or domain not in location.domain_dirs]
        if not missing:
            return location
        if location is not None:
            best = [domain for domain in wanted if domain not in missing]
    raise UserError(
        f"{file} is no archive of {source.title}: it should hold the domains {', '.join(wanted)}, but has "
        f"{', '.join(best) or 'none of them'}. {file.name} was kept; delete it to have it downloaded again."
    )


def _move(folder, place):
    try:
        os.rename(folder, place)
    except OSError as error:
        raise UserError(f"Cannot move {folder} to {place}: {error.strerror}. Move away what is there.") from error


# --- counts ---


def _count_images(source, location, domain):
    """Number of images of one domain."""
    dataset, domain_dir = source.dataset, location.domain_dirs[domain]
    code = dataset.codes[dataset.domains.index(domain)]
    index_file = location.folder / SPLIT_FOLDER / f"{code}_index.json"
    folders = class_folders(domain_dir, location.layout.parts, dataset.class_name)
    return sum(map(len, list_images(domain_dir, folders, index_file).images.values()))


def _check_counts(source, location, domains, complain):
    """Compare the numbers of images with the known ones, and hand what differs to ``complain``; returns the sum."""
    known = source.dataset.image_counts
    # A file that is known to be wrong may have been taken away.
    slack = {domain: sum(path.startswith(f"{domain}/") for path in source.dataset.skipped) for domain in domains}
    found = {domain: _count_images(source, location, domain) for domain in domains}
    differing = [domain for domain in domains if not 0 <= known[domain] - found[domain] <= slack[domain]]
    if differing:
        numbers = ", ".join(f"{domain} {found[domain]:,} of {known[domain]:,}" for domain in differing)
        # More than the known counts (which DomainBed took after deleting duplicates) is no sign of a broken archive.
        too_few = any(found[domain] < known[domain] for domain in differing)
        say = complain if too_few else warn
        say(f"{source.title} in {location.folder} has other image counts than the full set: {numbers}.")
    return sum(found.values())


def _refuse(files):
    def complain(message):
        kept = ", ".join(map(str, files))
        raise UserError(
            f"{message} It was not put into place. {kept} was kept: run the same command with --any-counts to take it "
            "all the same, or delete the archive to download it anew."
        )

    return complain


def _summary(source, location, complain=lambda message: None):
    n_images = _check_counts(source, location, source.dataset.domains, complain)
    return f"{n_images:,} images in {location.images_dir} ({location.layout.name} layout)"
