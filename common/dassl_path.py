"""Which Dassl is imported: an installed one, else the core that lies in compat/."""

import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
BUNDLED = str(REPOSITORY / "compat")


def use_dassl() -> None:
    """Make `import dassl` work; SPG_DASSL=bundled prefers our core to an installed Dassl."""
    if BUNDLED in sys.path:
        return
    if os.environ.get("SPG_DASSL") == "bundled":
        sys.path.insert(0, BUNDLED)
    else:
        sys.path.append(BUNDLED)
