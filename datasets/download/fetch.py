"""Download one file: gdown transfers and resumes, from Google Drive and any web server; pooch checks the hash."""

import os
from pathlib import Path

from tqdm import tqdm

from common.errors import UserError
from common.progress import progress
from datasets.download.archives import check_space

TIMEOUT = (20, 60)  # seconds to connect, and between two pieces
RETRIES = 10  # of one transfer; gdown waits up to half a minute before each
SPACE_PER_BYTE = 2.05  # extracted images need about as much space again as their archive


def fetch(url: str, path: Path, known_hash: str | None = None, by_hand: str = "") -> None:
    """Download a file, unless it is there. After an error, the next call resumes the transfer.

    `known_hash` is as in pooch.retrieve. `by_hand` says how to get the file by other means, for messages.
    """
    import gdown
    import pooch
    import requests

    incoming = path.with_name(f"{path.name}.new")  # gdown adds 8 characters and .part to this name

    def find_parts() -> list[Path]:
        return list(path.parent.glob(f"{incoming.name}????????.part"))

    def count_bytes() -> int:
        return sum(part.stat().st_size for part in find_parts())

    def transfer(url, output, _):
        with progress(description=path.name, unit="B") as bar:
            bar.initial = bar.n = count_bytes()

            def report(so_far, total):
                if total and bar.total != total:
                    bar.total = total
                    check_space(path, path.parent, int(SPACE_PER_BYTE * total) - so_far)
                bar.update(so_far - bar.n)

            gdown.download(
                url, str(incoming), quiet=True, resume=True, progress=report, timeout=TIMEOUT, retries=RETRIES
            )
        os.replace(incoming, output)

    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(url, known_hash, path.name, path.parent, downloader=transfer)
    except (gdown.DownloadError, gdown.FileURLRetrievalError, requests.RequestException) as error:
        reason = " ".join(str(error).split())
        if "did not honor" in reason:  # the server cannot resume, or has another file now
            for part in find_parts():
                part.unlink()
        raise UserError(
            f"Cannot download {path.name} from {url}: {reason} Run the same command again, which resumes after "
            f"{tqdm.format_sizeof(count_bytes(), 'B')}; behind a proxy, set HTTPS_PROXY. Google Drive refuses a file "
            f"for about a day after many downloads. {by_hand}"
        ) from error
    except ValueError as error:  # another hash
        raise UserError(f"{path}: {' '.join(str(error).split())} Run the same command again.") from error
