"""The first import of every command: makes the repository's packages importable from any folder."""

import sys
from pathlib import Path

# Before the folder of the commands, where Python looks first: its datasets.py is not the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.startup import start_command

start_command()
