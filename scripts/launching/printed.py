"""The train.py commands of what is not done, for those who start them by other means."""

import shlex
from collections.abc import Iterator, Sequence

from scripts.launching.launch import Launch
from scripts.launching.plans import Run
from scripts.launching.shared import plan_shared

TRAININGS, RUNS = "trainings whose models others test", "runs"
ORDER = (
    "features of images that several runs need, in parts",
    "features of images that several runs need",
    "prompt labels that several runs need",
    TRAININGS,
    RUNS,
)


def printed_commands(pairs: Sequence[tuple[Launch, Run]]) -> Iterator[str]:
    """The train.py command of each run, a line each, in an order that they can have.

    Where several runs need the same, what makes it comes first, and lines of comment say what has to end before what
    comes next begins.

    Args:
        pairs: runs that are to be done, each with its launch.
    """
    groups: dict[str, list[str]] = {}
    for thing in plan_shared(pairs, writes=False).shared:
        what = "prompt labels" if "--learn-labels" in thing.flags else "features of images"
        stage = f"{what} that several runs need" + (", in parts" if "--part" in thing.flags else "")
        command = thing.launch.command_from_anywhere(thing.run, thing.flags)
        groups.setdefault(stage, []).append(shlex.join(command))
    trainings = {run.model_dir for _, run in pairs}
    for one, run in pairs:
        stage = TRAININGS if run.folder in trainings else RUNS
        groups.setdefault(stage, []).append(shlex.join(one.command_from_anywhere(run)))
    for stage in sorted(groups, key=ORDER.index):
        if len(groups) > 1:
            yield f"# {stage}" + ("" if stage == RUNS else ": all of these before what comes below")
        yield from groups[stage]
