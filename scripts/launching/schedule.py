"""Run jobs in parallel: start each one when it is ready, retry it if its process dies, skip what others run."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from typing import Any, Protocol

from common.interruption import Interrupted
from common.run.lock import holder
from scripts.launching.jobs import Job
from scripts.launching.run_job import BUSY, CRASHED, Outcome, save_failure

SECONDS_BETWEEN_LOOKS = 1.0  # at a job of another process


class Engine(Protocol):
    """Runs jobs in other processes."""

    @property
    def slots(self) -> int:
        """Number of parallel jobs."""

    def submit(self, job: Job) -> Future[Outcome]:
        """Start a job. Its future raises BrokenExecutor if its process dies."""

    def interrupt(self, number: int) -> None:
        """Make every running job finish its step and end; a second time, end at once."""


class Report:
    """Lines and progress bar of a launcher.

    Attributes:
        failed: titles of the jobs that failed, with the reason.
    """

    def __init__(self, bar: Any) -> None:
        self.bar, self.failed, self.warned = bar, dict[Job, str](), set[str]()
        self.started: dict[Job, float] = {}

    def say(self, line: str, error: bool = False) -> None:
        """Print a line above the bar."""
        self.bar.write(line, file=sys.stderr if error else sys.stdout)
        sys.stdout.flush()

    def skip(self, job: Job) -> None:
        """Report a job that was finished before this launcher started."""
        self.say(f"{job.title}: already finished, in {job.folder}")
        self.bar.initial += 1  # it must not change the remaining time
        self.bar.n += 1
        self.bar.refresh()

    def start(self, job: Job) -> None:
        """Report the start of a job."""
        log = job.folder / "log.txt"  # Dassl adds the time to the name of a second log
        self.started[job] = time.time()
        self.say(f"{job.title}: {f'resumed, log in the newest {log}-*' if log.is_file() else f'log in {log}'}")

    def end(self, job: Job, outcome: Outcome | None = None) -> None:
        """Report the end of a job; no outcome: another launcher ran it."""
        for line in outcome.warnings if outcome else ():
            if line not in self.warned:  # runs on one data set have the same warnings
                self.warned.add(line)
                self.say(line, error=True)
        if outcome is None:
            self.say(f"{job.title}: finished by another process, in {job.folder}")
        elif outcome.code:
            self.fail(job, f"failed with exit code {outcome.code}: {outcome.reason}")
            return
        else:
            self.say(f"{job.title}: done in {time.time() - self.started.get(job, time.time()):.0f} s")
        self.bar.update()

    def fail(self, job: Job, reason: str) -> None:
        """Report a job that failed, or was skipped."""
        self.failed[job] = reason
        self.say(f"{job.title}: {reason}")
        self.bar.update()


def run_jobs(jobs: Sequence[Job], engine: Engine, report: Report) -> None:
    """Run jobs by an engine, in their order where possible.

    A job that another process runs is looked at again when no other job is left to start.

    Raises:
        Interrupted: SIGINT or SIGTERM came, and all running jobs have ended.
    """
    waiting, running = list(jobs), dict[Future[Outcome], Job]()
    elsewhere: dict[Job, float] = {}  # when it was last looked at
    retried: set[Job] = set()
    passed_on = 0
    with _received_signals() as received:
        while running or (waiting and not received):
            while not received and len(running) < engine.slots:
                job = _next_job(waiting, running.values(), elsewhere, report)
                if job is None:
                    break
                if owner := holder(job.folder):
                    if job not in elsewhere:
                        report.say(f"{job.title}: {owner} runs it; skipped for now")
                    elsewhere[job] = time.monotonic()
                    continue
                waiting.remove(job)
                if job.is_finished():
                    report.end(job)
                    continue
                if job not in report.started:
                    report.start(job)
                running[engine.submit(job)] = job
            for number in received[passed_on:]:
                engine.interrupt(number)
                passed_on += 1
            if not running:
                time.sleep(SECONDS_BETWEEN_LOOKS / 4)
                continue
            for future in wait(running, SECONDS_BETWEEN_LOOKS / 4, FIRST_COMPLETED).done:
                job = running.pop(future)
                outcome = _outcome(future)
                if received and outcome.code:
                    report.say(f"{job.title}: interrupted; the same command resumes it")
                elif outcome.code == BUSY:
                    elsewhere[job] = time.monotonic()
                    report.say(f"{job.title}: {outcome.reason} runs it; skipped for now")
                    waiting.append(job)
                elif outcome.code < 0 and job not in retried:
                    retried.add(job)
                    report.say(f"{job.title}: {outcome.reason}; it is resumed once")
                    waiting.insert(0, job)
                else:
                    if outcome.code < 0 or outcome.code == CRASHED:
                        save_failure(job.folder, outcome := outcome._replace(code=CRASHED))
                    report.end(job, outcome)
    if received:
        raise Interrupted(received[0])


def _next_job(waiting: list[Job], running: Any, elsewhere: dict[Job, float], report: Report) -> Job | None:
    """The next job that can start; jobs of other processes come last. Skips jobs whose training failed."""
    unfinished = {job.folder for job in (*waiting, *running)}
    for job in [job for job in waiting if job.needs and job.needs not in unfinished]:
        failed = [other.title for other in report.failed if other.folder == job.needs]
        if failed:
            waiting.remove(job)
            report.fail(job, f"skipped: it depends on {failed[0]}, which failed")
    recent = time.monotonic() - SECONDS_BETWEEN_LOOKS
    ready = [job for job in waiting if job.needs not in unfinished and elsewhere.get(job, 0) < recent]
    return min(ready, key=lambda job: elsewhere.get(job, 0), default=None)


def _outcome(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except BrokenExecutor:
        return Outcome(-1, "its process died (killed, or out of memory)")
    except BaseException as error:  # KeyboardInterrupt comes from a process that was just starting
        text = str(error).strip() or type(error).__name__
        print(text, file=sys.stderr)
        return Outcome(CRASHED, text.splitlines()[-1])


@contextlib.contextmanager
def _received_signals() -> Iterator[list[int]]:
    """A list of the SIGINTs and SIGTERMs that arrive within the block."""
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
