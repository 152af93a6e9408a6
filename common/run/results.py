"""results.json: what a finished run found out. A run counts as done when this file exists."""

import platform
from importlib import metadata
from pathlib import Path

from common.errors import UserError
from common.run.records import read_record, write_record

RESULTS_FILE = "results.json"
FORMAT = 2


def write_results(folder, results):
    """Write `results` (plain data) to <folder>/results.json, whole or not at all."""
    write_record(Path(folder) / RESULTS_FILE, {"format": FORMAT, **results})


def read_results(path):
    """Read one results.json.

    Raises:
        UserError: the file is damaged or of another format.
    """
    try:
        results = read_record(path)
        results_format = results["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no results file: {error}. Delete it and run its command again.") from error
    if results_format != FORMAT:
        newer = isinstance(results_format, int) and results_format > FORMAT
        mend = "Use the version that wrote it." if newer else "Delete it and run its command again."
        raise UserError(f"{path} has format {results_format}; this version reads format {FORMAT}. {mend}")
    return results


def versions():
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "clip-anytorch", "numpy", "pillow", "scipy", "scikit-learn"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
