"""Run jobs in parallel: start each when it is ready, retry it if its process dies, skip those of other launchers."""

import contextlib
import signal
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from typing import Any, Protocol

from common.interruption import Interrupted
from common.locks import run_owner
from scripts.launching.jobs import Job
from scripts.launching.run_job import BUSY, CRASHED, Outcome, save_failure

SECONDS_BETWEEN_LOOKS = 1.0  # at a job of another process


class Engine(Protocol):
    """Runs jobs in other processes, at most `slots` at once; a future raises BrokenExecutor if the process dies.

    `interrupt` makes every running job finish its step and end, a second time end at once.
    """

    @property
    def slots(self) -> int: ...
    def submit(self, job: Job) -> Future[Outcome]: ...
    def interrupt(self, number: int) -> None: ...
    def close(self) -> None: ...


class Report:
    """Prints the lines of a launcher above its progress bar; `failed` has the reasons of failures by job."""

    def __init__(self, bar: Any) -> None:
        self.bar, self.failed, self.started, self.warned = bar, dict[Job, str](), dict[Job, float](), set[str]()

    def say(self, line: str, stream: Any = None) -> None:
        self.bar.write(line, file=stream or sys.stdout)
        sys.stdout.flush()

    def start(self, job: Job) -> None:
        if job not in self.started:
            self.started[job] = time.time()
            self.say(f"{job.title}: started, log in {job.folder}")

    def end(self, job: Job, outcome: Outcome) -> None:
        for line in outcome.warnings:
            if line not in self.warned:  # runs on one data set have the same warnings
                self.warned.add(line)
                self.say(line, sys.stderr)
        if outcome.code:
            self.fail(job, f"failed with exit code {outcome.code}: {outcome.reason}")
            return
        seconds = time.time() - self.started.get(job, time.time())
        self.say(f"{job.title}: {outcome.reason or f'done in {seconds:.0f} s'}")
        self.bar.update()

    def fail(self, job: Job, reason: str) -> None:
        self.failed[job] = reason
        self.say(f"{job.title}: {reason}")
        self.bar.update()


def run_jobs(jobs: Sequence[Job], engine: Engine, report: Report) -> None:
    """Run jobs by an engine, in their order where possible.

    Jobs that another process runs come last; if that process dies, this launcher runs them.

    Raises:
        Interrupted: SIGINT or SIGTERM came, and all running jobs have ended.
    """
    waiting, running = list(jobs), dict[Future[Outcome], Job]()
    looked: dict[Job, float] = {}  # when another process was found to run it
    retried: set[Job] = set()

    def skip(job: Job, owner: str) -> None:
        if job not in looked:
            report.say(f"{job.title}: skipped for now, {owner} runs it")
        looked[job] = time.monotonic()

    with _received_signals() as received:
        passed_on = 0
        while running or (waiting and not received):
            while not received and len(running) < engine.slots:
                job = _next_job(waiting, running.values(), looked, report)
                if job is None:
                    break
                if owner := run_owner(job.folder):
                    skip(job, owner)
                    continue
                waiting.remove(job)
                if job.is_finished():
                    report.end(job, Outcome(0, "finished by another process"))
                    continue
                report.start(job)
                running[engine.submit(job)] = job
            for number in received[passed_on:]:
                engine.interrupt(number)
                passed_on += 1
            if not running:
                time.sleep(SECONDS_BETWEEN_LOOKS / 4)
            for future in wait(running, SECONDS_BETWEEN_LOOKS / 4, FIRST_COMPLETED).done:
                job, outcome = running.pop(future), _outcome(future)
                has_died = outcome.code < 0
                if received and outcome.code:
                    report.say(f"{job.title}: interrupted; the same command resumes it")
                elif outcome.code == BUSY:
                    skip(job, outcome.reason)
                    waiting.append(job)
                elif has_died and job not in retried:
                    report.say(f"{job.title}: {outcome.reason}; one retry")
                    retried.add(job)
                    waiting.insert(0, job)
                else:
                    report.end(job, save_failure(job.folder, outcome._replace(code=CRASHED)) if has_died else outcome)
    if received:
        raise Interrupted(received[0])


def _next_job(waiting: list[Job], running: Collection[Job], looked: dict[Job, float], report: Report) -> Job | None:
    """The next job that can start, if any; drops tests whose training failed."""
    unfinished = {job.folder for job in (*waiting, *running)}
    for failed in list(report.failed):
        for job in [job for job in waiting if job.needs == failed.folder]:
            waiting.remove(job)
            report.fail(job, f"skipped: it depends on {failed.title}, which failed")
    recent = time.monotonic() - SECONDS_BETWEEN_LOOKS
    ready = [job for job in waiting if job.needs not in unfinished and looked.get(job, 0.0) < recent]
    return min(ready, key=lambda job: looked.get(job, 0.0), default=None)


def _outcome(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except BrokenExecutor:
        return Outcome(-1, "its process died (killed, or out of memory)")
    except BaseException as error:  # KeyboardInterrupt comes from a process that was just starting
        text = str(error).strip() or type(error).__name__
        print(text, file=sys.stderr)
        return Outcome(-1, text.splitlines()[-1])


@contextlib.contextmanager
def _received_signals() -> Iterator[list[int]]:
    """A list of the SIGINTs and SIGTERMs that arrive within the block."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
