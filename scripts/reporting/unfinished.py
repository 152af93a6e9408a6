"""What was asked for below folders and has no results yet: runs that failed, wait, or are being done."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from scripts.launching.status import DONE, FAILED, State, find_states


def unfinished(folders: Iterable[str | Path]) -> list[str]:
    """A line for each method, backbone and config that has such runs, by the folder of those."""
    lines = []
    for folder in map(Path, folders):
        whole = folder.resolve()
        groups: dict[Path, list[State]] = defaultdict(list)
        for state in find_states(whole):
            groups[state.folder.parent.parent].append(state)
        for above, states in groups.items():
            name = folder / above.relative_to(whole) if above.is_relative_to(whole) else above
            if any(state.what != DONE for state in states):
                lines.append(f"{name}: {_counted(states)}{_failures(above, states)}.")
    return lines


def _counted(states: list[State]) -> str:
    """ "4 of 6 runs done, 1 failed, 1 waiting"."""
    whats = [state.what for state in states]
    others = [f"{whats.count(what)} {what}" for what in sorted({*whats} - {DONE})]
    return ", ".join([f"{whats.count(DONE)} of {len(whats)} run{'s' * (len(whats) != 1)} {DONE}", *others])


def _failures(above: Path, states: list[State]) -> str:
    """What is known of each that failed."""
    found = [f"{state.folder.relative_to(above)}: {state.detail}" for state in states if state.what == FAILED]
    return f" ({'; '.join(found)})" if found else ""
