"""The commands, and in folders the parts that they are made of."""

import sys
from pathlib import Path

# Where a command that is imported (scripts.results) finds _repository, as one that is started does. Last, so that none
# of the commands takes the name of a package.
sys.path.append(str(Path(__file__).resolve().parent))
