"""Parts of the benchmark: how time and memory are measured, and what a measured pair is."""

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # a process whose memory is measured imports nothing that it does not use
    from torch import Tensor

TOLERANCE = 1e-4
# A first call that takes this long (s) is no longer about warming up: it counts, and is the only one.
LONG = 4.0

T = TypeVar("T")
S = TypeVar("S")


@dataclass
class Row:
    """One line of the table.

    Attributes:
        what: what was measured.
        ours, reference: the measured values, in `unit`; None where there is none.
        unit: "ms", "s", "images/s", "GB", "times".
        goal: what the project wants to reach: a least ratio; for "GB", or without a reference, the most.
        difference: largest difference between both sides' outputs; None for figures without a pair.
        note: what the reader must know of how it was measured.
        tolerance: up to which difference both sides agree.
    """

    what: str
    ours: float
    reference: float | None
    unit: str
    goal: float | None = None
    difference: float | None = None
    note: str = ""
    tolerance: float = TOLERANCE

    @property
    def ratio(self) -> float | None:
        """How many times better ours is; None without a reference."""
        if self.reference is None:
            return None
        return self.ours / self.reference if self.unit == "images/s" else self.reference / self.ours

    @property
    def agrees(self) -> bool:
        """Whether both sides' outputs are the same; a NaN is no agreement."""
        return self.difference is None or self.difference <= self.tolerance

    @property
    def is_bound(self) -> bool:
        """Whether the goal is the most that ours may be."""
        return self.unit == "GB" or self.reference is None

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None without a goal."""
        if self.goal is None:
            return None
        if self.is_bound:
            return self.ours <= self.goal
        return self.ratio is not None and self.ratio >= self.goal

    def record(self) -> dict[str, Any]:
        """The row as plain data."""
        return {**asdict(self), "ratio": self.ratio, "agrees": self.agrees, "reached": self.reached}


def median_seconds(call: Callable[[], T], repeats: int) -> tuple[float, T]:
    """Median time of a call in s, after a warm-up, and what the last call returned."""
    seconds, result = timed(call)
    if seconds > LONG:
        return seconds, result
    times = []
    for _ in range(repeats):
        seconds, result = timed(call)
        times.append(seconds)
    return statistics.median(times), result


def median_pair(
    ours: Callable[[], T], reference: Callable[[], S], repeats: int
) -> tuple[tuple[float, T], tuple[float, S]]:
    """Median times in s of two calls that take turns, so that a busy spell of the machine meets both.

    Ours, the short one, runs before and after each run of the reference.

    Returns:
        ((s, last result) of ours, (s, last result) of the reference).
    """
    timed(ours)
    seconds, expected = timed(reference)
    their_times, our_times = [seconds] if seconds > LONG else [], []
    seconds, found = timed(ours)
    our_times.append(seconds)
    for _ in range(0 if their_times else repeats):
        seconds, expected = timed(reference)
        their_times.append(seconds)
        seconds, found = timed(ours)
        our_times.append(seconds)
    if len(our_times) < 3:
        our_times += [timed(ours)[0] for _ in range(2)]
    return (statistics.median(our_times), found), (statistics.median(their_times), expected)


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Time of one call in s, and what it returned."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def difference(ours: "Tensor", reference: "Tensor") -> float:
    """Largest absolute difference of two tensors of one shape."""
    if ours.shape != reference.shape:
        raise ValueError(f"outputs have shapes {tuple(ours.shape)} and {tuple(reference.shape)}")
    return (ours.detach().float() - reference.detach().float()).abs().max().item()


def peak_memory_gb(call: Callable, *args: Any) -> float:
    """Peak resident memory in GB (2^30 bytes) of a fresh process that runs a function of a module."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_and_report, args=(sender, call, args))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise MemoryError(f"{call.__name__} ended without a result; was it killed for its memory?") from None
    finally:
        process.join()


def _run_and_report(sender: Connection, call: Callable, args: tuple) -> None:
    call(*args)
    sender.send(_peak_bytes() / 2**30)


def _peak_bytes() -> int:
    """Peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux, ru_maxrss begins at what the parent process had; this does not.
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, kB elsewhere
    return peak * (1 if sys.platform == "darwin" else 1024)
