"""Extracts zip and tar archives that nobody vouches for: plain files only, below the target only, a limited amount."""

import contextlib
import errno
import functools
import gzip
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, NamedTuple

from common.errors import UserError
from common.files import size_text
from common.progress import progress

# What an archive may expand to: nearly all of the free space of the disk, and so many times its own size (images
# hardly shrink in an archive; annotation files shrink to a tenth).
MAX_SHARE_OF_FREE_SPACE = 0.95
MAX_TIMES_ITS_SIZE = 100
MAX_MEMBERS = 2_000_000  # several times the largest archive of any set

_CHUNK = 1 << 20
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, struct.error),
    *(ValueError, NotImplementedError),
)
_NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class DamagedArchive(UserError):
    """Not all of an archive is there, its checksums do not agree, or it is none at all."""


class UnsafeArchive(UserError):
    """An archive that asks for something that no archive of images needs."""


class _Member(NamedTuple):
    """One entry: its name as stored, bytes, whether it is a folder, and a function that opens its content."""

    name: str
    size: int
    is_folder: bool
    open: Callable[[], IO[bytes] | None]


def extract(
    archive: Path,
    target: Path,
    places: Callable[[str], Iterable[str]] | None = None,
    description: str = "Extracting",
) -> None:
    """Extract a zip, tar or tar.gz archive (told by its content) into a folder of our own.

    Nothing is ever written outside ``target``: names with ``..``, absolute names, links, devices and pipes make the
    whole archive be refused, and so do more bytes than fit (see the constants above). Everything is read to the end,
    so that checksums are checked. Owners, permissions and times are not taken over. If it fails, what was extracted so
    far stays: delete ``target``.

    Args:
        archive: the file.
        target: folder to extract into; made if missing. It must hold no links made by others.
        places: from the name of a file in the archive to the names that it gets below ``target``, none to leave it
            out; by default its own.
        description: shown before the progress bar.

    Raises:
        DamagedArchive: see there.
        UnsafeArchive: see there; the message names the entry.
        UserError: no space or no permission.
    """
    places = places or (lambda name: [name])
    try:
        target.mkdir(parents=True, exist_ok=True)
        allowance = _Allowance(archive, target)
        with progress(total=allowance.archive_size, description=description, unit="B") as bar:
            for member in _members(archive, target, allowance, bar):
                name = _checked_name(archive, member.name)
                if member.is_folder or not name:
                    continue
                files = [target / _checked_name(archive, place) for place in places(name)]
                if files:
                    _write(member, files, allowance)
    except _DAMAGE as error:
        raise DamagedArchive(f"{archive} is damaged or incomplete: {error or type(error).__name__}.") from error
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise UserError(f"The disk of {target} is full. Make room there and start again.") from error
        raise UserError(
            f"Cannot extract {archive} to {target}: {error.strerror or error}"
            + (f" ({error.filename})." if error.filename else ".")
        ) from error


class _Allowance:
    """How many more bytes and entries an archive may expand to."""

    def __init__(self, archive, target):
        self.archive = archive
        self.archive_size = archive.stat().st_size
        self.free = shutil.disk_usage(target).free
        self._space = int(MAX_SHARE_OF_FREE_SPACE * self.free)
        self._times = MAX_TIMES_ITS_SIZE * self.archive_size
        self._members = MAX_MEMBERS

    def check(self, size):
        """Complain if ``size`` more bytes are too many."""
        if size > self._times:
            raise UnsafeArchive(
                f"{self.archive} expands to more than {MAX_TIMES_ITS_SIZE} times its own size, which no archive of "
                "images does: an archive bomb? It was not extracted. Delete it unless you trust its source."
            )
        if size > self._space:
            raise UserError(
                f"{self.archive} does not fit: {size_text(self.free)} were free when extracting began. Make room, or "
                "extract to another disk (--root)."
            )

    def spend(self, size):
        """Note that ``size`` bytes were written; complain if they are too many."""
        self.check(size)
        self._space -= size
        self._times -= size

    def count_member(self):
        """Note one more entry."""
        self._members -= 1
        if self._members < 0:
            raise UnsafeArchive(
                f"{self.archive} has more than {MAX_MEMBERS:,} entries: an archive bomb? It was not extracted. Delete "
                "it unless you trust its source."
            )


def _members(archive, target, allowance, bar):
    if zipfile.is_zipfile(archive):
        return _zip_members(archive, allowance, bar)
    return _tar_members(archive, target, allowance, bar)


def _zip_members(archive, allowance, bar):
    with zipfile.ZipFile(archive) as handle:
        members = handle.infolist()
        # The table of contents is there before anything is written, unlike in a tar.
        for info in members:
            allowance.count_member()
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe(archive, info.filename, "is no plain file but a link or device")
            if info.flag_bits & 1:
                raise DamagedArchive(f"{archive} is encrypted ({info.filename!r}), which no archive of a set is.")
            _checked_name(archive, info.filename)
        allowance.check(sum(info.file_size for info in members))
        for info in members:
            is_folder = info.is_dir() or stat.S_ISDIR(info.external_attr >> 16)
            yield _Member(info.filename, info.file_size, is_folder, functools.partial(handle.open, info))
            bar.update(info.compress_size)


def _tar_members(archive, target, allowance, bar):
    with open(archive, "rb") as raw, contextlib.ExitStack() as stack:
        start = raw.read(512)
        raw.seek(0)
        zipped = start[:2] == b"\x1f\x8b"
        if not zipped and start[257:262] != b"ustar":
            shown = re.sub(r"[^ -~]+", " ", start[:60].decode("latin-1")).strip()
            hint = " That is a web page, perhaps of a proxy or a login." if b"<html" in start.lower() else ""
            raise DamagedArchive(f"{archive} is neither zip nor tar nor tar.gz; it begins with {shown!r}.{hint}")
        stream = stack.enter_context(gzip.GzipFile(fileobj=raw)) if zipped else raw
        # As a stream: one pass, and a large archive is not decompressed just to list it.
        handle = stack.enter_context(tarfile.open(fileobj=stream, mode="r|"))
        for info in handle:
            allowance.count_member()
            _check_tar_member(archive, info, target)
            yield _Member(info.name, info.size, info.isdir(), functools.partial(handle.extractfile, info))
            handle.members.clear()  # type: ignore[attr-defined]  # it would remember every entry
            bar.update(raw.tell() - bar.n)
        # The checksum of a tar.gz comes at the very end, after what tarfile reads.
        while rest := stream.read(_CHUNK):
            allowance.spend(len(rest))
            if rest.strip(b"\0"):
                raise DamagedArchive(f"{archive} is damaged: it goes on after its end.")


def _check_tar_member(archive, info, target):
    if not (info.isreg() or info.isdir()) or info.issparse():
        raise _unsafe(archive, info.name, "is no plain file but a link, device or the like")
    _checked_name(archive, info.name)
    # Python's own opinion on top, where it has one (3.10.12, 3.11.4 and newer).
    data_filter = getattr(tarfile, "data_filter", None)
    if data_filter:
        try:
            data_filter(info, str(target))
        except tarfile.FilterError as error:
            raise _unsafe(archive, info.name, str(error)) from error


def _checked_name(archive, name):
    """``name`` with / between its parts, "" for the target itself.

    Raises:
        UnsafeArchive: it leads, or might lead on some system, out of the folder that it is put into.
    """
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or re.match(r"[A-Za-z]:", name):
        raise _unsafe(archive, name, "is an absolute path")
    if ".." in parts:
        raise _unsafe(archive, name, "leads out of the folder")
    if "\0" in name:
        raise _unsafe(archive, name, "is no file name")
    return "/".join(part for part in parts if part not in ("", "."))


def _unsafe(archive, name, why):
    return UnsafeArchive(
        f"{archive} was not extracted: its entry {name!r} {why}. No archive of this set has such an entry: delete the "
        "file, and get it from a source that you trust."
    )


def _write(member, files, allowance):
    """Write the content of one entry to one or several files."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(member.open())
        outputs = []
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            outputs.append(stack.enter_context(open(file, "wb")))
        written = 0
        while chunk := source.read(_CHUNK):
            allowance.spend(len(chunk) * len(outputs))
            written += len(chunk)
            for output in outputs:
                output.write(chunk)
    if written != member.size:
        raise DamagedArchive(f"{member.name!r} has {written:,} bytes in the archive instead of {member.size:,}.")
