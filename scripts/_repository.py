"""The first import of every command: what makes the repository's packages importable, wherever it is started."""

import sys
from pathlib import Path
from types import TracebackType

# Before the folder of the commands, where Python looks first: its datasets.py is not the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.dassl_path import REPOSITORY, use_dassl
from common.threads import settle_waiting


def tell_missing_package(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Say in one line that this Python lacks a package; show anything else as Python does."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    ours = any((REPOSITORY / name).exists() for name in (package, f"{package}.py"))
    if not package or ours:
        sys.__excepthook__(kind, error, traceback)
        return
    venv, requirements = REPOSITORY / ".venv" / "bin" / "python", REPOSITORY / "requirements.txt"
    mend = f"Start this by {venv}" if venv.is_file() else f"{sys.executable} -m pip install -r {requirements} gets it"
    print(f"Error: {sys.executable} lacks the package {package}. {mend}.", file=sys.stderr)


sys.excepthook = tell_missing_package
settle_waiting()  # which counts only before NumPy is imported
use_dassl()
