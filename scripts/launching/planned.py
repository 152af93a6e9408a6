"""plan.json of an output folder: which runs were asked for there, and which of them failed."""

from pathlib import Path

from common.held import held

from common.files import read_json, write_json

PLAN_FILE = "plan.json"
FAILED_FILE = "failed.json"  # in a run's launch/ folder: "exit_code", and "error" where it is known


def note_planned(output: Path, runs: dict[Path, bool]) -> None:
    """Add runs to the plan of an output folder.

    Args:
        output: the folder.
        runs: whether each is tested, by its folder.
    """
    path = output / PLAN_FILE
    with held(path, "the plan"):
        known = read_planned(output)
        planned = {**known, **runs}
        if planned != known:
            write_json(path, {"runs": {folder.relative_to(output).as_posix(): t for folder, t in planned.items()}})


def read_planned(output: Path) -> dict[Path, bool]:
    """Whether each planned run is tested, by its folder; {} where there is no plan, or it cannot be read."""
    try:
        return {output / name: tested for name, tested in read_json(output / PLAN_FILE)["runs"].items()}
    except (OSError, ValueError, KeyError, AttributeError):
        return {}
