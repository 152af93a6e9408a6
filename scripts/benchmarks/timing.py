"""Time two calls side by side; a row of the table."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

TOLERANCE = 1e-4
LONG = 4.0  # s: a first call of this length needs no warm-up and no repeats

T = TypeVar("T")
S = TypeVar("S")


@dataclass
class Row:
    """One line of the table.

    Attributes:
        name: the measurement.
        ours, reference: values in `unit`; a reference of None: no ratio.
        unit: "ms", "s", "images/s" or "GB".
        goal: the smallest ratio to reach, or for "GB" the largest value.
        difference: largest difference between the outputs; None: no outputs.
        note: how it was measured.
    """

    name: str
    ours: float
    reference: float | None
    unit: str
    goal: float | None = None
    difference: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times faster ours is; None without a reference."""
        if self.reference is None:
            return None
        return self.ours / self.reference if self.unit == "images/s" else self.reference / self.ours

    @property
    def agrees(self) -> bool:
        """Whether the outputs are equal within the tolerance; NaN is not."""
        return self.difference is None or self.difference <= TOLERANCE

    def cells(self) -> list[str]:
        """The row as text."""

        def figure(value: float | None, unit: str) -> str:
            return "" if value is None else f"{value:,.3g}{unit}" if value < 1000 else f"{value:,.0f}{unit}"

        goal = figure(self.goal, "x") if self.unit != "GB" else f"< {self.goal:g} GB"
        ours, reference = (figure(value, f" {self.unit}") for value in (self.ours, self.reference))
        ratio = "" if self.ratio is None else f"{self.ratio:.1f}x"
        return [self.name, ours, reference, ratio, goal, "" if self.difference is None else f"{self.difference:.1e}"]


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """The duration of a call in s, and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def median_pair(
    ours: Callable[[], T], reference: Callable[[], S], repeats: int
) -> tuple[tuple[float, T], tuple[float, S]]:
    """Median durations (s) and last results of two calls in turns, so that other load slows down both.

    The short call, ours, runs before and after each run of the reference.
    """
    timed(ours)
    seconds, expected = timed(reference)
    their_times = [seconds] if seconds > LONG else []
    seconds, found = timed(ours)
    our_times = [seconds]
    for _ in range(0 if their_times else repeats):
        seconds, expected = timed(reference)
        their_times.append(seconds)
        our_times.append(timed(ours)[0])
    our_times += [timed(ours)[0] for _ in range(3 - len(our_times))]
    return (statistics.median(our_times), found), (statistics.median(their_times), expected)


def difference(ours: Tensor, reference: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape, in units of the reference's largest entry above 1."""
    if ours.shape != reference.shape:
        raise ValueError(f"outputs have shapes {tuple(ours.shape)} and {tuple(reference.shape)}")
    gap, largest = (ours.detach() - reference.detach()).abs().max(), reference.detach().abs().max()
    return (gap / largest.clamp(min=1)).item()
