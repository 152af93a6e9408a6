"""Extract zip and tar archives from the web: nothing is written outside the target folder."""

import json
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from common.errors import UserError
from common.progress import progress
from datasets.benchmarks import SPG_TerraIncognita as Terra

_ERRORS = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, struct.error),
    *(ValueError, RuntimeError),  # zipfile: an encrypted entry, an unknown compression
)


class BadArchive(UserError):
    """An archive is damaged, incomplete, of another kind, or has an entry outside the target folder."""


def extract(archive: Path, target: Path, places: Mapping[str, list[str]] | None = None) -> None:
    """Extract an archive into a folder of our own, and check its checksums. After an error, delete `target`.

    Args:
        places: of a tar, from names of files to their paths below `target`; all other files are left out.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        with progress(description=f"Extracting {archive.name}", unit="file") as bar:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as zip_file:
                    check_space(archive, target, sum(info.file_size for info in zip_file.infolist()))
                    for info in zip_file.infolist():  # leading / and .. in names are dropped
                        zip_file.extract(info, target)
                        bar.update()
            else:
                with tarfile.open(archive) as tar_file:
                    members = _chosen(tar_file, archive, target, places, bar)
                    tar_file.extractall(target, members=members, filter="data")
                    while tar_file.fileobj and tar_file.fileobj.read(1 << 20):
                        pass  # the checksum of a tar.gz comes last
        for first, *others in (places or {}).values():
            for other in others:
                (target / other).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(target / first, target / other)
    except _ERRORS as error:
        with archive.open("rb") as handle:
            is_page = b"<html" in handle.read(1000).lower()
        hint = "; it is a web page, perhaps of a proxy or a login" if is_page else ""
        reason = str(error).partition("\n")[0].rstrip(".:") or type(error).__name__
        raise BadArchive(f"Cannot extract {archive}: {reason}{hint}.") from error
    except OSError as error:
        raise UserError(f"Cannot extract {archive} to {target}: {error}.") from error


def _chosen(
    tar_file: tarfile.TarFile, archive: Path, target: Path, places: Mapping[str, list[str]] | None, bar: tqdm
) -> Iterator[tarfile.TarInfo]:
    for member in tar_file:
        bar.update()
        if places is not None:
            paths = places.get(PurePosixPath(member.name).name) if member.isfile() else None
            if not paths:
                continue
            member = member.replace(name=paths[0], deep=False)
        check_space(archive, target, member.size)
        yield member


def check_space(archive: Path, folder: Path, n_bytes: int) -> None:
    """Raise UserError if fewer bytes are free on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        needed, there = (tqdm.format_sizeof(size, "B") for size in (n_bytes, free))
        raise UserError(f"{archive} needs {needed}, but only {there} are free in {folder}. Make space, or set --root.")


def select_camera_traps(folder: Path, source: Path) -> dict[str, list[str]]:
    """Choose the images of Caltech Camera Traps that are TerraIncognita, as DomainBed does.

    `source` is the archive of the annotation files in `folder`, for messages. Returns the paths
    "<domain>/<class>/<file name>" of each file name: two for an image that shows animals of two classes.
    """
    files = sorted(path for path in folder.rglob("*.json") if not path.name.startswith("."))
    if not files:
        raise UserError(f"{source} holds no annotation files (*.json). Download it again.")
    places: dict[str, set[str]] = defaultdict(set)
    for path in files:
        try:
            content = json.loads(path.read_bytes())
            categories = {category["id"]: category["name"] for category in content["categories"]}
            images = {image["id"]: image for image in content["images"]}
            for annotation in content["annotations"]:
                image = images[annotation["image_id"]]
                domain, name = f"location_{image['location']}", PurePosixPath(image["file_name"]).name
                category = categories[annotation["category_id"]]
                if domain in Terra.domains and category in Terra.classes:
                    places[name].add(f"{domain}/{category}/{name}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path.name} in {source} is no annotation file (COCO Camera Traps): {error!r}. Download it again."
            ) from error
    return {name: sorted(found) for name, found in places.items()}
