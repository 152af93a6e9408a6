"""What a run's folder says of how far the run has come."""

from os import PathLike
from pathlib import Path

from common.run.identity import IDENTITY_FILE, TRAINED_FILE
from common.run.results import RESULTS_FILE


def is_finished(folder: str | PathLike, tested: bool = True) -> bool:
    """Whether the run in a folder has ended.

    Args:
        tested: whether it ends with a test; else with its training.
    """
    return (Path(folder) / (RESULTS_FILE if tested else TRAINED_FILE)).is_file()


def has_begun(folder: str | PathLike) -> bool:
    """Whether a run began to train in a folder, so that one with other settings must not go on there."""
    return (Path(folder) / IDENTITY_FILE).is_file()
