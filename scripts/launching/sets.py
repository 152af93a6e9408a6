"""The data sets that a launcher is asked for."""

from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from scripts.launching.plans import Set


def find_set(name: str, data: str, chosen: Sequence[str] = (), offer: bool = True) -> Set:
    """The Set that a name or folder means.

    Args:
        name: of configs/datasets/, or a folder.
        data: the data root.
        chosen: domains that were asked for, by name or code; none: all.
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
    asked = [dataset.resolve_domains(root, (), (domain,))[1][0] for domain in chosen]
    label = Path(root).resolve().name if config.stem == FOLDER else config.stem
    return Set(label, config, root, tuple(domains), tuple(asked or domains))
