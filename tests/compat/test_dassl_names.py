"""Names that Dassl's clients import exist, or their import raises an explanation."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import dassl
import pytest
from dassl.left_out import LEFT_OUT
from dassl.utils import UserError

COMPAT = Path(dassl.__file__).parents[1]
TABLE = (COMPAT / "NAMES.md").read_text(encoding="utf-8")
NAMES = re.findall(r"^\| `(dassl[\w.]*)` \| (`.*`) \|$", TABLE.partition("## Left out")[0], re.MULTILINE)


@pytest.mark.parametrize(("module", "names"), NAMES)
def test_names_of_clients_are_importable(module, names):
    found = importlib.import_module(module)
    assert [name for name in names.replace("`", "").split() if not hasattr(found, name)] == []


@pytest.mark.parametrize(
    "line",
    [
        "import dassl.engine.da.mcd",
        "from dassl.engine import Vanilla, da",
        "from dassl.data.datasets import PACS",
        "from dassl.metrics import cosine_distance",
        "from dassl.modeling import build_network",
        "from dassl.modeling.backbone import resnet18",
        "from dassl.modeling.ops import MixStyle",
    ],
)
def test_omitted_names_raise_an_explaining_import_error(line):
    with pytest.raises(ImportError, match="is not here: .* leaves out Dassl's own .* Install Dassl.pytorch") as error:
        exec(line)
    assert isinstance(error.value, UserError)


def test_unknown_names_raise_the_usual_import_error():
    for line in ("from dassl.engine import Vanila", "import dassl.nothing"):
        with pytest.raises(ImportError, match="cannot import name|No module named"):
            exec(line)


def test_names_md_lists_all_omitted_names():
    assert len(NAMES) == 24
    for module, (_, names) in LEFT_OUT.items():
        assert f"`{module}`" in TABLE
        assert all(name in TABLE for name in names.split())


def test_importing_the_config_does_not_import_torch():
    code = "import sys, dassl.config; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(COMPAT)}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0
