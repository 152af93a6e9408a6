"""A plan of tasks, what each needs, and carrying it out by an engine."""

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from common.errors import UserError
from common.interruption import Interrupted


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
    """A task that has ended, and its exit code; that of a process which died is minus the signal's number."""

    task: Task
    code: int


class Engine(Protocol):
    """What does tasks, several at once.

    Attributes:
        slots: how many at once, which may change.
        workers_each: loader workers of each, at most.
    """

    @property
    def slots(self) -> int: ...

    @property
    def workers_each(self) -> int: ...

    def submit(self, task: Task) -> None:
        """Begin a task; there are never more than `slots` of them."""

    def next_end(self) -> Ended | None:
        """Hear of a task's end; None after a moment without one."""

    def interrupt(self, number: int) -> None:
        """Pass a signal on to all tasks, which finish their step then and end."""

    def close(self) -> None:
        """End, and with it whatever is still running."""


def carry_out(
    tasks: Iterable[Task],
    engine: Engine,
    begin: Callable[[Task], bool],
    end: Callable[[Task, int, bool], None],
) -> None:
    """Do tasks, in their order as far as what they need allows it.

    Args:
        tasks: what to do.
        engine: what does them.
        begin: called before a task begins; returns whether it has to be done at all. A UserError lets those end that
            have begun.
        end: called with a task that has ended, its exit code, and whether it was asked to end.

    Raises:
        Interrupted: SIGINT or SIGTERM came; all tasks that had begun have ended.
        UserError: from `begin`.
    """
    waiting, running = list(tasks), list[Task]()
    refused: UserError | None = None
    told = 0
    with _received_signals() as received:
        while running or (waiting and not received):
            while not received and len(running) < engine.slots and (task := _first_ready(waiting, running)):
                waiting.remove(task)
                try:
                    if begin(task):
                        engine.submit(task)
                        running.append(task)
                except UserError as error:
                    refused = error
                    waiting.clear()
            # Here and not where they arrive: a task is never told twice of one, nor missed while it is submitted.
            while told < len(received):
                engine.interrupt(received[told])
                told += 1
            if running and (ended := engine.next_end()):
                running.remove(ended.task)
                end(ended.task, ended.code, bool(told))
    if received:
        raise Interrupted(received[0])
    if refused:
        raise refused


def _first_ready(waiting: Sequence[Task], running: Sequence[Task]) -> Task | None:
    """The first task that waits for no other one: neither for one that it needs nor for one in its own folder."""
    busy = {task.folder for task in running}
    for task in waiting:
        if task.folder not in busy and busy.isdisjoint(task.needs):
            return task
        busy.add(task.folder)  # what needs it waits as well
    return None


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
