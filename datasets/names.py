"""Spell classes and domains in one way, whatever a layout calls their folders."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import UserError
from common.files import is_utf8


def class_name(folder: str) -> str:
    """Name a class as in a prompt: "Alarm_Clock" -> "alarm clock"."""
    return re.sub(r"[_\s]+", " ", unicodedata.normalize("NFC", folder)).strip().lower() or folder


def check_name(folder: Path) -> None:
    """Raise UserError if the name of a folder of a domain or class is not UTF-8."""
    if not is_utf8(folder.name):
        raise UserError(f"Folder {str(folder)!r}: its name is not UTF-8, so it names no domain or class. Rename it.")


def fold(name: str) -> str:
    """Ignore case, spaces, hyphens and underscores: "Real World" and "real-world" are one domain."""
    return re.sub(r"[_\s-]+", "", unicodedata.normalize("NFC", name)).casefold()


def find_domain(
    name: str | int, domains: Sequence[str], codes: Sequence[str] = (), aliases: Iterable[tuple[str, str]] = ()
) -> str | None:
    """Find the domain that a name, a code or a similar spelling means; aliases are pairs of a name and its domain."""
    name = str(name)
    known = [*zip(domains, domains), *zip(codes, domains), *aliases]  # noqa: B905 (codes may be empty)
    for other, domain in known:
        if name == other:
            return domain
    similar = {domain for other, domain in known if fold(other) == fold(name)}
    return similar.pop() if len(similar) == 1 else None
