"""Where the repository is, and a run of seconds: train.py's arguments for it, and its main in this process."""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
MADE = ("run", "prompt_labels", "feature_cache")  # folders that a quick run may leave


def command_line(trainer, target, *opts, flags=(), root="data", clip="tiny.pt"):
    """Arguments of train.py for a quick run on a folder of images; the run's folder is "run"."""
    from scripts.benchmarks.quick_run import arguments  # conftest.py, which takes this module first, makes a way to it

    return arguments(trainer, target, root, clip, "run", *opts, flags=flags)


def run_train(arguments):
    """Run train.py's main in this process; returns its exit code."""
    import train

    stdout, stderr = sys.stdout, sys.stderr
    try:
        return train.main(arguments)
    finally:  # Dassl's logger takes the place of stdout
        sys.stdout, sys.stderr = stdout, stderr
