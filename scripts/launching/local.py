"""The engine on this machine: warm processes that do one run after another."""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from common.errors import UserError
from common.startup import REPOSITORY
from scripts.launching.plan import Ended, Task

WORKER = REPOSITORY / "scripts" / "_worker.py"
SECONDS_BETWEEN_LOOKS = 0.2  # at signals, and at whether a process is still there


def local_devices(visible: str) -> list[str]:
    """The CUDA devices of this machine that processes are spread over; none where there are none.

    Args:
        visible: CUDA_VISIBLE_DEVICES; "": all that there are.

    Raises:
        UserError: it names more than there are.
    """
    import torch

    n, named = torch.cuda.device_count(), [name.strip() for name in visible.split(",") if name.strip()]
    if not named:
        return [str(i) for i in range(n)]
    if named[0] == "-1":  # CUDA's way to say none
        return []
    if n < len(named):
        raise UserError(
            f"CUDA_VISIBLE_DEVICES is {visible!r}, {len(named)} GPUs, but PyTorch finds {n} of them here. Name those "
            "that there are (nvidia-smi -L lists them), or leave it out for all; without any, runs take the CPU."
        )
    return named


class Worker:
    """One process, in a session of its own: a terminal's Ctrl-C reaches it once, by whoever passes it on.

    Args:
        environment: its variables.
        say: told each line of its stderr, with the title of its task; None: that goes where this process's goes.
    """

    def __init__(self, environment: Mapping[str, str], say: Callable[[str], None] | None) -> None:
        self.environment, self.say = environment, say
        self.task: Task | None = None
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if say is None else subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self._told = b""

    @property
    def answers(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def begin(self, task: Task) -> None:
        """Have it do a task. One that has died shows when its answer is waited for."""
        self.task = task
        assert self.process.stdin is not None
        line = json.dumps(task.arguments).encode() + b"\n"
        try:
            while line:
                line = line[self.process.stdin.write(line) :]
        except BrokenPipeError:
            pass

    def answer(self) -> dict | None:
        """What it says of its task, a warning or its end, which must be readable; None: it has died."""
        line = self.answers.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def pass_on(self) -> None:
        """Say what is readable of its stderr, as far as the lines are whole."""
        assert self.process.stderr is not None and self.say is not None
        more = os.read(self.process.stderr.fileno(), 65536)
        *lines, self._told = (self._told + (more or b"\n" * bool(self._told))).split(b"\n")
        for line in lines:
            title = f"{self.task.title}: " if self.task and line.strip() else ""
            self.say(title + line.decode(errors="replace").rpartition("\r")[2])
        if not more:
            raise EOFError

    def end(self) -> int:
        """End it, whatever it does; returns its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait()
        self.answers.close()
        if self.process.stderr is not None:
            self.process.stderr.close()
        return code


class LocalEngine:
    """See `scripts.launching.plan.Engine`. Processes start when there is something to do.

    A process that dies takes its task alone with it: another one does that once more, going on where it stopped.

    Args:
        slots: how many runs at once.
        say: told what processes say on stderr, what runs warn of, and that one died.
        devices: CUDA devices that processes are spread over; none: each sees what this process sees.
        workers: loader workers of each run, at most.
        environment: variables of processes; None: those of this one.
        passes_on: whether `say` is told what processes say, and not this process's stderr; None: of several.
    """

    def __init__(
        self,
        slots: int,
        say: Callable[[str], None],
        devices: Sequence[str] = (),
        workers: int = 0,
        environment: Mapping[str, str] | None = None,
        passes_on: bool | None = None,
    ) -> None:
        self.slots, self.say, self.devices, self.workers_each = slots, say, devices, workers
        self.several, self.on_gpu = slots > 1, None
        self.environment = {**os.environ} if environment is None else environment
        self.passes_on = slots > 1 if passes_on is None else passes_on
        self.workers: list[Worker] = []
        self.repeated: set[Task] = set()
        self.interrupted = False
        self.selector = selectors.DefaultSelector()

    def submit(self, task: Task) -> None:
        idle = (worker for worker in self.workers if worker.task is None)
        (next(idle, None) or self._start()).begin(task)

    def next_end(self) -> Ended | None:
        # stderr before the answers, so that what a task says comes before its end.
        ready = sorted(self.selector.select(SECONDS_BETWEEN_LOOKS), key=lambda found: found[0].data[1] == "answers")
        for key, _ in ready:
            worker, what = key.data
            if what == "stderr":
                try:
                    worker.pass_on()
                except EOFError:
                    self.selector.unregister(key.fileobj)
            elif ended := self._heard(worker, worker.answer()):
                return ended
        for worker in self.workers if not ready else ():
            # Its loader workers may hold its end of the pipe for seconds after it died.
            if worker.process.poll() is not None and (ended := self._heard(worker, None)):
                return ended
        return None

    def interrupt(self, number: int) -> None:
        self.interrupted = True
        for worker in self.workers:
            if worker.task is not None:
                worker.process.send_signal(number)

    def rest(self) -> None:
        pass  # a process that does nothing takes no core

    def close(self) -> None:
        for worker in list(self.workers):
            self._remove(worker)
        self.selector.close()

    def _start(self) -> Worker:
        environment = {**self.environment}
        if self.devices:
            taken = [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in self.workers]
            environment["CUDA_VISIBLE_DEVICES"] = min(self.devices, key=taken.count)
        worker = Worker(environment, self.say if self.passes_on else None)
        self.workers.append(worker)
        self.selector.register(worker.answers, selectors.EVENT_READ, (worker, "answers"))
        if worker.process.stderr is not None:
            self.selector.register(worker.process.stderr, selectors.EVENT_READ, (worker, "stderr"))
        return worker

    def _remove(self, worker: Worker) -> int:
        self.workers.remove(worker)
        for stream in (worker.answers, worker.process.stderr):
            if stream is not None and stream in {key.fileobj for key in self.selector.get_map().values()}:
                self.selector.unregister(stream)
        return worker.end()

    def _heard(self, worker: Worker, answer: dict | None) -> Ended | None:
        """What follows from a worker's answer, or from its death (None)."""
        if answer and "warning" in answer:
            self.say(answer["warning"])
            return None
        task, worker.task = worker.task, None
        code, error = (answer["code"], answer["error"]) if answer else (0, "")
        if not (answer and answer["fit"]):
            died = self._remove(worker)
            code = code if answer else died or 1
        if task is None:
            return None
        if answer is None:
            error = f"its process died ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
            if not self.interrupted and task not in self.repeated:
                self.repeated.add(task)
                self.say(f"{task.title}: {error}; once more, going on where it stopped")
                self.submit(task)
                return None
        return Ended(task, code, error)
