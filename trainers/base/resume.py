"""Going on where a run stopped, from files that a killed process or a bad disk may have left in any state."""

import warnings
from collections.abc import Collection, Container, Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from common.errors import UserError
from common.run.history import read_history
from common.run.identity import identity_differences
from trainers.base.checkpoints import BEST, epochs_kept, read_model
from trainers.base.selection import best_of


def resume(
    directory: str | PathLike,
    networks: dict[str, tuple],
    selects_by: str | None,
    minus_infinity: Container[str] = (),
) -> tuple[int, list[dict[str, Any]]]:
    """Load the newest state that is whole into networks, optimisers and schedules.

    Args:
        directory: folder of the run.
        networks: {name: (network, optimiser, schedule)}.
        selects_by: the metric by which the run keeps its best epoch's model, which has to be there then; None: it
            keeps none.
        minus_infinity: names of weights that may be minus infinity, by design.

    Returns:
        (number of completed epochs, their entries of history.json): (0, []) to start anew.

    Raises:
        UserError: a checkpoint is of other networks.
    """
    names = list(networks)
    kept = [epochs_kept(Path(directory) / name) for name in names]
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
        checkpoints = _load_all(files, minus_infinity)
        if checkpoints is None:
            continue
        if selects_by and not _best_is_whole(directory, names[0], history, selects_by, minus_infinity):
            continue
        for name, (network, optimizer, schedule) in networks.items():
            _restore(checkpoints[name], files[name], network, optimizer, schedule)
        print(f"Going on after epoch {epoch}, from the checkpoints in {directory}")
        return epoch, history
    print(f"No usable checkpoint is left in {directory}; training starts anew.")
    return 0, []


def _load_all(files: dict[str, Path], minus_infinity: Container[str]) -> dict[str, dict[str, Any]] | None:
    """The checkpoints of one epoch; None if one of them is damaged, or holds a number that is not finite."""
    try:
        return {name: read_model(path, minus_infinity) for name, path in files.items()}
    except Exception as error:  # whichever core reads it, and whatever it makes of damaged bytes
        print(f"A checkpoint cannot be used, going on from one before: {error}")
        return None


def _best_is_whole(directory, name, history, metric, minus_infinity):
    """Whether the best model of these epochs is there, or one of a later epoch, which will be trained again."""
    best = best_of(history, metric)[1]
    if best is None:  # none may be chosen yet
        return True
    path = Path(directory) / name / BEST
    try:
        found = read_model(path, minus_infinity)["epoch"]
    except Exception as error:  # as above
        print(f"The best model so far cannot be used: {error}")
        return False
    return found == best or found > len(history)


def holds_objects(schedule: LRScheduler) -> bool:
    """Whether a schedule's state is more than plain values: Dassl.pytorch's warm-up keeps what follows it, whole."""
    return isinstance(schedule.state_dict().get("successor"), LRScheduler)


def _restore(checkpoint, path, network, optimizer, schedule):
    """Take the state of a completed epoch; a new schedule, of any Dassl, gets there by as many steps.

    Its saved state is not read: of Dassl.pytorch's warm-up it holds a schedule that sets the rates of an optimiser
    which is not this one.
    """
    try:
        network.load_state_dict(checkpoint["state_dict"])
        if schedule is not None:
            with warnings.catch_warnings():
                # Of these steps none has one of the optimiser before it.
                warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
                for _ in range(checkpoint["epoch"]):
                    schedule.step()
        if optimizer is not None:
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(checkpoint["optimizer"])
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} does not fit this run: {error}. Delete the run's folder to start anew, or name another "
            "--output-dir."
        ) from error


def goes_on(
    directory: str | PathLike, identity: dict[str, Any], aside: Collection[str], restart_on_difference: bool
) -> bool:
    """Whether a run goes on with the checkpoints in a directory, as it does unless they are of another run.

    Args:
        directory: theirs.
        identity: of the run, see `run_record.identity_of`.
        aside: keys that may differ, see `identity_differences`.
        restart_on_difference: whether it starts anew else, which is said.

    Raises:
        UserError: they are of another run, and it does not start anew.
    """
    differences = identity_differences(directory, identity, aside)
    if differences and not restart_on_difference:
        raise UserError(
            f"{directory} holds an unfinished run with other settings: {differences}. Delete it to start anew, or "
            "name another --output-dir."
        )
    if differences:
        print(f"The unfinished run in {directory} had other settings ({differences}); starting anew")
    return not differences


def remove_checkpoints(folder: str | PathLike, networks: Iterable[str], epoch: int, frequency: int) -> None:
    """Remove the checkpoints of an epoch from a run's folder, unless it is one of every so many that are kept.

    Args:
        folder: the run's.
        networks: their names.
        epoch: counted from 1; below that nothing is removed.
        frequency: TRAIN.CHECKPOINT_FREQ; 0: none is kept.
    """
    if epoch < 1 or (frequency > 0 and epoch % frequency == 0):
        return
    for name in networks:
        Path(folder, name, f"model.pth.tar-{epoch}").unlink(missing_ok=True)
