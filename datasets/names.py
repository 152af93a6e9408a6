"""Spell classes and domains in one way, whatever a layout calls their folders."""

import difflib
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
    name: str | int,
    domains: Sequence[str],
    codes: Sequence[str] = (),
    aliases: Iterable[tuple[str, str]] = (),
) -> str | None:
    """Find the domain that a name, a code or a similar spelling means; aliases are pairs of a name and its domain."""
    name = str(name)
    known = [*zip(domains, domains), *zip(codes, domains), *aliases]  # noqa: B905 (codes may be empty)
    for other, domain in known:
        if name == other:
            return domain
    similar = {domain for other, domain in known if fold(other) == fold(name)}
    return similar.pop() if len(similar) == 1 else None


def resolve_domains(
    dataset: str,
    domains: Sequence[str],
    codes: Sequence[str],
    aliases: Sequence[tuple[str, str]],
    sources: Sequence[str | int],
    targets: Sequence[str | int],
) -> tuple[list[str], list[str]]:
    """Find the full names of source and target domains; no sources mean all domains but the targets."""
    listed = (name if code == name else f"{name} ({code})" for name, code in zip(domains, codes, strict=True))
    accepted = f"Accepted: {', '.join(listed)}."

    def full_names(values: Sequence[str | int], key: str) -> list[str]:
        names: list[str] = []
        for value in [values] if isinstance(values, str) else values:
            name = find_domain(value, domains, codes, aliases)
            if name is None:
                close = difflib.get_close_matches(str(value), domains, n=1)
                hint = f" Did you mean {close[0]}?" if close else ""
                raise UserError(f"{key}: {dataset} has no domain {value!r}. {accepted}{hint}")
            if name in names:
                raise UserError(f"{key} names {name} twice. Name each domain once.")
            names.append(name)
        return names

    target_names = full_names(targets, "DATASET.TARGET_DOMAINS")
    source_names = full_names(sources, "DATASET.SOURCE_DOMAINS")
    if not target_names:
        raise UserError(
            f"DATASET.TARGET_DOMAINS is empty. Name the domain of {dataset} to test on, for example --target-domains "
            f"{codes[-1]}. {accepted}"
        )
    source_names = source_names or [domain for domain in domains if domain not in target_names]
    if not source_names:
        raise UserError(
            f"DATASET.TARGET_DOMAINS names every domain of {dataset}, so none is left to train on. Name fewer, or set "
            "DATASET.SOURCE_DOMAINS."
        )
    return source_names, target_names
