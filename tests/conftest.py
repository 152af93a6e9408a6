"""What all tests share: import paths, and ../shared where there is one."""

import os
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
os.environ.setdefault("SPG_DASSL", "bundled")
sys.path.insert(0, str(REPOSITORY))
sys.path.insert(0, str(REPOSITORY / "compat"))

SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def shared():
    """The folder of real images and published files that lies beside the checkout of developers and CI."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (real PACS images and published files), which is not here")
    return SHARED
