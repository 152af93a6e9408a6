"""run.json: the one record of a run, written before training and after each epoch."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, write_json
from common.run.results import RESULTS_FILE

RECORD_FILE = "run.json"
HASHES = ("training images", "test images", "backbone weights", "prompt labels")  # keys of the identity


@dataclass
class RunRecord:
    """The record of a run."""

    # Settings, data, weights, seed: values that must be equal to continue the run; None: unknown.
    identity: dict[str, Any]
    places: dict[str, Any] = field(default_factory=dict)  # settings of the data set, and location of the weights
    threads: dict[str, int] = field(default_factory=dict)  # as in common.threads.Threads
    versions: dict[str, str | None] = field(default_factory=dict)  # of Python and packages
    history: list[dict[str, Any]] = field(default_factory=list)  # an entry for each completed epoch
    training: dict[str, Any] | None = None  # keys of results.json on the training; None before it has ended

    def write(self, folder: str | PathLike) -> None:
        """Write <folder>/run.json; raises UserError if a number is not finite."""
        path = Path(folder) / RECORD_FILE
        try:
            write_json(path, {"hash": settings_sha256(self.identity), **asdict(self)})
        except ValueError as error:
            raise UserError(f"{path}: a number of the training is not finite ({error}). See log.txt.") from error

    def differences(self, identity: dict[str, Any]) -> str:
        """The values of another identity that differ from this one; "" if none does. Unknown values do not differ."""
        here = json.loads(json.dumps(identity))  # tuples become lists, as in the file
        differing = []
        for key, there in sorted(self.identity.items()):
            if None not in (there, here.get(key)) and there != here[key]:
                differing.append(f"other {key}" if key in HASHES else f"{key} {there} there and {here[key]} here")
        return ", ".join(differing)


def read_run_record(folder: str | PathLike) -> RunRecord | None:
    """The record in the folder of a run; None if it is missing or damaged."""
    try:
        values = read_json(Path(folder) / RECORD_FILE)
        return RunRecord(**{name: values[name] for name in RunRecord.__dataclass_fields__})
    except (OSError, ValueError, KeyError):
        return None


def is_finished(folder: str | PathLike, tested: bool = True) -> bool:
    """Whether the run in a folder has ended; `tested`: it ends with a test."""
    if tested:
        return (Path(folder) / RESULTS_FILE).is_file()
    record = read_run_record(folder)
    return record is not None and record.training is not None


def settings_sha256(settings: dict[str, Any]) -> str:
    """Hash (16 hexadecimal digits) of plain values by name."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
