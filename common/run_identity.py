"""What an unfinished run was about, so that another one does not go on with its checkpoints."""

import json
from pathlib import Path

from common.files import atomic_write

IDENTITY_FILE = "identity.json"


def write_identity(folder, identity):
    """Write `identity` (plain values by name) into a run's folder."""
    with atomic_write(Path(folder) / IDENTITY_FILE, "w") as handle:
        json.dump(identity, handle, indent=2)


def identity_differences(folder, identity):
    """What differs between the run that a folder holds and `identity`: "" for nothing, or for a folder without one."""
    try:
        theirs = json.loads((Path(folder) / IDENTITY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    ours = json.loads(json.dumps(identity))  # tuples become lists, as in the file
    if not isinstance(theirs, dict):
        return ""
    keys = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
    return ", ".join(f"{key} {theirs.get(key)} there and {ours.get(key)} here" for key in keys)
