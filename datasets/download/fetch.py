"""Gets one file from the web, going on where an earlier try stopped.

gdown transfers, from Google Drive as well as from any web server: it resumes by byte ranges, guards them with If-Range,
and compares lengths. (pooch always begins again at the first byte, too much for files of several GB.) pooch checks the
checksums.
"""

import inspect
import re
import shutil
from pathlib import Path

from common.errors import UserError
from common.files import size_text
from common.progress import progress

TIMEOUT = (20, 60)  # seconds to connect, and between two pieces
RETRIES = 2  # without a single new byte; gdown waits longer before each
# Sets are images, which shrink no further: extracted they need about as much again as their archive.
SPACE_FOR_EACH_BYTE = 2.05


def fetch(url: str, path: Path, description: str = "", by_hand: str = "") -> None:
    """Download ``url`` to ``path``; a file that is there already is left as it is.

    While it comes, it lies beside ``path`` as ``<name>????????.part``, and stays there if the transfer fails, for the
    next call to go on with. Only one process at a time may fetch the same file.

    Args:
        url: http(s) address, or that of a file on Google Drive.
        path: where it goes; the folder must exist.
        description: shown before the progress bar.
        by_hand: what a user can do instead, added to the messages.

    Raises:
        UserError: no network, no such file, Google's limit is reached, or the disk is too small.
    """
    import gdown
    import requests

    if "retries" not in inspect.signature(gdown.download).parameters:
        raise UserError("Downloads need gdown 6.3 or newer. Get it by: pip install -U 'gdown>=6.3'")
    with progress(description=description, unit="B") as bar:

        def report(so_far, total):
            if total and bar.total != total:
                _check_space(path, so_far, total)
                bar.total = total
            bar.update(so_far - bar.n)

        bar.initial = bar.n = _part_size(path)  # so that the rate is that of this run
        restarted = False
        while not path.is_file():
            before = _part_size(path)
            try:
                gdown.download(
                    url,
                    output=str(path),
                    quiet=True,
                    resume=True,
                    progress=report,
                    timeout=TIMEOUT,
                    retries=RETRIES,
                )
            except gdown.exceptions.FileURLRetrievalError as error:
                raise UserError(
                    f"Google Drive does not give {path.name} away now: {_reason(error)} It often does so for a day "
                    f"after many people have downloaded a file. Try again tomorrow. {by_hand}"
                ) from error
            except (gdown.exceptions.DownloadError, requests.RequestException) as error:
                if "did not honor" in str(error) and before and not restarted:
                    # The server knows no byte ranges, or has another file than the one that the first bytes are from.
                    restarted = True
                    for part in _parts(path):
                        part.unlink()
                elif "did not honor" in str(error) or _part_size(path) <= before:
                    raise UserError(_failure(error, url, path, by_hand)) from error
            except OSError as error:
                raise UserError(
                    f"Cannot write {path}: {error.strerror or error}. Make room, or name another --root."
                ) from error


def check_file(path: Path, size: int | None = None, known_hash: str | None = None) -> str:
    """Whether a file has the size (bytes) and the checksum (as in pooch: ``"sha256:..."``, ``"md5:..."``) it should.

    Returns:
        "" if so (None: not known, so not checked), or what is wrong.
    """
    import pooch

    found = path.stat().st_size
    if size is not None and found != size:
        return f"it has {found:,} bytes instead of {size:,}"
    if known_hash is not None:
        algorithm, _, expected = known_hash.rpartition(":")
        found = pooch.file_hash(str(path), algorithm or "sha256")
        if found.lower() != expected.lower():
            return f"its {algorithm or 'sha256'} checksum is {found} instead of {expected}"
    return ""


def _parts(path):
    """What gdown has of ``path`` so far."""
    return [
        other for other in path.parent.glob("*.part") if re.fullmatch(re.escape(path.name) + r".{8}\.part", other.name)
    ]


def _part_size(path):
    return sum(part.stat().st_size for part in _parts(path))


def _check_space(path, so_far, total):
    free = shutil.disk_usage(path.parent).free
    needed = int(SPACE_FOR_EACH_BYTE * total) - so_far
    if free < needed:
        raise UserError(
            f"{path.name} has {size_text(total)} and needs {size_text(needed)} of space to be downloaded and "
            f"extracted, but only {size_text(free)} are free on the disk of {path.parent}. Make room, or name another "
            "--root."
        )


def _reason(error):
    """What Google said, out of gdown's message of several lines."""
    quoted = [line.strip() for line in str(error).splitlines() if line.startswith("\t") and "://" not in line]
    return " ".join(quoted) or str(error).split("\n")[0]


def _failure(error, url, path, by_hand):
    import requests

    kept = _part_size(path)
    again = f"{size_text(kept)} are kept; the same command goes on from there. " if kept else ""
    response = getattr(error, "response", None)
    if response is not None:
        answer = f"{response.status_code} {response.reason}"
        return f"The server does not give {path.name} away: {answer} for {url}. {again}{by_hand}"
    cause = error if isinstance(error, requests.RequestException) else error.__cause__
    if isinstance(cause, requests.RequestException):
        return (
            f"Cannot reach {url}, or the connection broke off: {_shortened(cause)}. Check the network; behind a proxy, "
            f"set HTTPS_PROXY. {again}{by_hand}"
        )
    return f"Could not download {url}: {_shortened(error)} {again}{by_hand}"


def _shortened(error):
    # urllib3 wraps the reason into the parameters of the request.
    text = " ".join(str(getattr(next(iter(error.args), None), "reason", error)).split())
    return text if len(text) <= 200 else text[:200] + "..."
