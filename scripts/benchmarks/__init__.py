"""The parts of scripts/benchmark.py. They import tests/reference.py as `reference`."""

import sys

from common.startup import REPOSITORY

sys.path.append(str(REPOSITORY / "tests"))
