"""Going on where a run stopped, from files that a killed process or a bad disk may have left in any state."""

import re
from pathlib import Path

from dassl.utils import load_checkpoint

from common.errors import UserError
from common.run.history import read_history

BEST = "model-best.pth.tar"


def resume(directory, networks, selects):
    """Load the newest state that is whole into networks, optimisers and schedules.

    Args:
        directory: folder of the run.
        networks: {name: (network, optimiser, schedule)}.
        selects: whether the run keeps its best epoch's model, which has to be there then.

    Returns:
        (number of completed epochs, their entries of history.json): (0, []) to start anew.

    Raises:
        UserError: a checkpoint is of other networks.
    """
    names = list(networks)
    kept = [_epochs(Path(directory) / name) for name in names]
    epochs = sorted(set.intersection(*kept), reverse=True) if kept else []
    if not epochs:
        print("No checkpoint found, train from scratch")
        return 0, []
    for epoch in epochs:
        files = {name: Path(directory) / name / f"model.pth.tar-{epoch}" for name in names}
        history = read_history(directory, epoch)
        if history is None:
            print(f"The history of {directory} does not reach epoch {epoch}; going on from an epoch before.")
            continue
        checkpoints = _load_all(files)
        if checkpoints is None or (selects and not _best_is_whole(directory, names[0], history)):
            continue
        for name, (network, optimizer, schedule) in networks.items():
            _restore(checkpoints[name], files[name], network, optimizer, schedule)
        print(f"Going on after epoch {epoch}, from the checkpoints in {directory}")
        return epoch, history
    print(f"No usable checkpoint is left in {directory}; training starts anew.")
    return 0, []


def find_checkpoint(directory, network, epoch=None):
    """The file of a run's network: the best one's, or that of an epoch.

    Runs with TEST.FINAL_MODEL last_step, CoOp's default, keep no best; theirs is the last one.

    Raises:
        UserError: it is not there; the message names those that are.
    """
    folder = Path(directory) / network
    path = folder / (BEST if epoch is None else f"model.pth.tar-{epoch}")
    epochs = sorted(_epochs(folder))
    history = read_history(directory, 1)
    # CoOp's own runs have no history, and a best model only where they chose by it.
    keeps_best = path.is_file() if history is None else history[0]["val_accuracy"] is not None
    if epoch is None and epochs and not keeps_best:
        return folder / f"model.pth.tar-{epochs[-1]}"
    if path.is_file():
        return path
    mend = "Name the folder of a trained run (--model-dir)."
    if epochs:
        mend = f"There are checkpoints of these epochs: {', '.join(map(str, epochs))} (--load-epoch)."
    raise UserError(f"Checkpoint not found: {path}. {mend}")


def best_of(history):
    """(accuracy, epoch from 1) of the first best epoch; (-inf, None) where none was validated."""
    accuracies = [entry["val_accuracy"] for entry in history if entry["val_accuracy"] is not None]
    if not accuracies:
        return -float("inf"), None
    return max(accuracies), 1 + accuracies.index(max(accuracies))


def _epochs(folder):
    found = (re.fullmatch(r"model\.pth\.tar-(\d+)", path.name) for path in folder.glob("model.pth.tar-*"))
    return {int(match[1]) for match in found if match}


def _load_all(files):
    """The checkpoints of one epoch; None if one of them is damaged."""
    try:
        return {name: load_checkpoint(str(path)) for name, path in files.items()}
    except Exception as error:  # whichever core reads it, and whatever it makes of damaged bytes
        print(f"A checkpoint cannot be used, going on from one before: {error}")
        return None


def _best_is_whole(directory, name, history):
    """Whether the best model of these epochs is there, or one of a later epoch, which will be trained again."""
    path = Path(directory) / name / BEST
    try:
        found = load_checkpoint(str(path))["epoch"]
    except Exception as error:  # as above
        print(f"The best model so far cannot be used: {error}")
        return False
    return found == best_of(history)[1] or found > len(history)


def _restore(checkpoint, path, network, optimizer, schedule):
    try:
        network.load_state_dict(checkpoint["state_dict"])
        if optimizer is not None:
            optimizer.load_state_dict(checkpoint["optimizer"])
        if schedule is not None:
            schedule.load_state_dict(checkpoint["scheduler"])
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} does not fit this run: {error}. Delete the run's folder to start anew, or name another "
            "--output-dir."
        ) from error
