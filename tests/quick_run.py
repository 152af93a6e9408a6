"""Where the repository is, and train.py's arguments for a run of seconds."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def command_line(trainer, target, *opts, flags=(), root="data", clip="tiny.pt"):
    """Arguments of train.py for a quick run on a folder of images; the run's folder is "run"."""
    from scripts.launching.quick_run import arguments  # conftest.py, which takes this module first, makes a way to it

    return arguments(trainer, target, root, clip, "run", *opts, flags=flags)
