"""TensorBoard's event files of a run that is resumed."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path

from common.files import atomic_write


def remove_scalars(folder: str | PathLike, is_repeated: Callable[[str, int], bool]) -> None:
    """Remove the scalars that a resumed run writes again from the event files of a folder.

    SummaryWriter's purge_step is one step for all tags, and steps are batches in some and epochs in others.

    Args:
        folder: that SummaryWriter wrote to.
        is_repeated: whether the run writes a tag again at a step.
    """
    paths = sorted(Path(folder).glob("events.out.tfevents.*"))
    if not paths:
        return
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    for path in paths:
        with atomic_write(path) as handle:
            writer = RecordWriter(handle)
            for record in RawEventFileLoader(str(path)).Load():
                event = Event.FromString(record)
                if not any(is_repeated(value.tag, event.step) for value in event.summary.value):
                    writer.write(record)
