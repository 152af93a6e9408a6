"""One spelling for classes and domains, whatever a layout calls their folders."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import UserError
from common.files import is_utf8


def class_name(folder: str) -> str:
    """The name of a class as people write it in a prompt: ``"Alarm_Clock"`` -> ``"alarm clock"``.

    Args:
        folder: name of the class folder.
    """
    return re.sub(r"[_\s]+", " ", unicodedata.normalize("NFC", folder)).strip().lower() or folder


def check_name(folder: Path) -> None:
    """Raise UserError if the name of a folder of a domain or class is not UTF-8."""
    if not is_utf8(folder.name):
        raise UserError(f"Folder {str(folder)!r}: its name is not UTF-8, so it names no domain or class. Rename it.")


def fold(name: str) -> str:
    """What counts of the name of a domain: ``"Real World"``, ``"real-world"`` and ``"RealWorld"`` are one.

    Args:
        name: name of a domain or of its folder.
    """
    return re.sub(r"[_\s-]+", "", unicodedata.normalize("NFC", name)).casefold()


def find_domain(
    name: str | int,
    domains: Sequence[str],
    codes: Sequence[str] = (),
    aliases: Iterable[tuple[str, str]] = (),
) -> str | None:
    """The domain that ``name`` stands for, or None.

    A full name or a code as it is written comes first, then what :func:`fold` takes for the same.

    Args:
        name: what a user, a folder or a split file calls the domain.
        domains: full names.
        codes: one code for each domain; may be empty.
        aliases: further names with the domain that each stands for.
    """
    name = str(name)
    known = [*zip(domains, domains), *zip(codes, domains), *aliases]  # noqa: B905 (codes may be empty)
    for other, domain in known:
        if name == other:
            return domain
    spelled_alike = {domain for other, domain in known if fold(other) == fold(name)}
    return spelled_alike.pop() if len(spelled_alike) == 1 else None


def domains_with_codes(domains: Iterable[str], codes: Iterable[str]) -> str:
    """A list for messages: ``"art_painting (a), cartoon (c)"``; codes that equal the name are left out."""
    return ", ".join(
        domain if code == domain else f"{domain} ({code})" for domain, code in zip(domains, codes, strict=True)
    )


def resolve_domains(
    dataset: str,
    domains: Sequence[str],
    codes: Sequence[str],
    aliases: Sequence[tuple[str, str]],
    sources: Sequence[str | int],
    targets: Sequence[str | int],
) -> tuple[list[str], list[str]]:
    """Full names of the source and target domains that a configuration names.

    Args:
        dataset: name of the dataset, for messages.
        domains, codes, aliases: see :func:`find_domain`.
        sources: DATASET.SOURCE_DOMAINS; empty: all domains but the targets (leave one domain out).
        targets: DATASET.TARGET_DOMAINS.

    Returns:
        sources and targets.

    Raises:
        UserError: no target; an unknown domain; a domain named twice; no source is left.
    """
    accepted = f"Accepted: {domains_with_codes(domains, codes)}."

    def full_names(values: Sequence[str | int], key: str) -> list[str]:
        if isinstance(values, str):
            values = [values]
        names: list[str] = []
        for value in values:
            name = find_domain(value, domains, codes, aliases)
            if name is None:
                close = difflib.get_close_matches(str(value), domains, n=1)
                hint = f" Did you mean {close[0]}?" if close else ""
                raise UserError(f"{key}: {dataset} has no domain {value!r}. {accepted}{hint}")
            if name in names:
                raise UserError(f"{key} names {name} twice (in {', '.join(map(str, values))}). Name each domain once.")
            names.append(name)
        return names

    target_names = full_names(targets, "DATASET.TARGET_DOMAINS")
    source_names = full_names(sources, "DATASET.SOURCE_DOMAINS")
    if not target_names:
        raise UserError(
            f"DATASET.TARGET_DOMAINS is empty: name the domain of {dataset} to test on, e.g. "
            f"--target-domains {codes[-1]}. {accepted}"
        )
    if not source_names:
        source_names = [domain for domain in domains if domain not in target_names]
        if not source_names:
            raise UserError(
                f"DATASET.TARGET_DOMAINS names every domain of {dataset}, so none is left to train on. Name "
                f"fewer, or name DATASET.SOURCE_DOMAINS as well. {accepted}"
            )
    return source_names, target_names
