"""What is said and kept of tasks as they begin and end, and which of them this launcher has the right to do."""

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

from common.run.folder import has_begun
from common.run.identity import IDENTITY_FILE
from common.run.lock import holder, owned

from common.errors import UserError, explain
from common.files import write_json
from scripts.launching.launch import Launch
from scripts.launching.plan import Ended, Task
from scripts.launching.planned import FAILED_FILE
from scripts.launching.plans import Run
from scripts.launching.runs import ASKED
from scripts.launching.shared import Shared
from trainers.methods import MethodError

LAUNCHER_LOCK = "launcher.lock"  # in the folder of what a run was asked for: held by the launcher that does it


class Conduct:
    """What is said and kept of the tasks of a comparison as they begin and end.

    While a task is being done, this launcher holds it: others, on whichever machine, leave it alone and wait.

    Args:
        of_task: whose run each task is.
        of_shared: what each of the others makes, for several runs.
        refuse: called with a trainer whose runs cannot go on as asked, and why.
        refused: trainers of those.
        bar: over all runs.

    Attributes:
        failed: titles of runs that failed, or were not begun since what they need failed.
    """

    def __init__(
        self,
        of_task: dict[Task, tuple[Launch, Run]],
        of_shared: dict[Task, Shared],
        refuse: Callable[[str, MethodError], None],
        refused: list[str],
        bar: Any,
    ) -> None:
        self.of_task, self.of_shared, self.refuse, self.refused, self.bar = of_task, of_shared, refuse, refused, bar
        self.failed: list[str] = []
        self.began: dict[Task, float] = {}
        self.held: dict[Task, contextlib.ExitStack] = {}
        self.elsewhere: set[Task] = set()

    def begin(self, task: Task) -> bool | None:
        """Whether a task has to be done; it is said that it begins, or that it was finished before.

        None while another process does it, which is said, too.
        """
        launch = self.of_shared[task].launch if task in self.of_shared else self.of_task[task][0]
        if launch.trainer in self.refused:
            return False
        try:
            if task in self.of_task:
                launch.check(self.of_task[task][1])
            if not self._hold(task):
                return None
            is_open = self._begin_shared(task) if task in self.of_shared else self._begin_run(task)
        except MethodError as error:
            self.refuse(launch.trainer, error)
            is_open = False
        except OSError as error:  # of this one: others may lie on another disk, or have begun
            self._say(f"{task.title}: not begun: {explain(error) or error}")
            if task in self.of_task:
                self.failed.append(task.title)
                self.bar.update()
            is_open = False
        if is_open:
            self.began[task] = time.time()
        else:
            self._let_go(task)
        return is_open

    def _begin_shared(self, task: Task) -> bool:
        (task.folder / ASKED / FAILED_FILE).unlink(missing_ok=True)
        if self.of_shared[task].is_there():
            return False
        self._say(f"{task.title}: for several runs; log in {task.folder}/log.txt")
        return True

    def _begin_run(self, task: Task) -> bool:
        launch, run = self.of_task[task]
        if not launch.begin(run):
            if task in self.elsewhere:
                self._say(f"{task.title}: finished by another launcher, in {run.folder}")
                self.bar.update()
            else:
                self._say(f"{task.title}: finished before, in {run.folder}")
                # As a bar that begins there: it took no time, by which the time of the others is told.
                self.bar.initial += 1
                self.bar.n += 1
                self.bar.refresh()
            return False
        log = run.folder / "log.txt"  # where there is one, Dassl gives the next the time at which it begins
        self._say(f"{task.title}: {f'going on, log in the newest {log}-*' if log.is_file() else f'log in {log}'}")
        return True

    def end(self, ended: Ended, interrupted: bool) -> None:
        """Say how a task has ended, and note it if it failed."""
        task, code, error = ended
        self._let_go(task)
        if code and interrupted:  # what it made of it does not matter: it may have been just starting
            self._say(f"{task.title}: interrupted; the same command goes on from here")
            return
        done = f"{'made' if task in self.of_shared else 'done'} in {time.time() - self.began[task]:.0f} s"
        self._say(f"{task.title}: {f'failed with exit code {code}' if code else done}")
        if task in self.of_task:
            self.bar.update()
        if code:
            self._note_failure(task, {"exit_code": code, "error": error})

    def _note_failure(self, task: Task, failure: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the disk may be full, which is why it failed
            write_json(task.folder / ASKED / FAILED_FILE, failure)
        if task in self.of_task:
            self.failed.append(task.title)
            if not has_begun(task.folder):
                # It never began to train, so there is nothing that other settings could be mixed up with.
                (task.folder / ASKED / IDENTITY_FILE).unlink(missing_ok=True)

    def block(self, task: Task, by: Task) -> None:
        """Say that a task is not done, since another one that it needs has failed."""
        self._say(f"{task.title}: not begun, for want of what failed: {by.title}")
        if task in self.of_task:
            self.failed.append(f"{task.title} (not begun, for want of: {by.title})")
            self.bar.update()

    def close(self) -> None:
        """Let go of what is still held."""
        for task in list(self.held):
            self._let_go(task)

    def _hold(self, task: Task) -> bool:
        """Take the right to do a task; False, which is said once, while another process has it, or does it."""
        (task.folder / ASKED).mkdir(parents=True, exist_ok=True)
        self.held[task] = contextlib.ExitStack()
        with contextlib.suppress(UserError):
            self.held[task].enter_context(owned(task.folder / ASKED, LAUNCHER_LOCK))
            # A run that was started by itself, or whose launcher has died just now.
            if holder(task.folder) is None:
                return True
        self._let_go(task)
        if task not in self.elsewhere:
            self.elsewhere.add(task)
            who = holder(task.folder) or holder(task.folder / ASKED, LAUNCHER_LOCK) or "another process"
            self._say(f"{task.title}: {who} does it, so its result is waited for")
        return False

    def _let_go(self, task: Task) -> None:
        if stack := self.held.pop(task, None):
            stack.close()

    def _say(self, line: str) -> None:
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()
