"""Commands and their parts: who may import whom, and who may look at the environment."""

import ast
import subprocess
import sys

import pytest
from imports import imported, tree_of
from quick_run import REPOSITORY

from common import this_python

SCRIPTS = REPOSITORY / "scripts"
COMMANDS = sorted(path for path in SCRIPTS.glob("*.py") if not path.stem.startswith("_"))
NAMES = {path.stem for path in COMMANDS}
PARTS = sorted(
    path
    for room in (*SCRIPTS.glob("*/"), *(REPOSITORY / name for name in ("common", "compat", "datasets", "trainers")))
    for path in room.rglob("*.py")
)


@pytest.mark.parametrize("path", COMMANDS + PARTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_no_one_imports_a_command(path):
    tree = tree_of(path)
    by_package = {name.split(".")[1] for name in imported(tree) if name.startswith("scripts.")}
    # Of the folder of a command that is started, which Python looks into as well; its datasets.py is the package there.
    alone = {name.split(".")[0] for name in imported(tree)} - {"datasets"}
    assert not (by_package | alone) & NAMES


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_command_begins_by_finding_the_repository(path):
    first, *others = [node for node in tree_of(path).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert isinstance(first, ast.Import) and [alias.name for alias in first.names] == ["_repository"]
    assert "_repository" not in {name for node in others for name in imported(node)}


def test_nothing_else_arranges_paths():
    users = [path.name for path in COMMANDS + PARTS if "sys.path" in path.read_text(encoding="utf-8")]
    # A node's processes are Ray's, which know of no repository.
    assert users == ["dassl_path.py", "ray.py"]


def looks(tree, within=""):
    """Names of functions that read variables; to go through all of them, for a child, is no reading, nor is writing."""
    for node in ast.iter_child_nodes(tree):
        if ast.unparse(node) in ("os.environ.items", "os.environ.copy", "os.environ.update", "os.environ.pop"):
            continue
        if isinstance(node, ast.Dict):
            passed_on = {id(value) for key, value in zip(node.keys, node.values, strict=True) if key is None}
            yield from (name for child in node.values if id(child) not in passed_on for name in looks(child, within))
            continue
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"):
            yield within
        name = node.name if isinstance(node, ast.FunctionDef) and not within else within
        yield from looks(node, name)


@pytest.mark.parametrize("path", COMMANDS + PARTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_the_environment_is_read_by_command_lines_alone(path):
    if path.is_relative_to(SCRIPTS):
        assert set(looks(tree_of(path))) <= ({"parse_args", "make_parser"} if path in COMMANDS else set())


@pytest.mark.parametrize(
    "words",
    [
        ["scripts/results.py", "output"],
        ["scripts/report.py", "output"],
        ["scripts/launch.py", "coop"],
        ["train.py", "--trainer", "CoOp"],
        ["predict.py", "--model-dir", "run", "photo.jpg"],
    ],
    ids=lambda words: words[0],
)
def test_a_python_without_packages_is_one_message(words, tmp_path):
    # -S: without site-packages.
    command = [sys.executable, "-S", str(REPOSITORY / words[0]), *words[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"Error: {sys.executable} lacks the package ") and done.stderr.count("\n") == 1
    assert "scripts/setup.sh" in done.stderr or ".venv/bin/python" in done.stderr


def test_a_python_that_is_too_old_is_one_message(monkeypatch):
    monkeypatch.setattr(this_python, "OLDEST", (99, 0))
    with pytest.raises(SystemExit, match=r"Error: .* is Python 3\.\d+, and 99\.0 or newer is needed\. Start this by "):
        this_python.prepare_python()


def test_a_mistake_of_ours_is_shown_as_python_shows_it(tmp_path):
    code = "import _repository, common.no_such_module"
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr and "common.no_such_module" in done.stderr
