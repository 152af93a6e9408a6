"""Start-up of commands, before any other package is imported."""

import atexit
import gc
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.threads import use_sleeping_waits

REPOSITORY = Path(__file__).resolve().parent.parent
BUNDLED_DASSL = str(REPOSITORY / "compat")
CONFIG_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z][A-Z0-9_]*)+|SEED|VERBOSE|USE_CUDA|RESUME|OUTPUT_DIR")


def start_command() -> None:
    """Read file names as UTF-8 in any locale, let idle threads sleep, and make `import dassl` work."""
    if sys.getfilesystemencoding() != "utf-8":
        # Python selects the encoding of file names once, when it starts.
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    escape_unprintable(sys.stdout)
    prepare_imports()
    # Garbage collections would take 0.3 s of PyTorch's import, and 0.6 s when the process ends.
    gc.set_threshold(5000)
    atexit.register(gc.freeze)
    if find_spec("torch") is None:
        setup = REPOSITORY / "scripts" / "setup.sh"
        sys.exit(f"Error: {sys.executable} lacks PyTorch. `source {setup}` sets $PYTHON to a Python with all packages.")


def prepare_imports() -> None:
    """Let idle threads sleep, and make `import dassl` work: an installed Dassl, else the core in compat/.

    SPG_DASSL=bundled prefers our core to an installed Dassl.
    """
    use_sleeping_waits()
    if BUNDLED_DASSL not in sys.path:
        is_first = os.environ.get("SPG_DASSL") == "bundled"
        sys.path.insert(0 if is_first else len(sys.path), BUNDLED_DASSL)


def check_utf8() -> None:
    """Raise UserError if file names are not read as UTF-8, which would change class names and prompts."""
    if (found := sys.getfilesystemencoding()) != "utf-8":
        raise UserError(f"LC_ALL: Python reads file names as {found}, not as UTF-8. Start it with PYTHONUTF8=1.")


def escape_unprintable(stream: Any, encoding: str | None = None, errors: str = "backslashreplace") -> None:
    """Let a text stream write characters that its encoding lacks: as escapes, or as `errors` in str.encode says."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding=encoding, errors=errors)


def split_at_key(words: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line before its first config key, such as OPTIM.MAX_EPOCH."""
    index = next((i for i, word in enumerate(words) if CONFIG_KEY.fullmatch(word)), len(words))
    return words[:index], words[index:]
