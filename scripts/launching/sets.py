"""The data sets that a launcher is asked for."""

from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from scripts.launching.plans import Set

if TYPE_CHECKING:
    from datasets.base import DomainGeneralizationDataset


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
