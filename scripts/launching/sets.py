"""The data sets of a launcher: look them up by name or folder, and name them in OUTPUT."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from common.files import read_json, write_json
from common.locks import creation_lock

if TYPE_CHECKING:
    from datasets.base import DomainGeneralizationDataset

NAMES_FILE = "datasets.json"  # in OUTPUT: the paths of data sets by their names


@dataclass(frozen=True)
class Set:
    """A data set: `label` is DATASET.LABEL if `name` is not the name of its folder, `chosen` are domains to run."""

    name: str
    config: Path
    root: str
    domains: tuple[str, ...]
    chosen: tuple[str, ...]
    label: str = ""

    @property
    def place(self) -> str:
        """The path of a folder of images, or the config of a known set."""
        from datasets.known import FOLDER

        is_folder = self.config.stem == FOLDER
        return str(Path(self.root).resolve()) if is_folder else f"configs/datasets/{self.config.name}"


def find_set(name: str, data: str, chosen: str, offer: bool) -> Set:
    """Find a data set by its name in configs/datasets/ or by its folder.

    Args:
        data: the data root.
        chosen: domains by names or codes; "": all.
        offer: whether to offer a download if the set is missing.
    """
    from datasets.download.install import download_command, offer_download
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
    label = Path(root).resolve().name if config.stem == FOLDER else config.stem
    return Set(label, config, root, tuple(domains), tuple(_chosen_domains(chosen, dataset, root) or domains))


def _chosen_domains(text: str, dataset: "type[DomainGeneralizationDataset]", root: str) -> list[str]:
    """Full names of the domains in a text with commas or spaces between; names may contain them, too."""
    text = text.strip()
    if not text:
        return []
    names = [name for part in text.split("," if "," in text else None) if (name := part.strip())] or [text]
    spelled = {*dataset.list_domains(root), *dataset.list_codes(root)}
    if text in spelled or (dataset.find_domain(text, root) and not all(dataset.find_domain(n, root) for n in names)):
        names = [text]
    try:
        return list(dict.fromkeys(dataset.resolve_domains(root, (), (name,))[1][0] for name in names))
    except UserError as error:
        example = ",".join(dataset.list_codes(root)[:2])
        raise UserError(f'{error} Put commas between several: "{example}".') from error


def name_sets(sets: Sequence[Set], output: Path) -> list[Set]:
    """Give the sets names that no other data set has in OUTPUT; the second "test" is called "y_test" for y/test."""
    taken = _read_names(output)
    for one in sorted(sets, key=lambda one: os.path.isabs(one.place)):  # known sets first
        if one.place not in taken.values():
            names = _possible_names(one)
            taken[next((name for name in names if _is_free(name, one.place, taken)), names[-1])] = one.place
    names_by_place = {place: name for name, place in taken.items()}
    named = [(one, names_by_place[one.place]) for one in sets]
    return [replace(one, name=name, label="" if name == one.name else name) for one, name in named]


def save_names(sets: Sequence[Set], output: Path) -> None:
    """Write the names of data sets to OUTPUT."""
    with creation_lock(output / NAMES_FILE, "names data sets"):
        known = _read_names(output)
        names = {**known, **{one.name: one.place for one in sets}}
        if names != known:
            write_json(output / NAMES_FILE, {"names": names})


def _read_names(output: Path) -> dict[str, str]:
    try:
        return read_json(output / NAMES_FILE)["names"]
    except (OSError, ValueError, KeyError):
        return {}


def _possible_names(one: Set) -> list[str]:
    from datasets.known import dataset_class

    parts = Path(one.place).parts
    if not os.path.isabs(one.place):
        return [one.name, dataset_class(one.config).__name__]
    return ["_".join(parts[-n:]) for n in range(1, len(parts))] or [one.name]


def _is_free(name: str, place: str, taken: dict[str, str]) -> bool:
    """Whether no other data set has the name; a folder with the same images is no other one."""
    from datasets.contents import same_images

    others = [other for known, other in taken.items() if known.casefold() == name.casefold()]
    return all(os.path.isabs(place) and os.path.isabs(other) and same_images(place, other) for other in others)
