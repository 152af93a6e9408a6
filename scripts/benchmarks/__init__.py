"""The parts of scripts/benchmark.py. Their reference is that of the tests."""

import sys

from common.startup import REPOSITORY

sys.path.append(str(REPOSITORY / "tests"))
