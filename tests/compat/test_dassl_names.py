"""Every name of Dassl that a client can import is here, or says why it is not."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dassl.left_out import LEFT_OUT
from dassl.utils import UserError

HERE = Path(__file__).parent
OWN_LIST = HERE / "dassl_names.txt"
COMPAT = HERE.parents[1] / "compat"
# A list made from the original, with the defaults of parameters and the names of methods; not part of this repository.
FULL_LIST = HERE.parents[2] / "shared" / "dassl_names.txt"


def is_left_out(module):
    return any(module == package or module.startswith(f"{package}.") for package in LEFT_OUT)


def entries(path):
    """(module, line) for each name of a list."""
    module = None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# Left out of this list"):
            break
        if line.startswith("    "):
            yield module, line.strip()
        elif line and not line.startswith("#"):
            module = line


def parameters(function):
    """Names and defaults of the parameters that can be given by position."""
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in found if p.kind is p.POSITIONAL_OR_KEYWORD}


def promised(text):
    """Names and defaults of the parameters in a line such as `f(a, b=1)`; None for a line without."""
    match = re.match(r"\w+(\(.*?\))(:|$)", text)
    if match is None:
        return None
    arguments = ast.parse(f"def f{match[1]}: pass").body[0].args
    names = [argument.arg for argument in arguments.args]
    defaults = [ast.literal_eval(default) for default in arguments.defaults]
    first = len(names) - len(defaults)
    return {name: defaults[i - first] if i >= first else inspect.Parameter.empty for i, name in enumerate(names)}


@pytest.mark.parametrize("line", [f"{module} {text}" for module, text in entries(OWN_LIST)])
def test_names_of_our_own_list(line):
    module, text = line.split(" ", 1)
    found = getattr(importlib.import_module(module), re.match(r"\w+", text)[0])
    names = promised(text)
    if names is not None:
        assert list(parameters(found))[: len(names)] == list(names)


def test_names_of_the_full_list():
    if not FULL_LIST.is_file():
        pytest.skip("the full list of the original's names is not at ../shared/dassl_names.txt")
    modules = set()
    for module, text in entries(FULL_LIST):
        modules.add(module)
        if is_left_out(module):
            continue
        imported, is_class = text.startswith("(import) "), text.startswith("class ")
        text = text.removeprefix("(import) ").removeprefix("class ")
        found = getattr(importlib.import_module(module), re.match(r"\w+", text)[0])
        names = None if imported else promised(text)
        if names is None:
            continue
        own = parameters(found)
        assert list(own)[: len(names)] == list(names), (module, text)
        if not is_class:  # the list has no defaults of those
            assert {name: own[name] for name in names} == names, (module, text)
        for method in text.partition(": ")[2].split():
            assert hasattr(found, method), (module, text, method)
    own_modules = {module for module, _ in entries(OWN_LIST)}
    assert {module for module in modules if not is_left_out(module)} <= own_modules


# -- what is left out -------------------------------------------------------------------------------


@pytest.mark.parametrize("package", [*LEFT_OUT, "dassl.modeling.backbone.resnet"])
@pytest.mark.parametrize("below", ["", ".something"])
def test_packages_that_are_left_out_say_so(package, below):
    for kind in (ImportError, UserError):
        with pytest.raises(kind) as caught:
            importlib.import_module(package + below)
    assert str(caught.value).startswith(f"{package} is not here: this Dassl-compatible core leaves out Dassl's own ")
    assert "Install Dassl.pytorch" in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "from dassl.engine import Vanilla",
        "from dassl.engine import da",
        "from dassl.engine.dg import DDAIG",
        "from dassl.data.datasets import PACS",
        "from dassl.data.datasets.ssl import CIFAR10",
        "from dassl.modeling.backbone import resnet18",
        "from dassl.modeling.backbone.resnet import resnet18",
        "from dassl.modeling.ops import MixStyle",
        "import dassl.modeling.ops.mixup",
    ],
)
def test_names_that_are_left_out_say_so(line):
    with pytest.raises(ImportError, match="is not here: .* leaves out Dassl's own .* Install Dassl.pytorch"):
        exec(line)


@pytest.mark.parametrize(
    "line", ["from dassl.engine import Vanila", "import dassl.nothing", "from dassl.data.datasets import mine"]
)
def test_names_that_nobody_has_fail_as_usual(line):
    with pytest.raises(ImportError, match="cannot import name|No module named"):
        exec(line)
    import dassl.engine

    assert not hasattr(dassl.engine, "Vanila")
    assert not hasattr(dassl.engine, "__wrapped__")


def test_a_left_out_package_leaves_the_import_in_one_line():
    code = (
        "from dassl.utils import UserError\n"
        "try:\n    import dassl.modeling.ops\n"
        "except UserError as error:\n    print(f'Error: {error}')"
    )
    env = {**os.environ, "PYTHONPATH": str(COMPAT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("Error: dassl.modeling.ops is not here")


def test_the_table_names_all_that_is_left_out():
    table = (COMPAT / "NAMES.md").read_text(encoding="utf-8")
    for package, (_, names) in LEFT_OUT.items():
        assert f"`{package}`" in table
        assert all(name in table for name in names.split())
