"""Prepare the Python that runs a command, before anything that needs more than a Python is imported."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any

from common.dassl_path import REPOSITORY
from common.errors import UserError

OLDEST = (3, 10)
VENV = REPOSITORY / ".venv" / "bin" / "python"


def prepare_python() -> None:
    """Read files and names as UTF-8 whatever the locale, and let the terminal take any text.

    A Python that is too old, or lacks a package, ends with a message and no traceback.
    """
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:2]))
        needed = ".".join(map(str, OLDEST))
        sys.exit(f"Error: {sys.executable} is Python {found}, and {needed} or newer is needed. {_mend()}")
    if not _reads_utf8():
        # Python chooses the encoding of file names once, as it starts.
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    take_any_text(sys.stdout)
    sys.excepthook = _tell_missing_package


def check_utf8() -> None:
    """Raise UserError if file names are not read as UTF-8: class names, and so prompts, would be other ones."""
    if not _reads_utf8():
        found = sys.getfilesystemencoding()
        raise UserError(f"LC_ALL: Python reads file names as {found}, not as UTF-8. Start it with PYTHONUTF8=1.")


def take_any_text(stream: Any) -> None:
    """Let a text stream write characters that its encoding lacks as escapes."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def print_names(stream: Any) -> None:
    """Let a text stream write UTF-8, and file names as their bytes on disk."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def _reads_utf8() -> bool:
    return sys.getfilesystemencoding() == "utf-8"


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
