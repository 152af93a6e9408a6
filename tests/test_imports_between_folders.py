"""Allowed imports between the folders of the repository."""

import ast
import subprocess
import sys

from quick_run import REPOSITORY


def within(name, package):
    return name == package or name.startswith(f"{package}.")


def imported(path):
    """Full names of all imports in a module, also within functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_trainer_modules_import_no_dassl_configs_or_trainers():
    for path in (REPOSITORY / "trainers/modules").glob("*.py"):
        for name in imported(path):
            assert not any(within(name, package) for package in ("dassl", "yacs", "datasets")), path
            assert not within(name, "trainers") or within(name, "trainers.modules"), path


def test_method_import_loads_at_most_50_modules():
    code = (
        "import sys, common.startup; common.startup.prepare_imports(); import trainers.coop; "
        "ours = {'trainers', 'common', 'datasets', 'scripts'}; "
        "print(*(name for name in sys.modules if name.partition('.')[0] in ours))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert 20 < len(run.stdout.split()) <= 50, run.stdout
