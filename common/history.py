"""history.json: what each completed epoch of a run came to, so that a resumed run tells the whole story."""

import json
from pathlib import Path

from common.files import atomic_write

HISTORY_FILE = "history.json"


def write_history(folder, epochs):
    """Write one dict of plain values for each epoch."""
    with atomic_write(Path(folder) / HISTORY_FILE, "w") as handle:
        json.dump(epochs, handle)
        handle.write("\n")


def read_history(folder, n_epochs):
    """The first `n_epochs` entries; None if there is no readable file with as many."""
    try:
        epochs = json.loads((Path(folder) / HISTORY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(epochs, list) or len(epochs) < n_epochs or not all(isinstance(epoch, dict) for epoch in epochs):
        return None
    return epochs[:n_epochs]
