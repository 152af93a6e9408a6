"""history.json: what each completed epoch of a run came to, so that a resumed run tells the whole story."""

from os import PathLike
from pathlib import Path
from typing import Any

from common.run.records import check_finite, not_finite, read_record, write_record

HISTORY_FILE = "history.json"


def write_history(folder: str | PathLike, epochs: list[dict[str, Any]]) -> None:
    """Write one dict of plain values for each epoch.

    Raises:
        UserError: a number in them is not finite; nothing is written then.
    """
    path, record = Path(folder) / HISTORY_FILE, {"epochs": epochs}
    check_finite(path, record)
    write_record(path, record)


def read_history(folder: str | PathLike, n_epochs: int) -> list[dict[str, Any]] | None:
    """The first `n_epochs` entries; None if there is no readable file with as many, all of finite numbers."""
    try:
        epochs = read_record(Path(folder) / HISTORY_FILE)["epochs"]
    except (OSError, ValueError, KeyError):
        return None
    return epochs[:n_epochs] if len(epochs) >= n_epochs and not not_finite({"epochs": epochs[:n_epochs]}) else None
