"""identity.json: what a run is about, so that another one does not go on with its checkpoints."""

import hashlib
import json
from collections.abc import Collection
from os import PathLike
from pathlib import Path
from typing import Any

from common.run.records import read_record, write_record

IDENTITY_FILE = "identity.json"
TRAINED_FILE = "trained.json"  # marks the end of a run that is not tested, and says what it was trained on


def settings_sha256(settings: dict[str, Any], **more: Any) -> str:
    """Fingerprint of a run's settings, with more where the model has a history of its own."""
    text = json.dumps({**settings, **more}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_identity(folder: str | PathLike, identity: dict[str, Any]) -> None:
    """Write an identity (plain values by name) into a run's folder."""
    write_record(Path(folder) / IDENTITY_FILE, identity)


def read_identity(folder: str | PathLike) -> dict[str, Any]:
    """The identity that a run's folder holds; {} if there is none, or it is damaged."""
    try:
        return read_record(Path(folder) / IDENTITY_FILE)
    except (OSError, ValueError):
        return {}


def identity_differences(folder: str | PathLike, identity: dict[str, Any], aside: Collection[str] = ()) -> str:
    """What differs between the run that a folder holds and `identity`: "" for nothing, or for a folder without one.

    Args:
        aside: keys that may differ, since others say what they would.
    """
    try:
        theirs = read_record(Path(folder) / IDENTITY_FILE)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        return f"its {IDENTITY_FILE} cannot be read ({error})"
    ours = json.loads(json.dumps(identity))  # tuples become lists, as in the file
    keys = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key) and key not in aside)
    return ", ".join(f"{key} {theirs.get(key)} there and {ours.get(key)} here" for key in keys)
