"""Addresses of the published sets."""

import contextlib
import difflib
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from datasets.base import DomainGeneralizationDataset
from datasets.benchmarks import SPG_PACS, SPG_VLCS, SPG_DomainNet, SPG_OfficeHome, SPG_TerraIncognita
from datasets.layouts import Location


@dataclass(frozen=True)
class Archive:
    name: str  # also on a mirror
    url: str
    about: int | None = None  # rough number of bytes, for messages
    known_hash: str | None = None  # "sha256:..." or "md5:..."
    domain: str = ""  # the domain that it holds, "" if it holds all


@dataclass(frozen=True)
class Source:
    dataset: type[DomainGeneralizationDataset]
    archives: tuple[Archive, ...]

    @property
    def title(self) -> str:
        return self.dataset.__name__.removeprefix("SPG_")


_DRIVE = "https://drive.google.com/uc?id="
_DOMAINNET = "http://csr.bu.edu/ftp/visda/2019/multi-source/"
_CAMERA_TRAPS = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps/"

# By the names of configs/datasets. No hash of these files is known for certain, so none is given.
SOURCES = {
    "pacs": Source(SPG_PACS, (Archive("pacs.zip", f"{_DRIVE}1m4X4fROCCXMO0lRLrr6Zz9Vb3974NWhE", 174_000_000),)),
    "vlcs": Source(SPG_VLCS, (Archive("vlcs.zip", f"{_DRIVE}1r0WL5DDqKfSPp9E3tRENwHaXNs1olLZd"),)),
    "office_home": Source(
        SPG_OfficeHome, (Archive("office_home_dg.zip", f"{_DRIVE}1gkbf_KaxoBws-GWT3XIPZ7BnkqbAxIFa"),)
    ),
    "terra_incognita": Source(
        SPG_TerraIncognita,
        (
            Archive("eccv_18_annotations.tar.gz", f"{_CAMERA_TRAPS}eccv_18_annotations.tar.gz", 3_000_000),
            Archive("eccv_18_all_images_sm.tar.gz", f"{_CAMERA_TRAPS}eccv_18_all_images_sm.tar.gz", 6 * 10**9),
        ),
    ),
    "domainnet": Source(
        SPG_DomainNet,
        (
            Archive("clipart.zip", f"{_DOMAINNET}groundtruth/clipart.zip", 1_200_000_000, domain="clipart"),
            Archive("infograph.zip", f"{_DOMAINNET}infograph.zip", 4_000_000_000, domain="infograph"),
            Archive("painting.zip", f"{_DOMAINNET}groundtruth/painting.zip", 3_600_000_000, domain="painting"),
            Archive("quickdraw.zip", f"{_DOMAINNET}quickdraw.zip", 450_000_000, domain="quickdraw"),
            Archive("real.zip", f"{_DOMAINNET}real.zip", 5_800_000_000, domain="real"),
            Archive("sketch.zip", f"{_DOMAINNET}sketch.zip", 2_600_000_000, domain="sketch"),
        ),
    ),
}


def find_source(name: str) -> Source:
    """Find a set by the name of its config or class."""
    key = name.lower()
    for known, source in SOURCES.items():
        if key in (known, source.dataset.__name__.lower()):
            return source
    close = difflib.get_close_matches(key, SOURCES, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UserError(f"No data set {name!r} can be downloaded. Accepted: {', '.join(SOURCES)}, all.{hint}")


def locate_set(source: Source, root: str | Path) -> tuple[Location | None, list[str]]:
    """Find a set below `root`; return its location, and the domains that are missing from it."""
    location = None
    if Path(root).is_dir():
        with contextlib.suppress(UserError):
            location = source.dataset.locate(Path(root), verbose=False)
    return location, [domain for domain in source.dataset.domains if not location or domain not in location.domain_dirs]
