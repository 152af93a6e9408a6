"""What methods cost: how many parameters they train, and how long that takes."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What a method costs.

    Attributes:
        n_trained: numbers of parameters that training changes, stage by stage, () of methods that learn nothing;
            several where runs differ, none where no run says.
        seconds: of training, the mean over those runs that say; None where none does.
        reused: what some of these runs had not to make, since earlier ones had.
    """

    n_trained: tuple[tuple[int, ...], ...]
    seconds: float | None
    reused: tuple[str, ...]

    @property
    def trained_text(self) -> str:
        """ "2,048", "6,144 + 2,600,000" of two stages, "0", "-"."""
        texts = (" + ".join(f"{n:,}" for n in stages) or "0" for stages in self.n_trained)
        return " or ".join(texts) or "-"

    @property
    def time_text(self) -> str:
        """ "41 s", "≥ 41 s" without what was reused, "-"."""
        if self.seconds is None:
            return "-"
        return f"{'≥ ' if self.reused else ''}{duration(self.seconds)}"


def cost_of(runs: Iterable[Mapping[str, Any]]) -> Cost:
    """The Cost of a method by its runs, of which those of older versions may not say."""
    runs = list(runs)
    n_trained = (tuple(run["n_trained"]) for run in runs if run.get("n_trained") is not None)
    timed = [run for run in runs if run.get("train_seconds") is not None]
    return Cost(
        tuple(dict.fromkeys(n_trained)),
        statistics.mean(run["train_seconds"] for run in timed) if timed else None,
        tuple(sorted({what for run in timed for what in run.get("train_reused", ())})),
    )


def check_cost(run: Mapping[str, Any]) -> None:
    """Raise ValueError if what a result says of its costs is of the wrong kind."""
    stages, seconds, reused = (run.get(name) for name in ("n_trained", "train_seconds", "train_reused"))
    if not (stages is None or (isinstance(stages, list) and all(isinstance(n, int) for n in stages))):
        raise ValueError("its n_trained is no list of numbers")
    if not (seconds is None or isinstance(seconds, (int, float))):
        raise ValueError("its train_seconds is no number")
    if not (reused is None or (isinstance(reused, list) and all(isinstance(what, str) for what in reused))):
        raise ValueError("its train_reused is no list of texts")


def duration(seconds: float) -> str:
    """ "4.2 s", "41 s", "12 min", "3.5 h"."""
    for unit, length in (("s", 1), ("min", 60)):
        if seconds < 99.5 * length:
            return f"{seconds / length:.{0 if seconds >= 9.95 * length else 1}f} {unit}"
    return f"{seconds / 3600:.1f} h"


def cost_notes(costs: Mapping[str, Cost]) -> list[str]:
    """What has to be said of the columns of costs: lines, none where no run says any."""
    if not any(cost.n_trained or cost.seconds is not None for cost in costs.values()):
        return []
    stages = any(len(of_run) > 1 for cost in costs.values() for of_run in cost.n_trained)
    lines = ["trained: number of parameters that training changes."]
    if stages:
        lines[0] = lines[0].removesuffix(".") + (
            "; of two stages, those of stage I (the prompt labels of all source domains) + those of stage II."
        )
    if any(cost.seconds is not None for cost in costs.values()):
        lines.append(
            f"training: time until the end of the last epoch, with validation{' and stage I' * stages} and without the "
            "test, mean over runs; it depends on the machine and on what else ran there."
        )
    reused: dict[tuple[str, ...], list[str]] = {}
    for method, cost in costs.items():
        if cost.seconds is not None and cost.reused:
            reused.setdefault(cost.reused, []).append(method)
    for what, methods in reused.items():
        lines.append(
            f"≥: some runs of {', '.join(methods)} took over {' and '.join(what)} of earlier runs; making them is not "
            "in their time."
        )
    return lines
