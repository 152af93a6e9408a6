"""history.json: what each completed epoch of a run came to, so that a resumed run tells the whole story."""

from os import PathLike
from pathlib import Path
from typing import Any

from common.run.records import read_record, write_record

HISTORY_FILE = "history.json"


def write_history(folder: str | PathLike, epochs: list[dict[str, Any]]) -> None:
    """Write one dict of plain values for each epoch."""
    write_record(Path(folder) / HISTORY_FILE, {"epochs": epochs})


def read_history(folder: str | PathLike, n_epochs: int | None = None) -> list[dict[str, Any]] | None:
    """The first `n_epochs` entries (None: all); None if there is no readable file with as many."""
    try:
        epochs = read_record(Path(folder) / HISTORY_FILE)["epochs"]
    except (OSError, ValueError, KeyError):
        return None
    return epochs[:n_epochs] if len(epochs) >= (n_epochs or 0) else None
