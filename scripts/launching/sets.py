"""The data sets that a launcher is asked for."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.held import held

from common.errors import UserError
from common.files import read_json, write_json
from scripts.launching.plans import Set

if TYPE_CHECKING:
    from datasets.base import DomainGeneralizationDataset

NAMES_FILE = "datasets.json"  # in an output folder: the paths of data sets by their names there


def find_set(name: str, data: str, chosen: str = "", offer: bool = True) -> Set:
    """The Set that a name or folder means.

    Args:
        name: of configs/datasets/, or a folder.
        data: the data root.
        chosen: domains that were asked for, see :func:`chosen_domains`; "": all.
        offer: whether one that is missing is offered for download.

    Raises:
        UserError: it is unknown, or not there.
    """
    # Importing data sets registers them, which takes PyTorch's seconds.
    from datasets.download.offer import download_command, offer_download
    from datasets.known import EMBEDDED_DATASET, FOLDER, dataset_class, dataset_config
    from datasets.layouts import SetNotFound

    config, root = dataset_config(name, data)
    dataset = dataset_class(config)
    if config.stem not in (FOLDER, EMBEDDED_DATASET):
        try:
            if not Path(root).is_dir():
                raise SetNotFound(f"There is no folder {root} (DATA names another).")
            dataset.locate(Path(root).resolve(), verbose=False)
        except SetNotFound as error:
            if not offer or not offer_download(config.stem, root):
                raise UserError(f"{error}\nTo download it: {download_command(config.stem, root)}") from error
    domains = dataset.list_domains(root)
    asked = chosen_domains(chosen, dataset, root)
    label = Path(root).resolve().name if config.stem == FOLDER else config.stem
    return Set(label, config, root, tuple(domains), tuple(asked or domains))


def named_apart(sets: Sequence[Set], output: Path) -> list[Set]:
    """The sets, of which no two have one name, nor that of another data set in an output folder.

    A folder has its own name, or more of its path where another data set has that: "y_test" of x/test and y/test.

    Args:
        sets: in the order that was asked for; the same one again has one name.
        output: folder whose `NAMES_FILE` says which names are taken.
    """
    taken = _read_names(output)
    open_names = {_place(one): _names(one) for one in sets if _place(one) not in taken.values()}
    for place, names in sorted(open_names.items(), key=lambda item: os.path.isabs(item[0])):  # folders last
        others = [other for other in open_names if other != place and os.path.isabs(place) and os.path.isabs(other)]
        rivals = {name.casefold() for other in others for name in open_names[other]}
        free = (name for name in names if name.casefold() not in rivals and _is_free(name, place, taken))
        name = next(free, names[-1])
        taken[name] = place
    by_place = {place: name for name, place in taken.items()}
    names = [by_place[_place(one)] for one in sets]
    return [
        replace(one, name=name, label="" if name == one.name else name) for one, name in zip(sets, names, strict=True)
    ]


def note_names(sets: Sequence[Set], output: Path) -> None:
    """Note in an output folder which data sets have which names."""
    with held(output / NAMES_FILE, "the names of data sets"):
        known = _read_names(output)
        names = {**known, **{one.name: _place(one) for one in sets}}
        if names != known:
            write_json(output / NAMES_FILE, {"names": names})


def _read_names(output: Path) -> dict[str, str]:
    try:
        return read_json(output / NAMES_FILE)["names"]
    except (OSError, ValueError, KeyError):
        return {}


def _place(one: Set) -> str:
    """What tells a data set from others of its name: of a folder its path."""
    from datasets.known import FOLDER

    return str(Path(one.root).resolve()) if one.config.stem == FOLDER else f"configs/datasets/{one.config.name}"


def _names(one: Set) -> list[str]:
    """Names that a data set may have, the preferred first."""
    from datasets.known import dataset_class

    place = Path(_place(one))
    if not place.is_absolute():
        return [one.name, dataset_class(one.config).__name__]
    return ["_".join(place.parts[-n:]) for n in range(1, len(place.parts))] or [one.name]


def _is_free(name: str, place: str, taken: dict[str, str]) -> bool:
    """Whether no other data set has a name; one that has moved, or was copied, is none."""
    from datasets.contents import same_images

    others = [other for known, other in taken.items() if known.casefold() == name.casefold()]
    return all(os.path.isabs(place) and os.path.isabs(other) and same_images(place, other) for other in others)


def chosen_domains(text: str, dataset: "type[DomainGeneralizationDataset]", root: str) -> list[str]:
    """Full names of the different domains that a text names, by names or codes with commas or spaces between.

    Names may have spaces and commas themselves: the whole text is tried first, then what lies between commas, and only
    where there are none what lies between spaces.

    Args:
        text: what the user wrote; may be empty.
        dataset: the class of the data set.
        root: its data root.

    Raises:
        UserError: one of the names is unknown.
    """
    text = text.strip()
    if not text:
        return []
    separator = "," if "," in text else None
    names = [name for part in text.split(separator) if (name := part.strip())] or [text]
    spelled = {*dataset.list_domains(root), *dataset.list_codes(root)}
    if text in spelled or (dataset.find_domain(text, root) and not all(dataset.find_domain(n, root) for n in names)):
        names = [text]
    try:
        return list(dict.fromkeys(dataset.resolve_domains(root, (), (name,))[1][0] for name in names))
    except UserError as error:
        raise UserError(
            f"{error} Several are named with commas between, or with spaces where no name has one: "
            f'"{",".join(dataset.list_codes(root)[:2])}".'
        ) from error
