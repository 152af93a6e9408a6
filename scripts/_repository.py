"""The first import of every command: what makes the repository's packages importable, wherever it is started."""

import sys
from pathlib import Path

# Before the folder of the commands, where Python looks first: its datasets.py is not the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.this_python import prepare_python

prepare_python()

from common.dassl_path import use_dassl  # noqa: E402
from common.threads import use_sleeping_waits  # noqa: E402

use_sleeping_waits()  # which counts only before NumPy is imported
use_dassl()
