"""A plan of tasks, what each needs, and carrying it out by an engine."""

import contextlib
import signal
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from common.errors import UserError
from common.interruption import Interrupted

SECONDS_BETWEEN_LOOKS = 1.0  # at a task that another launcher does


@dataclass(frozen=True, eq=False)
class Task:
    """One call of train.py.

    Attributes:
        title: for messages.
        arguments: of train.py.
        folder: where its output goes.
        needs: folders of the tasks that have to end before it begins.
    """

    title: str
    arguments: tuple[str, ...]
    folder: Path
    needs: tuple[Path, ...] = ()


class Ended(NamedTuple):
    """A task that has ended.

    Args:
        task: it.
        code: its exit code; that of a process which died is minus the signal's number.
        error: why it failed, as far as that is known; "": it is not.
    """

    task: Task
    code: int
    error: str = ""


class Engine(Protocol):
    """What does tasks, several at once.

    Attributes:
        slots: how many at once, which may change.
        several: whether there may be more than one at once, now or later.
        on_gpu: whether they compute on a GPU where they may; None: where this process sees one.
        workers_each: loader workers of each, at most.
    """

    @property
    def slots(self) -> int: ...

    @property
    def several(self) -> bool: ...

    @property
    def on_gpu(self) -> bool | None: ...

    @property
    def workers_each(self) -> int: ...

    def submit(self, task: Task) -> None:
        """Begin a task; there are never more than `slots` of them."""

    def next_end(self) -> Ended | None:
        """Hear of a task's end; None after a moment without one."""

    def interrupt(self, number: int) -> None:
        """Pass a signal on to all tasks, which finish their step then and end."""

    def rest(self) -> None:
        """Leave to others what is kept for tasks, since there is none to do: what is open, other launchers do."""

    def close(self) -> None:
        """End, and with it whatever is still running."""


def carry_out(
    tasks: Iterable[Task],
    engine: Engine,
    begin: Callable[[Task], bool | None],
    end: Callable[[Ended, bool], None],
    block: Callable[[Task, Task], None] = lambda task, by: None,
) -> None:
    """Do tasks, in their order as far as what they need allows it.

    Args:
        tasks: what to do.
        engine: what does them.
        begin: called before a task begins; returns whether it has to be done at all, or None where another launcher
            is doing it: then it is called again from time to time. A UserError lets those end that have begun.
        end: called with a task that has ended, and whether it was asked to.
        block: called with a task that cannot be done, and the one that it needs and that failed.

    Raises:
        Interrupted: SIGINT or SIGTERM came; all tasks that had begun have ended.
        UserError: from `begin`.
    """
    waiting, running = list(tasks), list[Task]()
    elsewhere: dict[Task, float] = {}  # when it was last looked whether another launcher does it
    refused: UserError | None = None
    told = 0
    with _received_signals() as received:
        while running or (waiting and not received):
            while not received and len(running) < engine.slots:
                recent = time.monotonic() - SECONDS_BETWEEN_LOOKS
                task = _first_ready(waiting, running, {task for task, when in elsewhere.items() if when > recent})
                if task is None:
                    break
                try:
                    is_open = begin(task)
                except UserError as error:
                    refused = error
                    waiting.clear()
                    break
                if is_open is None:
                    elsewhere[task] = time.monotonic()
                    continue
                waiting.remove(task)
                elsewhere.pop(task, None)
                if is_open:
                    engine.submit(task)
                    running.append(task)
            # Here and not where they arrive: a task is never told twice of one, nor missed while it is submitted.
            while told < len(received):
                engine.interrupt(received[told])
                told += 1
            if not running and waiting and not received:
                engine.rest()  # or two launchers might wait for each other
                time.sleep(SECONDS_BETWEEN_LOOKS / 4)
            elif running and (ended := engine.next_end()):
                running.remove(ended.task)
                end(ended, bool(told))
                if ended.code and not told:
                    for task in _that_need(ended.task, waiting):
                        waiting.remove(task)
                        block(task, ended.task)
    if received:
        raise Interrupted(received[0])
    if refused:
        raise refused


def _first_ready(waiting: Sequence[Task], running: Sequence[Task], elsewhere: Container[Task]) -> Task | None:
    """The first task that waits for no other one: neither for one that it needs nor for one in its own folder."""
    busy = {task.folder for task in running}
    for task in waiting:
        if task not in elsewhere and task.folder not in busy and busy.isdisjoint(task.needs):
            return task
        busy.add(task.folder)  # what needs it waits as well
    return None


def _that_need(failed: Task, waiting: Iterable[Task]) -> list[Task]:
    """The tasks that need one that failed, or another one that does."""
    lost, found = {failed.folder}, []
    for task in waiting:
        if not lost.isdisjoint(task.needs):
            lost.add(task.folder)
            found.append(task)
    return found


@contextlib.contextmanager
def _received_signals() -> Iterator[list[int]]:
    """Within the block, SIGINT and SIGTERM do nothing but join this list."""
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
