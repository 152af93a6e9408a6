"""What a run is about, so that another one does not go on with its checkpoints."""

import json
from pathlib import Path

from common.run.records import read_record, write_record

IDENTITY_FILE = "identity.json"
TRAINED_FILE = "trained.json"  # marks the end of a run that is not tested, and says what it was trained on


def write_identity(folder, identity):
    """Write `identity` (plain values by name) into a run's folder."""
    write_record(Path(folder) / IDENTITY_FILE, identity)


def read_identity(folder):
    """The identity that a run's folder holds; {} if there is none, or it is damaged."""
    try:
        return read_record(Path(folder) / IDENTITY_FILE)
    except (OSError, ValueError):
        return {}


def identity_differences(folder, identity):
    """What differs between the run that a folder holds and `identity`: "" for nothing, or for a folder without one."""
    try:
        theirs = read_record(Path(folder) / IDENTITY_FILE)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        return f"its {IDENTITY_FILE} cannot be read ({error})"
    ours = json.loads(json.dumps(identity))  # tuples become lists, as in the file
    keys = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
    return ", ".join(f"{key} {theirs.get(key)} there and {ours.get(key)} here" for key in keys)
