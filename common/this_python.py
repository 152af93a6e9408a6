"""Whether the Python that runs a command is one that can; it is asked before anything that needs more than a Python."""

from __future__ import annotations

import sys
from types import TracebackType

from common.dassl_path import REPOSITORY

OLDEST = (3, 10)
VENV = REPOSITORY / ".venv" / "bin" / "python"


def tell_what_python_lacks() -> None:
    """End with a message, and no traceback, where this Python is too old, at once, or when it lacks a package."""
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:2]))
        needed = ".".join(map(str, OLDEST))
        sys.exit(f"Error: {sys.executable} is Python {found}, and {needed} or newer is needed. {_mend()}")
    sys.excepthook = _tell_missing_package


def _mend() -> str:
    """What to start in place of this Python."""
    if VENV.is_file() and sys.executable != str(VENV):
        return f"Start this by {VENV}."
    setup = REPOSITORY / "scripts" / "setup.sh"
    return f"Start this by a Python that has all of requirements.txt; one is found, or made, by: bash {setup}"


def _tell_missing_package(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Say in one line that this Python lacks a package; show anything else as Python does."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    ours = any((REPOSITORY / name).exists() for name in (package, f"{package}.py"))
    if not package or ours:
        sys.__excepthook__(kind, error, traceback)
        return
    print(f"Error: {sys.executable} lacks the package {package}. {_mend()}", file=sys.stderr)
