"""JSON files of ours: written whole, and with a checksum that tells if something changed them since."""

import hashlib
import json
import math
from os import PathLike
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import atomic_write
from common.leaves import named_leaves

CHECKSUM = "checksum"


def write_record(path: str | PathLike, record: dict[str, Any]) -> None:
    """Write a dict of plain values."""
    # Through JSON first, so that the checksum is of what will be read.
    record = json.loads(json.dumps(record))
    with atomic_write(path, "w") as handle:
        json.dump({**record, CHECKSUM: _checksum(record)}, handle, indent=2)
        handle.write("\n")


def read_record(path: str | PathLike) -> dict[str, Any]:
    """The dict that `write_record` wrote; one without a checksum is taken as it is.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file, or was changed.
    """
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError(f"it holds a {type(record).__name__}")
    checksum = record.pop(CHECKSUM, None)
    if checksum not in (None, _checksum(record)):
        raise ValueError("its checksum does not fit: it is damaged, or was edited")
    return record


def check_finite(path: str | PathLike, record: dict[str, Any]) -> None:
    """Raise UserError, in place of writing it, if a number in a dict of plain values is not finite."""
    wrong = not_finite(record)
    if wrong:
        raise UserError(
            f"{path} is not written, since {wrong}: something that it was computed from is no number. "
            f"{Path(path).parent / 'log.txt'} may tell where that comes from."
        )


def not_finite(record: dict[str, Any]) -> str:
    """The first number in plain values that is not finite, as "<name> is <number>"; "" if there is none."""
    numbers = named_leaves(record, float)
    return next((f"{name} is {number}" for name, number in numbers if not math.isfinite(number)), "")


def _checksum(record):
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
